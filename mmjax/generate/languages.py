"""Which language a text is in, without a network: py3langid, whose model of 139 languages is in its wheel."""

from __future__ import annotations

import functools
from typing import Any

from mmjax.core.config import ConfigError

UNCLEAR = "unclear"
_SURE = 0.3  # of the names of emoji in English, at most 6 % are given another language with this probability


def check_installed(option: str) -> None:
    """Raises ConfigError if texts cannot be identified.

    Args:
        option: What needs it, for the error.
    """
    try:
        _load_identifier()
    except ImportError:
        raise ConfigError(
            f"{option}: languages are identified by py3langid, which is not installed; pip install "
            "'mmjax[languages]', or leave it out"
        ) from None


def known_languages() -> list[str]:
    """The ISO 639 codes of all languages that can be identified."""
    return sorted(_load_identifier().labels)


def measure_probabilities(text: str) -> dict[str, float]:
    """The probability of each language, the most likely first; of a text without any hint all are nearly equal."""
    return dict(_load_identifier().rank(text))


def identify(text: str) -> str:
    """The code of the most likely language, or ``UNCLEAR``, as for most texts of one or two words."""
    language, probability = _load_identifier().classify(text)
    return language if probability >= _SURE else UNCLEAR


@functools.cache
def _load_identifier() -> Any:
    """The identifier, which keeps nothing between texts."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
