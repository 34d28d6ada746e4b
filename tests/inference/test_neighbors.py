"""The nearest neighbors of all embeddings are those of float64, on any devices and in any blocks."""

import jax
import numpy as np
import pytest

from mmjax.inference import neighbors


def wanted(z, count):
    cosines = z.astype(np.float64) @ z.astype(np.float64).T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-np.round(cosines, 13), axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize(("n", "count"), [(300, 5), (40, 39), (2, 4)])
def test_they_are_exact_with_copies_in_the_order_of_rows(n, count, monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 64)
    random = np.random.default_rng(0)
    z = random.normal(size=(n, 7)).astype(np.float32)
    z[n // 2 :] = z[: n - n // 2]  # every row twice
    z[: n // 5] = z[0]  # and some of them many times, more than the slack
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    done = []
    found = neighbors.find_neighbors(z, count, progress=done.append)
    np.testing.assert_array_equal(found, wanted(z, min(count, n - 1)))
    assert done[-1] == n


def test_what_float32_cannot_tell_apart_is_in_the_order_of_float64():
    random = np.random.default_rng(1)
    z = np.ones((80, 6)) + 1e-4 * random.normal(size=(80, 6))  # cosines differ by 1e-8
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_array_equal(neighbors.find_neighbors(z, 3), wanted(z, 3))


@pytest.mark.parametrize("count", [2, 4, 64])
def test_processes_share_the_rows_and_have_the_same_result(count, monkeypatch):
    z = np.random.default_rng(2).normal(size=(103, 6)).astype(np.float32)
    z[50:60] = z[0]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    whole, gathered = neighbors.find_neighbors(z, 7), []
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(neighbors.multihost_utils, "process_allgather", lambda own: gathered.append(own) or own)
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        neighbors.find_neighbors(z, 7)
    np.testing.assert_array_equal(np.concatenate(gathered)[: len(z)], whole)
