"""Captions from fields of the example, with a probability for each."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample, Unreadable
from mmjax.data.text import captions_of
from mmjax.data.transforms.base import Stage
from mmjax.data.transforms.rewrites import shares


class Transform:
    """Takes captions from the named fields, such as those of a WebDataset's json or a table's columns.

    A field is a text or a list of texts, which share its weight. One that an example lacks, or that holds no text,
    leaves its weight to the others in proportion; an example with none of them is unreadable.

    Args:
      fields: their names; ``captions`` are the source's own.
      weights: how likely each field is; equal where they are not given.
    """

    stage: ClassVar[Stage] = "captions"

    def __init__(self, *, fields: tuple[str, ...] = ("captions",), weights: tuple[float, ...] | None = None):
        if not fields or len(set(fields)) < len(fields):
            raise ConfigError(f"fields={tuple(fields)}: name one or more fields, each once")
        self._weights = dict(zip(fields, shares(weights, count=len(fields), of="each field"), strict=True))

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with the fields' captions, and their weights, which sum to one."""
        found = [
            (text, weight * share)
            for name, weight in self._weights.items()
            if weight > 0
            for text, share in self._texts(sample, name)
            if share > 0
        ]
        if not found:
            raise Unreadable("no caption", f"in {', '.join(self._weights)}", key=sample.key)
        total = sum(weight for _, weight in found)
        return dataclasses.replace(
            sample, captions=[text for text, _ in found], weights=[weight / total for _, weight in found]
        )

    def _texts(self, sample: Sample, name: str) -> list[tuple[str, float]]:
        """The texts of a field and the share of each."""
        if name == "captions":
            own = shares(sample.weights, count=len(sample.captions), of="each caption")
            return list(zip(sample.captions, own, strict=True))
        value = sample.fields.get(name)
        try:
            texts = captions_of(value, sample.key)
        except Unreadable as error:
            if error.reason == "no caption":
                return []
            raise
        return [(text, 1 / len(texts)) for text in texts]
