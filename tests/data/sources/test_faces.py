"""FairFace's tables and UTKFace's file names as published, up to the numbers of the fairness evaluator."""

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from mmjax.data.sources.faces import Source
from mmjax.evals.common.suite import find_data_sets, make_evaluator
from support import benchmarks
from support.benchmarks import WIDTH, Planted

AXES = np.eye(WIDTH)
FAIRFACE = """file,age,gender,race,service_test
val/1.jpg,3-9,Male,East Asian,False
val/2.jpg,50-59,Female,East Asian,True
val/3.jpg,30-39,Male,White,True
val/4.jpg,more than 70,Female,White,False
"""
UTKFACE = (
    "100_1_0_20170112213001988.jpg", "26_0_2_20170104023102422.jpg.chip.jpg", "1_0_4_20161219140623097.jpg.chip.jpg",
    "70_1_1_20170112213001989.jpg",
)  # fmt: skip


def fairface(folder, table=FAIRFACE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fairface_label_val.csv").write_text(table)
    for level in range(1, 5):
        benchmarks.gray(folder / "val" / f"{level}.jpg", level)
    return {"name": "faces", "path": str(folder)}


def utkface(folder, *more):
    for level, name in enumerate((*UTKFACE, *more), 1):
        benchmarks.gray(folder / f"part{level % 2}" / name, level)
    return {"name": "faces", "path": str(folder)}


def test_fairface_has_its_attributes_and_one_of_them_as_class(tmp_path):
    section = fairface(tmp_path)
    source = open_source({**section, "label": "race"}, split="val")
    example = source[1]
    assert {name: example[name] for name in ("key", "gender", "race", "age", "label", "captions")} == {
        "key": "val/2.jpg", "gender": "Female", "race": "East Asian", "age": "50-59", "label": 0,
        "captions": ["a photo of a East Asian person."],
    }  # fmt: skip
    assert len(source) == 4 and len(source.class_names) == 7 and source.class_names[5] == "Latino Hispanic person"
    assert not source.ignores_split
    for label, wanted in (("gender", [0, 1, 0, 1]), ("age", [1, 6, 4, 8])):
        source = open_source({**section, "label": label}, split="val")
        assert source.column("label").tolist() == wanted == [source[i]["label"] for i in range(4)]
    assert source.class_names[1] == "person aged 3-9"


def test_utkface_is_its_file_names_and_those_that_lack_a_part_are_listed(tmp_path):
    source = open_source(utkface(tmp_path, "39_1_20170116174525125.jpg.chip.jpg"), split="test")
    faces = {example["key"].partition("/")[2]: example for example in source}
    assert set(faces) == set(UTKFACE) and source.ignores_split
    described = {name: (face["gender"], face["race"], face["age"]) for name, face in faces.items()}
    assert list(map(described.get, UTKFACE)) == [
        ("Female", "White", "more than 70"), ("Male", "Asian", "20-29"), ("Male", "Others", "0-2"),
        ("Female", "Black", "more than 70"),
    ]  # fmt: skip
    ((key, reason, detail),) = source.unreadable
    assert key == "part1/39_1_20170116174525125.jpg.chip.jpg" and reason == "bad row" and "AGE_GENDER_RACE" in detail
    assert {face["captions"][0] for face in faces.values()} == {"a photo of a man.", "a photo of a woman."}


def test_from_the_files_to_the_numbers_of_the_suite(tmp_path):
    """The women of FairFace are recognized if they are White; nobody else is missed."""
    fairface(tmp_path / "fairface")
    utkface(tmp_path / "UTKFace")
    data_sets = find_data_sets(["fairness"], tmp_path, {})
    assert [data_set.name for data_set in data_sets] == [
        "UTKFace/gender", "UTKFace/race", "fairface/gender", "fairface/race"
    ]  # fmt: skip
    texts = {"a photo of a man.": AXES[0], "a photo of a woman.": AXES[1]}
    planted = Planted({1: AXES[0], 2: AXES[0], 3: AXES[0], 4: AXES[1]}, texts)
    metrics = make_evaluator(data_sets[2], benchmarks.open_source)(planted.bind())
    assert metrics["recall@1_White"] == 1 and metrics["recall@1_East_Asian"] == 0.5 == metrics["recall@1_gap"]
    assert metrics["equalized_odds_gap"] == 1 and metrics["num_groups"] == 2 and metrics["num_unknown"] == 0


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"path": "{folder}/none"}, "val", r"path='.*none': no such folder; name that of FairFace or UTKFace"),
        ({"path": "{folder}/val"}, "val", "has neither fairface_label_val.csv nor pictures named AGE_GENDER_RACE"),
        ({}, "test", r"split='test': path='.*' has no fairface_label_test\.csv; there are val"),
        ({"label": "name"}, "val", "label='name'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, options, split, message):
    section = fairface(tmp_path) | options
    section["path"] = section["path"].format(folder=tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_source(section, split=split)


def test_a_damaged_table_is_an_error_and_an_unknown_value_a_bad_row(tmp_path):
    path = fairface(tmp_path, FAIRFACE.replace("30-39", "31-39"))["path"]
    source = Source("val", path=path)
    assert len(source) == 3 and source.unreadable == [("val/3.jpg", "bad row", "line 4: Male, White, 31-39")]
    fairface(tmp_path, FAIRFACE.replace("race", "people"))
    with pytest.raises(ConfigError, match=r"fairface_label_val\.csv': line 2: has no 'race'"):
        Source("val", path=path)
