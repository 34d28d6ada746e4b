"""An image generator makes new pictures from records, or edits theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np

from mmjax.core.config import Between, ConfigError, Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Box, Failure, ImageGenerator, Picture, PictureRequest
from mmjax.generate.block import Estimate, Tools


class Block(block.RecordBlock):
    """Makes ``n`` children of each record, with their prompts as captions (source ``edit``).

    Prompts are those of ``prompts``, or of ``fields["domains"]``, with the record's class for ``{}``; or, with
    ``sources``, its captions of these kinds. A record without any, or without a class for ``{}``, stays as it is. Of
    several, random ones are taken.

    Args:
      mode: ``text`` draws from the prompt alone; ``image`` changes the picture by ``strength``; ``instruct`` takes the
        prompt as an instruction; ``layout`` puts the record's boxes where they are.
      model: the image generator's name.
      n: children of a record.
      prompts: what to make, with ``{}`` for the class.
      sources: the captions that are prompts.
      boxes: whether children have the boxes of their parent, whose phrases hold for them.
      parents: whether the parents stay too.
      strength: how far ``image`` goes from the picture.
      guidance: of the text.
      image_guidance: of the picture, in ``instruct``.
      steps: of the sampler.
    """

    def __init__(
        self,
        *,
        mode: Literal["text", "image", "instruct", "layout"],
        model: str = "image_generator",
        n: Annotated[int, Ge(1)] = 1,
        prompts: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
        boxes: bool = False,
        parents: bool = True,
        strength: Annotated[float, Between(0, 1)] | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        steps: int | None = None,
    ):
        if prompts and sources:
            raise ConfigError(f"prompts={prompts!r}: sources={sources!r} names prompts already; leave one of them out")
        self.uses = {model: ImageGenerator}
        # Prompts of the stage domains are for a class.
        self.needs = () if sources or (prompts and "{}" not in "".join(prompts)) else ("class_name",)
        self._mode, self._model, self._n, self._prompts, self._sources = mode, model, n, prompts, sources
        self._boxes, self._parents = boxes, parents
        numbers = {"strength": strength, "guidance": guidance, "image_guidance": image_guidance, "steps": steps}
        self._options: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """Each record with its children after it."""
        generator: ImageGenerator = tools.model(self._model)
        asked = [
            (row, number, prompt, tools.seed(record, number))
            for row, record in enumerate(records)
            for number, prompt in enumerate(self._choose(record, tools))
        ]
        pictures = {row: None if self._mode == "text" else tools.picture(records[row]) for row, *_ in asked}
        made = generator.make(
            [self._request(records[row], prompt, pictures[row]) for row, _, prompt, _ in asked],
            [seed for *_, seed in asked],
        )
        families: list[list[Record]] = [[record] for record in records]
        for (row, number, prompt, seed), picture in zip(asked, made, strict=True):
            if isinstance(picture, Failure):
                families[row].append(block.failed_child(records[row], number, f"edit: {picture.reason}"))
                continue
            # A text may have another subject; that of a class has this one.
            child = block.child(records[row], number, () if self._sources else ("class_name", "label"))
            child.image, child.size = tools.encode(picture), (picture.pixels.shape[0], picture.pixels.shape[1])
            if picture.scene is not None:
                child.fields["scene"] = dict(picture.scene)
            by = tools.origin(child, generator, seed=seed, mode=self._mode, prompt=prompt, **self._options)
            child.captions = [{"text": prompt, "source": "edit", "weight": 1.0, "by": by}]
            if self._boxes or self._mode == "layout":
                child.boxes = [{**box, "by": by} for box in records[row].boxes]
            families[row].append(child)
        for caption in (caption for record in records for caption in record.captions):
            if caption.get("prompt"):  # it is true of the child alone
                caption["weight"] = 0.0
        for family in families:
            if len(family) > 1 and not self._parents:
                family[0].drop("edit: only its children are kept")
        return list(families)

    def _choose(self, record: Record, tools: Tools) -> list[str]:
        if self._sources:
            prompts = [caption["text"] for _, caption in block.captions(record, self._sources)]
        else:
            prompts = list(self._prompts or record.fields.get("domains", ()))
            if "class_name" in record.fields:
                prompts = [text.replace("{}", str(record.fields["class_name"])) for text in prompts]
            prompts = [text for text in prompts if "{}" not in text]
        order = np.random.default_rng(tools.seed(record, "prompts")).permutation(len(prompts)).tolist()
        return [prompts[number] for number in order[: self._n]]

    def _request(self, record: Record, prompt: str, picture: Picture | None) -> PictureRequest:
        is_free = self._mode in ("text", "layout")
        boxes = []
        for box in record.boxes if self._mode == "layout" else ():
            x1, y1, x2, y2 = box["box"]
            boxes.append(Box(x1, y1, x2, y2, box["phrase"], box["score"]))
        return PictureRequest(
            self._mode, prompt, None if is_free else picture, boxes=boxes,
            size=record.size if is_free and min(record.size) > 0 else None, **self._options,
        )  # fmt: skip

    def estimate(self, records: int) -> Estimate:
        """A request for each child."""
        return Estimate({self._model: records * self._n}, records * (1 + self._n))
