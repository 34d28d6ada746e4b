"""Places the objects of a caption at random (SLUMA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mmjax.core.config import Between, ConfigError, Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Failure
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Gives each of ``fields["objects"]`` a random box; boxes overlap by at most half of the smaller one if they can.

    Args:
      most: objects that get a box, the first ones.
      small: the smallest side of a box, as a fraction of the picture's.
      large: the largest.
    """

    def __init__(
        self,
        *,
        most: Annotated[int, Ge(1)] = 2,
        small: Annotated[float, Between(0.01, 1)] = 0.3,
        large: Annotated[float, Between(0.01, 1)] = 0.45,
    ):
        if large < small:
            raise ConfigError(f"large={large}: is less than small={small}; exchange them")
        self._most, self._small, self._large = most, small, large

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their boxes."""
        results: list[block.Result] = []
        for record in records:
            phrases = record.fields.get("objects", [])[: self._most]
            if not phrases:
                results.append(Failure("there are no objects to place; a stage 'objects' names them"))
                continue
            random = np.random.default_rng(tools.seed(record))
            boxes: list[list[float]] = []
            for phrase in phrases:
                box = self._draw(random, boxes)
                boxes.append(box)
                record.boxes.append({"box": box, "phrase": phrase, "score": 1.0})
            results.append(record)
        return results

    def _draw(self, random: np.random.Generator, boxes: Sequence[Sequence[float]]) -> list[float]:
        for _ in range(20):
            width, height = (self._small + (self._large - self._small) * random.random(2)).tolist()
            x, y = (random.random(2) * (1 - np.array([width, height]))).tolist()
            box = [x, y, x + width, y + height]
            if all(_overlap(box, other) <= 0.5 for other in boxes):
                break
        return box


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area of both as a fraction of the smaller one."""
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    return common / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
