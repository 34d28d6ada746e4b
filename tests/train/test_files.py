"""Training from files: pictures in tar shards, some of them damaged, with transforms that mix rows."""

import json
from typing import Any

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.sample import DataError
from mmjax.runs import unreadable_examples
from mmjax.train import loop
from support import archives, tiny
from support.pictures import encoded, photograph

DAMAGED = (3, 20)
SEED = 1  # of an order whose first batch holds a damaged picture, so that nothing is compiled


def examples(count, *, damaged=()):
    made = []
    for i in range(count):
        picture = encoded(photograph(40, 48, seed=i))
        if i in damaged:
            picture = picture[: len(picture) // 2]
        made.append((f"{i:04d}", picture, [f"picture number {i}", f"the {i} of them"]))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    archives.write_webdataset(folder / "train", examples(64, damaged=DAMAGED), shards=2)
    archives.write_webdataset(folder / "val", examples(20, damaged=(7,)))
    return folder


def experiment(folder, **overrides):
    data: dict[str, Any] = {
        "source": {"name": "webdataset", "path": str(folder / "{split}" / "*.tar"), "caption_lines": True},
        "transforms": (("random_resized_crop", {"scale": (0.5, 1.0)}), ("flip", {}), ("mixgen", {})),
        "tokenizer": {"name": "word"},
        "max_unreadable": 1.0,
    }
    # The augmentation in the step sees the rows that the loader has mixed.
    data |= {key.removeprefix("data__"): overrides.pop(key) for key in list(overrides) if key.startswith("data__")}
    options = {"steps": 8, "data": data, "eval__final_splits": ("val",), "augment": (("mixup", {}),)}
    return tiny.experiment(**(options | overrides))


def test_a_run_skips_counts_and_lists_what_is_damaged(folder, tmp_path, capsys):
    outcome = loop.train(experiment(folder), workdir=tmp_path)
    assert outcome.finished and np.isfinite(outcome.metrics["val/rsum"])
    assert outcome.metrics["val/num_images"] == 19 and outcome.metrics["val/num_unreadable"] == 1
    listed = unreadable_examples.read(tmp_path)
    assert {entry["reason"] for entry in listed} == {"truncated image"}
    assert sorted(entry["key"][-4:] for entry in listed) == [f"{i:04d}" for i in DAMAGED]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    count = max(row.get("train/unreadable_examples", 0) for row in rows)
    assert 4 <= count <= 6  # two epochs of 64 in 8 steps of 16, and now and then a damaged one in a damaged one's place
    printed = capsys.readouterr().out
    assert f"unreadable: {count:.0f} truncated image" in printed and unreadable_examples.FILE in printed
    # With other numbers of threads and another limit it is the same experiment, which is finished.
    again = loop.train(experiment(folder, data__threads=3, data__max_unreadable=0.5), workdir=tmp_path)
    assert again.finished and "already finished" in capsys.readouterr().out


def test_too_much_damage_ends_it_before_it_trains_something_else(folder, tmp_path):
    with pytest.raises(DataError, match=r"could not be used \(\d truncated image\).*max_unreadable=0.0"):
        loop.train(experiment(folder, data__max_unreadable=0.0, seed=SEED), workdir=tmp_path)


def test_a_split_that_is_missing_is_found_before_the_first_step(folder, tmp_path):
    with pytest.raises(ConfigError, match="test"):
        loop.train(experiment(folder, eval__final_splits=("test",)), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()
