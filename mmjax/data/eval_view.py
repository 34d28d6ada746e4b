"""A source as evaluation sees it: every picture decoded and cropped to the model's size, always in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import pictures
from mmjax.data.sample import Crop, Example
from mmjax.data.source import Source, SourceView
from mmjax.data.transform_chain import TransformChain


class EvalView(SourceView):
    """A source whose pictures went through ``chain``; all other fields and attributes are the source's own.

    Sources of pixels of the model's size need no view. ``Unreadable`` is raised to the reader, who decides.
    """

    def __init__(self, source: Source, chain: TransformChain):
        super().__init__(source)
        self._chain = chain

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        sample = self._chain.apply_caption_transforms(example, number=0)
        sample = self._chain.decode_and_transform(sample, example, number=0)
        boxes = _boxes_in_view(example, sample.crop, self.modalities)
        return example | {"captions": sample.captions} | boxes | sample.images


def _boxes_in_view(example: Example, crop: Crop | None, modalities: Sequence[str]) -> dict[str, Any]:
    """The boxes of an example, (left, top, right, bottom) in fractions of its picture, in fractions of what is seen."""
    if crop is None or "box" not in example:
        return {}
    picture = next(example[name] for name in modalities if example.get(name) is not None)
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else pictures.size_of(picture)

    def move(box: Sequence[float]) -> tuple[float, ...]:
        left, top, right, bottom = (x * size for x, size in zip(box, (width, height) * 2, strict=True))
        placed = crop.place((left, top, right, bottom))
        return tuple(min(max(x / size, 0.0), 1.0) for x, size in zip(placed, crop.size[::-1] * 2, strict=True))

    return {"box": move(example["box"])} | (
        {"proposals": [move(box) for box in example["proposals"]]} if "proposals" in example else {}
    )


def view_for_evaluation(source: Source, chain: TransformChain, *, final_size: int | None) -> Source:
    """``source`` through ``chain``, or as it is if its pictures are pixels of ``final_size`` already; None: never."""
    if final_size is not None and not is_encoded(source):
        example = source.first_readable()
        if all(example[name].shape[:2] == (final_size, final_size) for name in source.modalities if name in example):
            return source
    return EvalView(source, chain)


def is_encoded(source: Source) -> bool:
    """Whether the source's pictures are encoded bytes, judged by its first readable example."""
    example = source.first_readable()
    return any(isinstance(example.get(name), bytes) for name in source.modalities)


def make_eval_chain(
    preprocess: Mapping[str, Any] | None,
    *,
    image_size: int,
    resize: str,
    modalities: tuple[str, ...],
    background: str,
    aligned: bool = True,
) -> TransformChain:
    """What evaluation does to a picture: the section ``data.preprocess``, or the model's own way to ``resize``."""
    options = dict(preprocess or {"name": "resize_crop", "mode": resize})
    name = options.pop("name", "resize_crop")
    path = "data.preprocess"
    chain = TransformChain(
        ((name, options),),
        image_size=image_size,
        modalities=modalities,
        background=background,
        path=path,
        aligned=aligned,
    )
    if chain.geometry is None:
        raise ConfigError(f"{path}.name={name!r}: is no geometry; use 'resize_crop'")
    return chain
