import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.negatives.config import NegativesTable, PositivesTable
from mmjax.data.negatives.table import WithNegatives, WithPositives
from mmjax.data.reader import sample_without_replacement
from mmjax.experiment import Experiment
from mmjax.train.data import open_split
from support.archives import write_tar
from support.pictures import encoded, photograph

ROWS = [
    {"key": "b", "kind": "replace_color", "caption": "a red cat", "negative": "a blue cat", "valid": True},
    {"key": "a", "kind": "swap_noun", "caption": "", "negative": "a hat in a cat", "valid": True},
    {"key": "b", "kind": "swap_noun", "caption": "a red cat", "negative": "a cat red", "valid": False},
    {"key": "b", "kind": "", "caption": "a red cat", "negative": "a red dog", "valid": None},
    {"key": "of other data", "kind": "", "caption": "", "negative": "a dog", "valid": None},
    {"key": "a", "kind": "", "caption": "x", "negative": "", "valid": None},
]
EXPECTED = [
    [("swap_noun", "a cat in a hat", "a hat in a cat")],
    [("replace_color", "a red cat", "a blue cat"), ("given", "a red cat", "a red dog")],
    [],
]


class Source(source.Source):
    """Three examples; the second one has negatives of its own."""

    def __init__(self, keys=("a", "b", "c"), listed=True):
        self.keys, self.listed = list(keys), listed

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        captions = [["a cat in a hat"], ["a red cat", "it"], ["a tree"]][index]
        own = {"negatives": [("own", "x", "y")]} if index == 1 else {}
        return {"id": index, "key": self.keys[index], "captions": captions, **own}

    def column(self, name):
        if not self.listed:
            return super().column(name)
        return np.array(self.keys if name == "key" else range(len(self.keys)), object)


def write(path, rows=ROWS):
    ending = path.suffix
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "," if ending == ".csv" else "\t"
        lines = [list(rows[0]), *(["" if v is None else str(v) for v in row.values()] for row in rows)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "tsv"])
def test_rows_are_joined_by_key(tmp_path, ending):
    view = WithNegatives(Source(), NegativesTable(path=write(tmp_path / f"n.{ending}")))
    for one in (view, pickle.loads(pickle.dumps(view))):
        assert [example["negatives"] for example in one] == EXPECTED
    assert view[1]["captions"] == ["a red cat", "it"]
    assert view.describe().endswith("for 2 of 3 examples; 1 have none, such as c")


def test_kinds_are_chosen_and_lists_and_ids_are_taken(tmp_path):
    path = write(tmp_path / "n.jsonl")
    view = WithNegatives(Source(), NegativesTable(path=path, kinds=("replace_color",)))
    assert [len(example["negatives"]) for example in view] == [0, 1, 0]
    assert len(WithNegatives(Source(), NegativesTable(path=path, kinds=("given",)))[1]["negatives"]) == 1
    with pytest.raises(ConfigError, match=r"^negatives.kinds='replace_colour': no such name; .*'replace_color'"):
        WithNegatives(Source(), NegativesTable(path=path, kinds=("swap_noun", "replace_colour")))
    path = write(tmp_path / "m.parquet", [{"id": 2, "negative": ["a bush", None, "a pole"]}])
    view = WithNegatives(Source(), NegativesTable(path=path))
    assert view[2]["negatives"] == [("given", "a tree", "a bush"), ("given", "a tree", "a pole")]


def test_a_source_without_a_list_of_keys_says_so(tmp_path):
    view = WithNegatives(Source(listed=False), NegativesTable(path=write(tmp_path / "n.csv")))
    assert view[0]["negatives"] == EXPECTED[0]
    assert "does not list its keys" in view.describe()


