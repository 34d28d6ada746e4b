"""The schema of ``init``: what a run's parameters start from. Imports no jax."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from mmjax.core.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights to start from; parameters that none of them has are drawn at random.

    ``source`` gives both towers, the temperature, and a decoder, fusion encoder or recognizer if it has one. ``vision``
    and ``text`` each give one tower, before ``source``.
    Each is a run folder, a folder in transformers' or open_clip's layout, a file of weights, or a hub name.
    ``drop`` are regular expressions of parameter paths that keep their random values all the same.
    """

    source: str | None = None
    vision: str | None = None
    text: str | None = None
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.drop:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"init.drop={pattern!r}: not a regular expression ({error})") from None
        if self.drop and not any(self.specs()):
            raise ConfigError(f"init.drop={self.drop!r}: nothing is loaded; name weights with init.source")

    def specs(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Key, SPEC and the roots of the paths that it gives, of all that are set, the first to be asked first."""
        both = (("vision", self.vision, ("visual",)), ("text", self.text, ("text",)))
        all_roots = ("visual", "text", "logit_scale", "logit_bias", "decoder", "fusion", "recognizer")
        for key, spec, roots in (*both, ("source", self.source, all_roots)):
            if spec is not None:
                yield f"init.{key}", spec, roots
