import doctest
from decimal import Decimal
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


class Many(source.Source):
    def __init__(self, sizes, group):
        self.group, self._size = group, sum(sizes)
        if len(sizes) > 1:
            self.components = tuple(source.Component(f"c{i}", size, i + 1.0) for i, size in enumerate(sizes))

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        return {"id": self.check_index(index)}

    def column(self, name):
        return np.arange(self._size)


HUNDREDTHS = st.integers(10, 99).map(lambda n: n / 100)


@settings(max_examples=40)
@given(
    groups=st.lists(st.integers(10, 200), min_size=1, max_size=3),
    group=st.sampled_from([1, 2]),
    low=HUNDREDTHS,
    high=HUNDREDTHS,
)
def test_a_subset_has_exactly_the_floor_of_each_component_and_lies_in_larger_ones(groups, group, low, high):
    whole = Many([size * group for size in groups], group)
    subsets = [source.Subset(whole, fraction) for fraction in sorted((low, high))]
    ids = [[example["id"] for example in subset] for subset in subsets]
    for subset, kept, fraction in zip(subsets, ids, sorted((low, high)), strict=True):
        counts = [floor(Decimal(str(fraction)) * size) * group for size in groups]
        assert len(subset) == len(kept) == sum(counts) and sorted(set(kept)) == kept
        assert [component.size for component in subset.components] == (counts if len(groups) > 1 else [])
        assert [component.weight for component in subset.components] == [c.weight for c in whole.components]
        first = np.cumsum([0, *counts])
        for number, size in enumerate(np.cumsum([0, *groups])[:-1] * group):  # each component from its own examples
            own = kept[first[number] : first[number + 1]]
            assert all(size <= kept_id < size + groups[number] * group for kept_id in own)
        assert all(kept_id ^ 1 in kept for kept_id in kept) or group == 1  # pairs stay together
        assert subset.column("id").tolist() == kept and subset.id_limit == len(whole)
    assert set(ids[0]) <= set(ids[1])


def test_a_subset_is_a_fair_draw_that_never_changes():
    whole = Many([10_000], 1)
    kept = source.Subset(whole, 0.29).column("id")
    assert len(kept) == 2900 and kept[:8].tolist() == [1, 4, 12, 14, 15, 17, 27, 36]
    quarters = np.histogram(kept, bins=4, range=(0, 10_000))[0] / 2500
    assert np.abs(quarters - 0.29).max() < 4 * np.sqrt(0.29 * 0.71 / 2500)
    with pytest.raises(ConfigError, match=r"fraction=1e-05: leaves none of the 10,000 .* set it to 0\.0002 or more"):
        source.Subset(whole, 1e-5)
    assert len(source.Subset(whole, 0.0002)) == 2
