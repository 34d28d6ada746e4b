"""Takes captions from fields of the example, with a probability for each field."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample, Unreadable
from mmjax.data.text import captions_of
from mmjax.data.transforms.common.base import Stage, normalize_weights


class Transform:
    """Takes captions from the named fields, such as those of a WebDataset's json or a table's columns.

    A field is a text, or a list of texts that divide its weight evenly. If an example lacks a field, or the field is
    empty, its weight goes to the other fields in proportion. An example without any of the fields is unreadable.

    Args:
      fields: their names; ``captions`` are the source's own captions.
      weights: the probability of each field, up to a factor; equal if left out.
    """

    stage: ClassVar[Stage] = "captions"

    def __init__(self, *, fields: tuple[str, ...] = ("captions",), weights: tuple[float, ...] | None = None):
        if not fields or len(set(fields)) < len(fields):
            raise ConfigError(f"fields={tuple(fields)}: name one or more fields, each once")
        self._weights = dict(zip(fields, normalize_weights(weights, count=len(fields), each="each field"), strict=True))

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with the fields' captions and their weights, which sum to one."""
        texts = [
            (text, weight * fraction)
            for name, weight in self._weights.items()
            if weight > 0
            for text, fraction in self._texts(sample, name)
            if fraction > 0
        ]
        if not texts:
            raise Unreadable("no caption", f"in {', '.join(self._weights)}", key=sample.key)
        total = sum(weight for _, weight in texts)
        return dataclasses.replace(
            sample, captions=[text for text, _ in texts], weights=[weight / total for _, weight in texts]
        )

    def _texts(self, sample: Sample, name: str) -> list[tuple[str, float]]:
        """The texts of a field and the fraction of its weight that each has."""
        if name == "captions":
            own = normalize_weights(sample.weights, count=len(sample.captions), each="each caption")
            return list(zip(sample.captions, own, strict=True))
        value = sample.fields.get(name)
        try:
            texts = captions_of(value, sample.key)
        except Unreadable as error:
            if error.reason == "no caption":
                return []
            raise
        return [(text, 1 / len(texts)) for text in texts]
