"""Pictures in other styles: the same things with the same captions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated

from mmjax.core.config import Between, Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Failure, ImageGenerator, PictureRequest
from mmjax.generate.block import Estimate, Tools


class Block(block.RecordBlock):
    """Makes ``n`` children of each record, each in another style, with its captions, boxes and class.

    Captions that name colors may no longer be true.

    Args:
      model: the image generator's name; backend ``style``, or any that redraws a picture.
      n: children of a record.
      strength: how far to go from the picture.
      prompt: what generators are told that read prompts.
      parents: whether the parents stay too.
    """

    def __init__(
        self,
        *,
        model: str = "image_generator",
        n: Annotated[int, Ge(1)] = 1,
        strength: Annotated[float, Between(0, 1)] | None = None,
        prompt: str = "",
        parents: bool = True,
    ):
        self.uses = {model: ImageGenerator}
        self._model, self._n, self._strength, self._prompt, self._parents = model, n, strength, prompt, parents

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """Each record with its children after it."""
        generator: ImageGenerator = tools.model(self._model)
        asked = [(record, number, tools.seed(record, number)) for record in records for number in range(self._n)]
        pictures = {record.id: tools.picture(record) for record in records}
        made = generator.make(
            [
                PictureRequest("image", self._prompt, pictures[record.id], strength=self._strength)
                for record, *_ in asked
            ],
            [seed for *_, seed in asked],
        )
        families: dict[str, list[Record]] = {record.id: [record] for record in records}
        for (record, number, seed), picture in zip(asked, made, strict=True):
            if isinstance(picture, Failure):
                families[record.id].append(block.failed_child(record, number, f"restyle: {picture.reason}"))
                continue
            child = block.child(record, number, [name for name in record.fields if name != "scene"])
            child.image, child.size = tools.encode(picture), (picture.pixels.shape[0], picture.pixels.shape[1])
            # The texts are the parent's, and so is what says where they come from.
            for name in ("captions", "negatives", "boxes", "qa", "provenance"):
                setattr(child, name, copy.deepcopy(getattr(record, name)))
            tools.origin(child, generator, seed=seed, strength=self._strength, prompt=self._prompt or None)
            families[record.id].append(child)
        for family in families.values():
            if not self._parents:
                family[0].drop("restyle: only its children are kept")
        return list(families.values())

    def estimate(self, records: int) -> Estimate:
        """A request for each child."""
        return Estimate({self._model: records * self._n}, records * (1 + self._n))
