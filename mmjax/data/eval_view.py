"""A source as evaluation sees it: every picture decoded and cropped to the model's size, always in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmjax.data.reader import Source
from mmjax.data.sample import Example, Unreadable
from mmjax.data.transform_chain import TransformChain


class EvalView:
    """A source whose pictures went through ``chain``; all other fields and attributes are the source's own.

    Sources of pixels of the model's size need no view. ``Unreadable`` is raised to the reader, who decides.
    """

    def __init__(self, source: Source, chain: TransformChain):
        self._source = source
        self._chain = chain

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        sample = self._chain.apply_caption_transforms(example, number=0)
        sample = self._chain.decode_and_transform(sample, example, number=0)
        return example | {"captions": sample.captions} | sample.images

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # during unpickling ``_source`` does not exist yet
            raise AttributeError(name)
        return getattr(self._source, name)


def is_encoded(source: Source) -> bool:
    """Whether the source's pictures are encoded bytes, judged by its first readable example."""
    for index in range(len(source)):
        try:
            example = source[index]
        except Unreadable:
            continue
        return any(isinstance(example.get(name), bytes) for name in source.modalities)
    return False
