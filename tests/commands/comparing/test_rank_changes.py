"""Which captions a report shows: ranks against a plain sort, and the choice of the largest changes."""

import types

import numpy as np

from mmjax.commands.comparing import rank_changes
from mmjax.commands.comparing.rank_changes import choose_changes, find_own, rank_captions
from support import tiny


def test_ranks_are_those_of_a_sort_and_ties_count_as_lost():
    g = np.random.default_rng(0)
    images, texts = (g.normal(size=(9, 4)).astype(np.float32) for _ in range(2))
    images[3] = images[5]  # a tie for caption 3 and 5
    own = np.eye(9, dtype=bool)
    own[0, 1] = True
    got = rank_captions(images, texts, own)
    for row in range(9):
        scores = texts[row] @ images.T
        best = max(scores[own[row]])
        others = sorted(scores[~own[row]], reverse=True)
        assert got.ranks[row] == 1 + sum(score >= best for score in others)
        np.testing.assert_array_equal(scores[got.nearest[row]], np.sort(scores)[::-1][:4])
    assert min(got.ranks[[3, 5]]) >= 2
    np.testing.assert_array_equal(rank_captions(np.ones((9, 1)), np.ones((9, 1)), np.eye(9, dtype=bool)).ranks, 9)


def test_own_images_are_those_of_the_id_and_of_the_caption():
    examples = [
        {"id": 7, "captions": ["a", "b"]},
        {"id": 7, "captions": ["c"]},
        {"id": 8, "captions": ["d", "a"]},
        {"id": 9, "captions": ["e"]},
    ]
    expected = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(find_own(examples), np.array(expected, bool))


def test_the_largest_changes_of_the_log_rank_half_of_them_better():
    ranks = {
        "none": np.array([[8, 8, 8, 8, 1, 100]] * 2),
        "a": np.array([[1, 4, 8, 16, 1, 99]] * 2),
        "b": np.array([[8, 2, 9, 8, 4, 90], [8, 8, 9, 8, 4, 90]]),
    }
    # Factors: a 1/8, 1/2, 1, 2, 1, .99; b 1, 1/2 (the mean of two seeds), 1.13, 1, 4, .9
    assert choose_changes(ranks, count=2) == [("a", 0), ("b", 4)]
    assert choose_changes(ranks, count=4) == [("a", 0), ("a", 1), ("a", 3), ("b", 4)]
    assert choose_changes(ranks, count=9) == [("a", 0), ("a", 1), ("b", 5), ("b", 2), ("a", 3), ("b", 4)]
    assert choose_changes({"none": ranks["none"], "a": ranks["none"]}, count=4) == []


def test_examples_are_read_with_what_evaluation_reads(monkeypatch, tmp_path):
    # A table of the split may have no pictures of modalities that are views of training alone.
    experiment = tiny.experiment(data__modalities=("image", "depth"), eval__final_splits=("test",))
    keys = []

    def rank(run, examples, own, *, workdir):
        keys.extend(example.keys() for example in examples)
        return rank_changes.RankedRun(np.ones(len(examples), int), np.zeros((len(examples), 1), int))

    monkeypatch.setattr(rank_changes, "_rank_run", rank)
    run = types.SimpleNamespace(seed=0, experiment=lambda: experiment)
    found = rank_changes.find_changes({"none": [run]}, workdir=tmp_path, count=1)
    assert found["images"] == len(keys) > 0
    assert all("image" in own and "depth" not in own for own in keys)
