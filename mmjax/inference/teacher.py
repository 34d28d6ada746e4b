"""Embeddings of a teacher beside a source: what ``mmjax embed`` wrote of its pictures and captions."""

from __future__ import annotations

import numpy as np

from mmjax.data.clusters.table import match_rows
from mmjax.data.sample import Example, Teacher
from mmjax.data.source import Source, SourceView
from mmjax.inference.embedding_store import EmbeddingStore, open_store

_OPTION = "data.teacher.path"


class WithTeacher(SourceView):
    """``source`` with the field ``teacher``: the embeddings of an example's picture and of each of its captions.

    Args:
        source: The examples.
        path: The folder of embeddings, of images and of texts.
    """

    def __init__(self, source: Source, path: str):
        super().__init__(source)
        self._images = open_store(path, kind="images", flag=_OPTION)
        self._texts = open_store(path, kind="texts", flag=_OPTION)
        self._image_of = np.full(len(source), -1, np.int64)
        places = _match(self._images, source, path)
        self._image_of[places[places >= 0]] = np.flatnonzero(places >= 0)
        text_places = _match(self._texts, source, path)
        self._text_order = np.argsort(text_places, kind="stable")
        self._text_places = text_places[self._text_order]
        self._width = self._images.plan.dimension

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        row = int(self._image_of[index])
        image = self._images.embeddings[row] if row >= 0 else np.zeros(self._width, np.float32)
        first, last = np.searchsorted(self._text_places, index), np.searchsorted(self._text_places, index, side="right")
        rows = self._text_order[first:last].tolist()
        texts = {self._texts.captions(row)[0]: self._texts.embeddings[row] for row in rows}
        return {**example, "teacher": Teacher(image=image, texts=texts)}


def _match(store: EmbeddingStore, source: Source, path: str) -> np.ndarray:
    return match_rows(list(store.paths), store.indices, source, path=path, option=_OPTION, examples=store.plan.examples)
