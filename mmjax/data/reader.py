"""One row's example: read, captioned, decoded, transformed, and replaced where it cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.chain import Chain
from mmjax.data.sample import DataError, Example, Sample, Unreadable

Captions = Literal["random", "first"]
Skipped = tuple[str, str, str]
"""Key, reason and detail of an example that could not be used."""

_STREAM = 2  # of random numbers
_TRIES = 32  # examples drawn in the place of one that cannot be used


class Source(Protocol):
    """Random access to examples; see ``mmjax.data.sources``."""

    group: int
    modalities: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


class Reader:
    """From a place in the source to a sample with ``caption_rows`` captions and ``negative_rows`` false ones, or fewer.

    ``sample.fields["negatives"]`` are the false captions that were chosen.
    """

    def __init__(
        self,
        source: Source,
        chain: Chain,
        *,
        seed: int,
        captions: Captions = "random",
        caption_rows: int = 1,
        negative_rows: int = 0,
    ):
        self._source = source
        self._chain = chain
        self._seed = seed
        self._captions = captions
        self._caption_rows = caption_rows
        self._negative_rows = negative_rows

    def first(self) -> Sample:
        """A sample of the first example that can be used, which settles the shapes of all."""
        error: Unreadable | None = None
        for place in range(min(_TRIES, len(self._source))):
            try:
                example = self._source[place]
                sample = self._made(example, 0, [0.0] * (self._caption_rows + self._negative_rows))
            except Unreadable as found:
                error = found
                continue
            if self._negative_rows and "negatives" not in example:
                raise ConfigError(f"negatives_per_image={self._negative_rows}: the source supplies no negatives; use 0")
            if not sample.images:
                raise ConfigError(
                    "the source's examples have no images: a modality is an array of uint8[H, W, channels] or an "
                    "encoded picture"
                )
            return sample
        raise ConfigError(f"none of the source's first examples can be used; the last one: {error}")

    def sample(self, number: int, place: int, draws: list[float], *, part: range) -> tuple[Sample, list[Skipped]]:
        """The sample of the row of that ``number``, and what could not be used before one was found.

        In the place of a broken example comes another one of ``part``, by a draw that only the seed, the row and the
        attempt decide; a neighbour might be as broken.
        """
        skipped: list[Skipped] = []
        for attempt in range(_TRIES):
            key = f"example {place}"
            try:
                example = self._source[place]
                key = str(example.get("key", key))
                return self._made(example, number, draws), skipped
            except Unreadable as error:
                skipped.append((error.key or key, error.reason, error.detail))
            place = int(np.random.default_rng((self._seed, _STREAM, number, attempt)).integers(part.start, part.stop))
        last = ": ".join(filter(None, skipped[-1]))
        raise DataError(f"{_TRIES} examples drawn one after the other cannot be used; the last one: {last}")

    def _made(self, example: Example, number: int, draws: list[float]) -> Sample:
        sample = self._chain.captioned(example, number=number)
        if self._captions == "first":
            sample.captions = sample.captions[: self._caption_rows]
        else:
            sample.captions = different(sample.captions, draws[: self._caption_rows], sample.weights)
        sample = self._chain.viewed(sample, example, number=number)
        # Of a mixture, or a table, not every example has some; its rows are padding then.
        false = [text for _, _, text in sample.fields.get("negatives", ())] if self._negative_rows else []
        sample.fields = {"negatives": different(false, draws[self._caption_rows :])}
        return sample


def different(pool: Sequence[str], draws: list[float], weights: Sequence[float] | None = None) -> list[str]:
    """As many members of ``pool`` as there are uniform ``draws`` in [0, 1), none twice; all where it has fewer.

    With ``weights``, each in turn by those of what is left; what weighs nothing is never chosen.
    """
    left = list(pool)
    if weights is None:
        return [left.pop(int(draw * len(left))) for draw in draws[: len(left)]]
    chosen, scale = [], list(weights)
    for draw in draws:
        if not sum(scale) > 0:
            break
        bounds = np.cumsum(scale) / sum(scale)
        at = int(np.searchsorted(bounds[:-1], draw, side="right"))
        chosen.append(left.pop(at))
        scale.pop(at)
    return chosen
