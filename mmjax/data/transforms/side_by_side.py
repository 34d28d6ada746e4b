"""CLIC (arXiv:2505.24424): pictures made of two, captions of both in any order, and words exchanged across them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar

import numpy as np

from mmjax.core.config import ConfigError, Ge
from mmjax.data.negatives import swaps
from mmjax.data.negatives.across import Finder, exchange_words
from mmjax.data.sample import BatchRows, Sample
from mmjax.data.transforms.common.base import Stage

_ENDS = (".", "!", "?")


class Transform:
    """In every other step, puts the picture of the next row beside each row's own one, for the objective ``clic``.

    Of a row with captions c1, c2, … and a next row with captions d1, d2, … the new captions are::

        c1. d1.        d1. c1.        c2 and d2, in any order        c3 and d3, in any order

    as many as ``data.captions_per_image``; a row that lacks a further caption takes its first one, and where both lack
    it the caption is padding. Negatives are c1 and d1, in any order, with a word of one exchanged for a word of the
    other that has the same part of speech. ``data.negatives_per_image`` of them are taken, each of another part of
    speech; the paper's number is one. A row keeps its own id, and no other row's captions are positives of it.

    The two pictures are side by side or one above the other, in either order; each is squeezed to half its size in that
    direction. The released code does the same after it has chosen a second picture of the same orientation from all of
    the data; here pictures are already square, and the second is the next row's, so that none is read for it.

    In the other steps rows keep one picture and their first caption, and have no negatives: plain CLIP, which the paper
    needs against drift.

    Args:
      exchange: which words are exchanged: ``tagged`` by part of speech, which needs TextBlob (``pip install
        'mmjax[negatives]'``), or ``lists`` those of one list of ``negatives_rules``, such as two colors.
      every: one step of so many combines pictures; the paper's is 2.
    """

    stage: ClassVar[Stage] = "batch"
    adds_negatives: ClassVar[bool] = True
    joins_captions: ClassVar[bool] = True

    def __init__(self, *, exchange: Finder = "tagged", every: Annotated[int, Ge(1)] = 2):
        self._exchange, self._every = exchange, every
        if exchange == "tagged":
            swaps.tagger("exchange='tagged'", "exchange=lists")

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Every row to the same member of the next group."""
        if batch_size < 2 * group:
            raise ConfigError(
                f"batch_size={batch_size}: side_by_side combines rows of two groups of {group}; use larger batches"
            )
        return {row: (row + group) % batch_size for row in host_rows}

    def combine_texts(self, sample: Sample, partner: Sample | None, step: int, random: np.random.Generator) -> Sample:
        """The captions and negatives of both."""
        if partner is None or step % self._every:
            return dataclasses.replace(sample, captions=sample.captions[:1], fields={**sample.fields, "negatives": []})
        first, second = sample.captions, partner.captions
        captions = [_join(first[0], second[0]), _join(second[0], first[0])]
        for number in range(1, max(len(first), len(second))):
            pair = [texts[number] if number < len(texts) else texts[0] for texts in (first, second)]
            captions.append(_join(*_shuffled(pair, random)))
        negatives = [
            (kind, captions[0], _join(*_shuffled(list(pair), random)))
            for kind, pair in exchange_words(first[0], second[0], self._exchange, random)
        ]
        teacher = sample.fields.get("teacher")
        fields = {**sample.fields, "negatives": negatives, "teacher": None if teacher is None else teacher.blank}
        return dataclasses.replace(sample, captions=captions, fields=fields)

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """The pictures of both."""
        if rows.step % self._every:
            return rows
        images = {name: pixels.copy() for name, pixels in rows.images.items()}
        for row, (number, partner) in enumerate(zip(rows.numbers.tolist(), rows.partner.tolist(), strict=True)):
            if partner < 0:
                continue
            generator = random(number)
            axis, own_first = int(generator.integers(2)), bool(generator.integers(2))
            order = (row, partner) if own_first else (partner, row)
            for name, pixels in rows.images.items():
                images[name][row] = _beside(pixels[order[0]], pixels[order[1]], axis)
        return rows.replace(images=images)


def _beside(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """Both pictures u8[H, W, C], each squeezed to half its size along ``axis``."""
    size = first.shape[axis]
    return np.concatenate([_squeeze(first, size - size // 2, axis), _squeeze(second, size // 2, axis)], axis)


def _squeeze(pixels: np.ndarray, length: int, axis: int) -> np.ndarray:
    size = pixels.shape[axis]
    starts = np.arange(length) * size // max(length, 1)
    pair = (pixels.take(np.minimum(starts + k, size - 1), axis).astype(np.uint16) for k in (0, 1))
    return ((sum(pair) + 1) >> 1).astype(np.uint8)


def _join(*texts: str) -> str:
    stripped = (text.rstrip() for text in texts)
    return " ".join(text if text.endswith(_ENDS) else f"{text}." for text in stripped)


def _shuffled(pair: list[str], random: np.random.Generator) -> list[str]:
    return pair if random.integers(2) else pair[::-1]
