"""A source of few examples of every kind of field, for what reads any source; importable in worker processes."""

import time

import numpy as np

from mmjax.data import source
from mmjax.data.sample import Unreadable
from support.pictures import encoded, photograph


class Source(source.Source):
    """Even examples are JPEG, odd ones PNG; ``broken`` ones cannot be read, ``slow`` seconds pass for each.

    Reading ``fails`` altogether at one of them, and never ends at another that ``hangs``.
    """

    class_names = ("cat", "dog", "hen")

    def __init__(self, size=12, *, broken=(), slow=0.0, fails=None, hangs=None, height=24, width=36):
        self.size, self.broken, self.slow, self.fails, self.hangs = size, frozenset(broken), slow, fails, hangs
        self._jpeg = encoded(photograph(height, width), quality=90)
        self._png = encoded(photograph(height, width), "PNG")

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        time.sleep(3600 if index == self.hangs else self.slow)
        if index == self.fails:
            raise KeyboardInterrupt("the machine goes")
        key = f"birds/{index:03d}.jpg"
        if index in self.broken:
            raise Unreadable("missing file", "no such file", key=key)
        return {
            "id": index,
            "key": key,
            "captions": [f"caption {c} of {index}, naïve" for c in range(1 + index % 3)],
            "image": self._png if index % 2 else self._jpeg,
            "label": index % 3,
            "score": index / 4,
            "count": index,
            "tags": ["red"] * (index % 2),
            "boxes": np.arange(4.0 * (index % 2 + 1)).reshape(-1, 4),
            "negatives": [("swap", f"true {index}", f"false {index}")] * (index % 2),
        }
