"""Labels of sequences from fields of examples to numbers in a batch."""

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.pipeline import Batches
from mmjax.data.sequences.labels import LabelSequences, split_labels
from mmjax.train.setup import _count_unlabeled

LABELS = LabelSequences(field="gloss", names=("rain", "wind", "north"), longest=3)


@pytest.mark.parametrize(
    ("value", "numbers", "problem"),
    [
        ("wind north", [1, 2, -1], None),
        (["rain", "rain", "wind"], [0, 0, 1], None),
        (np.array(["north"]), [2, -1, -1], None),
        ("  rain\n", [0, -1, -1], None),
        (b"wind north", [1, 2, -1], None),
        (np.array([b"north", b"wind"], object), [2, 1, -1], None),
        (7, [-1] * 3, "'7' is not in model.recognizer.labels"),
        ("rain SNOW wind", [-1] * 3, "'SNOW' is not in model.recognizer.labels"),
        ("rain wind rain wind", [-1] * 3, "4 labels are more than 3"),
        ("", [-1] * 3, "there are none"),
        (None, [-1] * 3, "there are none"),
        (float("nan"), [-1] * 3, "there are none"),
        ([], [-1] * 3, "there are none"),
    ],
)
def test_labels_become_numbers_or_are_none(value, numbers, problem):
    assert LABELS.numbers({"gloss": value}).tolist() == numbers
    assert (LABELS.problem({"gloss": value}) or "").startswith(problem or "")
    assert (LABELS.problem({"gloss": value}) is None) == (problem is None)


def test_labels_of_a_list_may_have_spaces():
    assert split_labels(["left of", "star"]) == ["left of", "star"]


class Told(source.Source):
    modalities = ("signs",)

    def __init__(self, field="gloss", glosses=("rain", "wind north", "snow", "", "north north", "wind")):
        self.field, self.glosses = field, glosses

    def __len__(self):
        return len(self.glosses)

    def __getitem__(self, index):
        gloss = self.glosses[index]
        return {"id": 100 + index, "captions": ["a"], "signs": np.ones((2, 3), np.float32), self.field: gloss}


def batches(source, **options):
    tokens = lambda texts: np.zeros((len(texts), 2), np.int32)  # noqa: E731
    return Batches(source, tokens, batch_size=6, seed=0, labels=LABELS, **options)


def test_a_batch_has_the_labels_of_its_images_on_every_process():
    whole = batches(Told())[3]
    expected = {100: [0], 101: [1, 2], 102: [], 103: [], 104: [2, 2], 105: [1]}
    for id, row in zip(whole["image_ids"][:, 0].tolist(), whole["labels"].tolist(), strict=True):
        assert row == expected[id] + [-1] * (3 - len(expected[id]))
    assert whole["labels"].dtype == np.int32
    halves = [batches(Told(), process_index=i, process_count=2)[3]["labels"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole["labels"])
    plain = Batches(Told(), lambda texts: np.zeros((len(texts), 2), np.int32), batch_size=6, seed=0)
    assert "labels" not in plain[3]


def test_a_field_that_examples_lack_is_named():
    with pytest.raises(ConfigError, match=r"labels='gloss': the source's examples have no field 'gloss'; they have"):
        batches(Told(field="signs_of"))


def test_the_start_of_a_run_says_how_many_examples_have_no_labels():
    assert _count_unlabeled(Told(), LABELS) == (
        "data.labels='gloss': 2 of the first 6 examples have no labels to learn, and add no CTC loss; of the first of "
        "them: 'snow' is not in model.recognizer.labels"
    )
    assert _count_unlabeled(Told(glosses=("rain",)), LABELS) is None
    with pytest.raises(ConfigError, match=r"2 of the first 2 .*\('snow' is not in .*\); name another field"):
        _count_unlabeled(Told(glosses=("snow", "")), LABELS)