def test_keys_are_as_files_spell_them(tmp_path):
    rows = [{"key": "x\\udcff.jpg", "negative": "a dog"}, {"key": "a  b", "negative": "a pig"}]
    view = WithNegatives(Source(["x\udcff.jpg", "a  b", "c"]), NegativesTable(path=write(tmp_path / "n.jsonl", rows)))
    assert [len(example["negatives"]) for example in view] == [1, 1, 0]
    assert "1 have none, such as c" in view.describe()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", "x", "not a table"),
        ("n.csv", "key,text\na,b\n", r"line 2: has no 'negative'; its fields are key, text"),
        ("n.csv", "file,negative\na,b\n", r"line 2: has no 'key'"),
        ("n.jsonl", '{"key": "a", "negative": {"x": 1}}\n', "line 1: expected a text, found dict"),
        ("n.jsonl", '{"key": "a"', "line 1 is not a JSON object"),
        ("n.parquet", "PAR1 no", "cannot be read"),
        ("n.csv", "key,negative\n", "holds no negatives"),
        ("n.csv", "key,negative\nz,a dog\n", "names none of the 3 examples, such as 'a'"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"^negatives.path='.*{name}': {message}") as error:
        WithNegatives(Source(), NegativesTable(path=str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_a_truncated_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "n.parquet"
    write(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        WithNegatives(Source(), NegativesTable(path=str(path)))


def experiment(data):
    return Experiment.from_dict({"steps": 1, "batch_size": 2, "model": "ViT-B-32", "data": data})


def test_every_source_takes_a_table(tmp_path):
    picture = encoded(photograph(8, 8))
    tar, folder, captions = tmp_path / "a.tar", tmp_path / "pairs", tmp_path / "captions.json"
    write_tar(tar, [(f"{i}.{ending}", data) for i in "ab" for ending, data in (("jpg", picture), ("txt", b"a cat"))])
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.jpg").write_bytes(picture)
        (folder / f"{name}.txt").write_text(f"a {name}")
    images = [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("ab")]
    annotations = [{"image_id": i, "id": i, "caption": f"a {i}"} for i in range(2)]
    captions.write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "table.csv").write_text("filepath,title\npairs/a.jpg,a cat\npairs/b.jpg,a dog\n")
    folders = {"name": "folders", "path": str(folder)}
    sections = {
        "webdataset": {"name": "webdataset", "path": str(tar)},
        "folders": folders,
        "captions": {"name": "captions", "path": str(captions), "image_root": str(folder)},
        "tables": {"name": "auto", "path": str(tmp_path / "table.csv")},
        "scenes": {"name": "scenes", "size": 4},
        "mix": {"name": "mix", "sources": [{**folders, "title": "x"}, {**folders, "title": "y"}]},
    }
    for name, section in sections.items():
        bare = open_split(experiment({"source": section}), "train")
        key = str(bare[1].get("key", bare[1]["id"]))
        path = write(tmp_path / f"{name}.jsonl", [{"key": key, "negative": "a false one"}])
        joined = open_split(experiment({"source": section, "negatives": {"path": path}}), "train")
        assert joined[1]["negatives"] == [("given", bare[1]["captions"][0], "a false one")]
        assert joined[0]["negatives"] == []
        assert joined[1].keys() == bare[1].keys() | {"negatives"} and len(joined) == len(bare)
        assert joined.describe().endswith(f"for 1 of {len(bare)} examples; {len(bare) - 1} have none, such as "
                                          f"{bare[0].get('key', bare[0]['id'])}")  # fmt: skip
        other = write(tmp_path / f"{name}_other.jsonl", [{"key": "of other data", "negative": "a false one"}])
        with pytest.raises(ConfigError, match=r"^data\.negatives\.path=.*names none of the"):
            open_split(experiment({"source": section, "negatives": {"path": other}}), "train")
    with pytest.raises(ConfigError, match=r"^data\.negatives\.path='none\.csv': cannot be read"):
        open_split(experiment({"source": sections["scenes"], "negatives": {"path": "none.csv"}}), "train")


def test_a_split_has_its_own_table_or_none(tmp_path):
    scenes = {"name": "scenes"}
    one = open_split(experiment({"source": scenes}), "test")
    path = write(tmp_path / "test.jsonl", [{"key": str(one[0].get("key", one[0]["id"])), "negative": "a false one"}])
    for name, negatives in ((path, one[0]["negatives"]), (str(tmp_path / "{split}.jsonl"), None)):
        joined = open_split(experiment({"source": scenes, "negatives": {"path": name}}), "test")
        expected = [("given", one[0]["captions"][0], "a false one")] if negatives is None else negatives
        assert joined[0]["negatives"] == expected


def test_positives_stand_behind_the_captions_and_none_comes_twice(tmp_path):
    rows = [
        {"key": "b", "positive": ["a cat that is red", "it", ""]},
        {"key": "a", "positive": "a hatted cat"},
        {"key": "c", "positive": "a bush", "valid": False},
    ]
    view = WithPositives(Source(), PositivesTable(path=write(tmp_path / "p.jsonl", rows)))
    assert [example["captions"] for example in pickle.loads(pickle.dumps(view))] == [
        ["a cat in a hat", "a hatted cat"], ["a red cat", "it", "a cat that is red"], ["a tree"],
    ]  # fmt: skip
    assert view[1]["negatives"] == [("own", "x", "y")] and "positives" in view.describe()
    with pytest.raises(ConfigError, match=r"^positives.path=.*holds no positives; check"):
        WithPositives(Source(), PositivesTable(path=write(tmp_path / "q.jsonl", rows[2:])))


def test_positives_weigh_as_much_as_an_example_s_own_captions_on_average(tmp_path):
    class Weighted(Source):
        def __getitem__(self, index):
            weights = {1: {"caption_weights": [3.0, 1.0]}, 2: {"captions": ["x", "x"], "caption_weights": [1.0, 2.0]}}
            return super().__getitem__(index) | weights.get(index, {})

    rows = [{"key": "b", "positive": ["a cat that is red", "it"]}]
    view = WithPositives(Weighted(), PositivesTable(path=write(tmp_path / "p.jsonl", rows)))
    assert view[1]["captions"] == ["a red cat", "it", "a cat that is red"]
    assert view[1]["caption_weights"] == [3.0, 1.0, 2.0] and "caption_weights" not in view[0]
    assert (view[2]["captions"], view[2]["caption_weights"]) == (["x"], [3.0])
    draws = [sample_without_replacement(view[1]["captions"], [u], view[1]["caption_weights"])[0]
             for u in np.linspace(0, 0.999, 600)]  # fmt: skip
    assert [round(draws.count(text) / 100) for text in view[1]["captions"]] == [3, 1, 2]


def test_positives_are_of_the_training_split_alone(tmp_path):
    first = open_split(experiment({"source": {"name": "scenes"}}), "train")[0]
    path = write(tmp_path / "p.csv", [{"key": str(first.get("key", first["id"])), "positive": "one more"}])
    data = {"source": {"name": "scenes"}, "positives": {"path": path}}
    assert open_split(experiment(data), "train")[0]["captions"] == [*first["captions"], "one more"]
    assert "one more" not in open_split(experiment(data), "val")[0]["captions"]
