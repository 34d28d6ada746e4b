"""Every source in the folder opens its training split and keeps the promises that the pipeline builds on."""

import pickle

import numpy as np
import pytest

from mmjax import plugins

SMALL = {"scenes": {"size": 16}}
"""Options that make a source small and need no files; a new source adds its own."""


@pytest.mark.parametrize("name", plugins.names("mmjax.data.sources"))
def test_it_is_random_access_deterministic_and_picklable(name):
    cls = plugins.load("mmjax.data.sources", name, path="data.source.name").Source
    assert cls.__doc__
    source = cls("train", modalities=("image",), **SMALL[name])
    twin = pickle.loads(pickle.dumps(source))
    ids = set()
    assert len(source) % source.group == 0
    for index in reversed(range(len(source))):
        example, again = source[index], twin[index]
        ids.add(example["id"])
        assert isinstance(example["id"], int) and example["id"] >= 0
        assert example["captions"] and all(isinstance(c, str) and c for c in example["captions"])
        image = example["image"]
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape == source[0]["image"].shape
        np.testing.assert_array_equal(image, again["image"])
        assert example["captions"] == again["captions"]
    assert len(ids) == len(source)
    with pytest.raises(IndexError):
        source[len(source)]
