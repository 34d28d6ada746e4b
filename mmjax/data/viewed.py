"""A source as evaluation sees it: every picture decoded and brought to the model's size, always in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmjax.data.chain import Chain
from mmjax.data.reader import Source
from mmjax.data.sample import Example, Unreadable


class Viewed:
    """``source`` with its pictures as ``chain`` makes them; the rest of an example, and other attributes, are its own.

    Sources of pixels of the right size need no view. ``Unreadable`` passes through: who reads decides.
    """

    def __init__(self, source: Source, chain: Chain):
        self._source = source
        self._chain = chain

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        sample = self._chain.viewed(self._chain.captioned(example, number=0), example, number=0)
        return example | {"captions": sample.captions} | sample.images

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while being unpickled there is no source to ask
            raise AttributeError(name)
        return getattr(self._source, name)


def is_encoded(source: Source) -> bool:
    """Whether the source's pictures are bytes that a chain has to decode."""
    for index in range(len(source)):
        try:
            example = source[index]
        except Unreadable:
            continue
        return any(isinstance(example.get(name), bytes) for name in source.modalities)
    return False
