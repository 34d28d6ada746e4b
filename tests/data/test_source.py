import doctest

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import source


def test_the_example_of_a_source_runs():
    failures, attempts = doctest.testmod(source)
    assert attempts and not failures


class Numbers(source.Source):
    class_names = ("odd", "even")

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"id": self.check_index(index)}


def test_what_a_source_leaves_out_has_defaults():
    numbers = Numbers()
    assert (numbers.group, numbers.modalities, numbers.unreadable, numbers.id_limit) == (1, ("image",), (), 3)
    assert numbers.templates is None and not numbers.components and not numbers.rows_share_images
    assert [example["id"] for example in numbers] == [0, 1, 2] and numbers[np.int64(2)] == {"id": 2}
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index {index} is outside the source 'test_source'"):
            numbers[index]
    with pytest.raises(ConfigError, match=r"column='key'.*no columns"):
        numbers.column("key")


def test_a_view_has_the_attributes_of_its_source():
    view = source.SourceView(Numbers())
    assert view.class_names == ("odd", "even") and len(view) == 3 and view[1] == {"id": 1} and view.id_limit == 3
