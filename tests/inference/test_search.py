"""Search over embeddings: the same rows as a sort of all exact cosines, ties in the order of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.inference.search import find_nearest


def unit_rows(n, width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sorted_by_cosine(embeddings, query, count):
    cosines = np.array([sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in embeddings])
    order = sorted(range(len(cosines)), key=lambda row: (-round(cosines[row], 13), row))[:count]
    return order, cosines[order]


@settings(max_examples=40)
@given(n=st.integers(1, 60), distinct=st.integers(1, 60), count=st.integers(1, 70), seed=st.integers(0, 1000))
def test_rows_are_those_of_a_full_sort(n, distinct, count, seed):
    rng = np.random.default_rng(seed)
    embeddings = unit_rows(distinct, 12, seed)[rng.integers(0, distinct, n)]
    query = unit_rows(1, 12, seed + 1)[0]
    rows, cosines = find_nearest(embeddings, query, count=count)
    expected, exact = sorted_by_cosine(embeddings, query, count)
    assert rows.tolist() == expected
    np.testing.assert_allclose(cosines, exact, atol=1e-14)


@pytest.mark.parametrize("width", [7, 512])
def test_equal_rows_are_in_the_order_of_rows_wherever_they_lie(width):
    embeddings = unit_rows(5000, width)
    equal = np.random.default_rng(1).permutation(5000)[:300]
    embeddings[equal] = embeddings[equal[0]]
    rows, cosines = find_nearest(embeddings, embeddings[equal[0]], count=200)
    assert rows.tolist() == sorted(equal.tolist())[:200]
    assert len(set(cosines.tolist())) == 1


def test_cosines_that_differ_by_less_than_rounding_are_in_their_exact_order():
    query = np.zeros(512, np.float32)
    query[0] = 1
    embeddings = np.zeros((1000, 512), np.float32)
    embeddings[:, 0] = np.float32(0.5)
    better = np.nextafter(np.float32(0.5), np.float32(1))
    embeddings[[700, 300], 0] = better
    rows, cosines = find_nearest(embeddings, query, count=3)
    assert rows.tolist() == [300, 700, 0] and cosines.tolist() == [better, better, 0.5]


def test_none_of_nothing():
    rows, cosines = find_nearest(np.empty((0, 8), np.float32), np.zeros(8, np.float32), count=5)
    assert len(rows) == len(cosines) == 0
