"""Takes out captions that are in other languages than those that are wanted."""

from __future__ import annotations

from typing import Annotated

from mmjax.core.config import Between, ConfigError, choose
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.languages import check_installed, identify, known_languages, measure_probabilities


class Block(block.Filter):
    """Sets the weight of captions in other languages to zero; drops a record that has no others.

    With the probabilities p of 139 languages by py3langid (extra ``languages``), which needs no network::

        a caption stays if Σ_(l ∈ languages) p_l ≥ min_probability

    The record's score ``language`` is the best such sum of its captions. Few words say little: p of the right language
    is then often under 0.1. A text in which nothing tells has 0.007 for each language and goes.

    Args:
      languages: ISO 639 codes, such as ``en``.
      min_probability: of these languages together.
      sources: which captions, raw ones by default; all others if empty.
    """

    def __init__(
        self,
        *,
        languages: tuple[str, ...],
        min_probability: Annotated[float, Between(0, 1)] = 0.03,
        sources: tuple[str, ...] = ("raw",),
    ):
        if not languages:
            raise ConfigError("languages=(): no caption could stay; name one or more by their codes, such as 'en'")
        check_installed(f"languages={languages}")
        known = known_languages()
        self._languages = [choose(language, known, path="languages") for language in dict.fromkeys(languages)]
        self._min, self._sources = min_probability, sources

    def judge(self, record: Record) -> str | None:
        """Why the record is dropped."""
        values = {caption["text"]: 0.0 for _, caption in block.captions(record, self._sources)}
        if not values:
            return None
        for text in values:
            probabilities = measure_probabilities(text)
            values[text] = sum(probabilities[language] for language in self._languages)
        record.scores["language"] = max(values.values())
        wrong = [text for text, value in values.items() if value < self._min]
        identified = identify(wrong[0]) if wrong else ""
        reason = f"language: {identified}, not {' or '.join(self._languages)}"
        return block.without(record, wrong.__contains__, self._sources, reason=reason)
