"""Errors of recognized labels: edits against their definition, and the evaluator on known answers."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.sample import Unreadable
from mmjax.evals.labels.edit_distance import count_edits
from mmjax.evals.labels.reader import LabelReader
from mmjax.evals.sequence_labels import Evaluator, score_labels

sequences = st.lists(st.sampled_from("abc"), max_size=7)


def all_edits(reference, hypothesis):
    """(edits, substitutions) of every way to make one of the other without detours, by its definition."""

    @functools.cache
    def ways(i, j):
        if i == len(reference) or j == len(hypothesis):
            return {(len(reference) - i + len(hypothesis) - j, 0)}
        same = reference[i] == hypothesis[j]
        found = {(e + (not same), s + (not same)) for e, s in ways(i + 1, j + 1)}
        for a, b in ((i + 1, j), (i, j + 1)):
            found |= {(e + 1, s) for e, s in ways(a, b)}
        return found

    return ways(0, 0)


@given(sequences, sequences)
def test_edits_are_the_fewest_and_of_those_have_the_most_substitutions(reference, hypothesis):
    edits = count_edits(reference, hypothesis)
    fewest = min(e for e, _ in all_edits(reference, hypothesis))
    assert sum(edits) == fewest
    assert edits.substitutions == max(s for e, s in all_edits(reference, hypothesis) if e == fewest)
    assert min(edits) >= 0
    assert edits.insertions - edits.deletions == len(hypothesis) - len(reference)


@given(sequences, sequences, sequences)
def test_the_number_of_edits_is_a_metric(a, b, c):
    distance = lambda x, y: sum(count_edits(x, y))  # noqa: E731
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def by_table(reference, hypothesis):
    """The whole table of Wagner & Fischer (1974), cell by cell."""
    table = np.zeros((len(reference) + 1, len(hypothesis) + 1), int)
    table[:, 0], table[0] = range(len(reference) + 1), range(len(hypothesis) + 1)
    for i, j in itertools.product(range(len(reference)), range(len(hypothesis))):
        change = table[i, j] + (reference[i] != hypothesis[j])
        table[i + 1, j + 1] = min(change, table[i, j + 1] + 1, table[i + 1, j] + 1)
    return table[-1, -1]


def test_long_sequences_and_published_examples():
    for a, b, edits in (("kitten", "sitting", 3), ("intention", "execution", 5), ("saturday", "sunday", 3)):
        assert sum(count_edits(a, b)) == by_table(a, b) == edits
    random = np.random.default_rng(0)
    for size in ((60, 40), (1, 30), (25, 0)):
        a, b = (random.integers(0, 5, n).tolist() for n in size)
        assert sum(count_edits(a, b)) == by_table(a, b)


def test_rates_are_over_all_true_labels_and_may_exceed_one():
    score = score_labels([["a"], ["b", "c", "d"]], [["a"], ["b", "x"]])
    assert score == {
        "label_error_rate": 0.5, "substitutions": 0.25, "deletions": 0.25, "insertions": 0.0, "sequence_accuracy": 0.5,
    }  # fmt: skip
    assert score_labels([["a"]], [["b", "c", "d"]])["label_error_rate"] == 3


class Recognized:
    """An embedder whose model recognizes what stands in the examples."""

    def __init__(self, items, field="gloss"):
        self.items, self.label_reader = items, LabelReader(lambda params, images: images, (), field)

    unreadable = (Unreadable("missing file", "on purpose"),)

    def read(self, examples, *, key):
        return self

    def labels(self, examples, *, key):
        return [item["read"].split() for item in self.items]


class Examples(source.Source):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"id": 0, "captions": ["a"]}


def test_the_evaluator_leaves_out_unlabeled_examples_and_compares_with_the_next_labeled_one():
    evaluator = Evaluator(lambda split: Examples())
    items = [
        {"gloss": "red ring", "read": "red ring"}, {"gloss": "", "read": "blue"}, {"read": "blue"},
        {"gloss": ["blue", "star"], "read": "blue ring"},
    ]  # fmt: skip
    metrics = evaluator(Recognized(items))
    assert metrics["label_error_rate"] == 0.25
    assert metrics["sequence_accuracy"] == 0.5
    assert metrics["label_error_rate_other_example"] == 0.75  # red ring for blue star, and blue ring for red ring
    assert metrics["unlabeled"] == 0.5 and metrics["num_examples"] == 2 and metrics["num_unreadable"] == 1
    with pytest.raises(ConfigError, match=r"labels='gloss': no example has labels there"):
        evaluator(Recognized([{"read": "blue"}]))


def test_the_field_is_that_of_training_unless_another_is_named():
    items = [{"gloss": "blue", "signs": "red", "read": "red"}]
    by_field = {}
    for field, option in (("signs", None), ("gloss", None), ("signs", "gloss")):
        measured = Evaluator(lambda split: Examples(), labels=option)(Recognized(items, field))
        by_field[field, option] = measured["label_error_rate"]
    assert by_field == {("signs", None): 0, ("gloss", None): 1, ("signs", "gloss"): 1}


def test_numbers_become_names():
    reader = LabelReader(lambda params, images: images, ("a", "b"), "gloss")
    assert reader.decode(np.array([[1, 0, -1], [-1, -1, -1]])) == [["b", "a"], []]
