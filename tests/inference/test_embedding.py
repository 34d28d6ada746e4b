"""Embeddings in a folder: those of ``mmjax.load``, whatever interrupts the work, and refused when damaged."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.inference.embedding import Embedding, embedding_table
from mmjax.inference.embedding_store import PLAN, StorePlan, open_store
from mmjax.inference.shards import ShardFolder
from support import models_in_use, pictures

COUNT, BROKEN = 21, 7
KINDS = ("images", "texts")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models_in_use.load(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A table of pictures with one or two captions each, of which one is broken."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(COUNT):
        content = pictures.encoded(pictures.photograph(33 + i, 48, seed=i))
        (root / f"{i:02}.jpg").write_bytes(b"no picture" if i == BROKEN else content)
        rows += [f"{i:02}.jpg,a {word}" for word in (("dog", "cat") if i % 3 == 0 else ("ring",))]
    (root / "t.csv").write_text("\n".join(["image,caption", *rows]))
    return {"name": "tables", "path": str(root / "t.csv")}


@pytest.fixture(scope="module")
def source(section):
    return open_source(section, split="train")


def make_plan(made_by, section, **changes):
    plan = StorePlan(
        model="m", weights=made_by.fingerprint(), precision="float32", dimension=16, kinds=KINDS, format="parquet",
        dtype="float32", examples=COUNT, shard_rows=8, batch_size=16, source=section, split="train", modality="image",
    )  # fmt: skip
    return dataclasses.replace(plan, **changes)


def write(folder, plan, model, source):
    """What ``mmjax embed`` does, in one process."""
    suffixes = (".parquet", ".npy") if plan.format == "npy" else (".parquet",)
    shards = ShardFolder(
        folder, plan_name=PLAN, plan=dataclasses.asdict(plan), informative=("model",), kinds=plan.kinds,
        suffixes=suffixes, shards=plan.shards,
    )  # fmt: skip
    embedding = Embedding(model, source, kinds=plan.kinds)
    with shards.locked():
        for number in shards.missing():
            shard = embedding.run(plan.range(number))
            files = {}
            for kind in plan.kinds:
                table, array = embedding_table(kind, shard, dtype=plan.dtype, with_embeddings=plan.format == "parquet")
                files |= {(kind, ".parquet"): table} | ({(kind, ".npy"): array} if plan.format == "npy" else {})
            shards.write(number, files)
    return shards


def test_no_room_is_asked_for_where_nobody_may_write(tmp_path):
    (tmp_path / "file").touch()
    shards = ShardFolder(tmp_path / "file" / "out", plan_name=PLAN, plan={}, kinds=("images",), shards=1)
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\); name a place"), shards.locked():
        pass


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, section, source):
    folder = tmp_path_factory.mktemp("whole") / "out"
    shards = write(folder, make_plan(model, section), model, source)
    assert [entry[:2] for entry in shards.unreadable()] == [[f"{BROKEN:02}.jpg", "corrupt image"]]
    return folder


@pytest.mark.parametrize(("format", "dtype"), [("parquet", "float32"), ("npy", "float32"), ("npy", "float16")])
def test_what_is_written_is_what_the_model_gives(tmp_path, model, section, source, format, dtype):
    write(tmp_path / "out", make_plan(model, section, format=format, dtype=dtype), model, source)
    examples = [source[i] for i in range(COUNT) if i != BROKEN]
    images, texts = open_store(tmp_path / "out"), open_store(tmp_path / "out", kind="texts")
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(images.embeddings, model.encode_image([e["image"] for e in examples]), atol=tolerance)
    captions = [caption for e in examples for caption in e["captions"]]
    np.testing.assert_allclose(texts.embeddings, model.encode_text(captions), atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(images.embeddings, axis=1), 1, atol=1e-6)
    assert images.embeddings.dtype == np.float32
    assert images.ids.tolist() == [e["id"] for e in examples] and images.paths == [e["key"] for e in examples]
    assert [images.captions(row) for row in range(len(images))] == [e["captions"] for e in examples]
    assert [texts.captions(row)[0] for row in range(len(texts))] == captions
    assert [source[i]["key"] for i in texts.indices.tolist()] == texts.paths
    assert images.read_picture(9) == examples[9]["image"]


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_an_interruption_at_any_file_changes_no_byte(tmp_path, model, section, source, format, monkeypatch):
    plan = make_plan(model, section, format=format)
    write(tmp_path / "whole", plan, model, source)
    expected, folder, replace = content(tmp_path / "whole"), tmp_path / "out", os.replace
    interruptions = 0
    while True:
        left = [3 if format == "parquet" else 5]  # files until it is killed: a shard and one more

        def killed(a, b, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(a, b)

        monkeypatch.setattr(os, "replace", killed)
        try:
            write(folder, plan, model, source)
            break
        except KeyboardInterrupt:
            interruptions += 1
            (folder / ".0.images-00000-of-00003.parquet.tmp").write_bytes(b"half")  # what SIGKILL leaves
    assert interruptions >= 2
    assert content(folder) == expected


def test_another_model_other_data_or_another_option_is_refused_by_name(tmp_path, whole, model, section, source):
    folder = shutil.copytree(whole, tmp_path / "out")
    before = content(folder)
    write(folder, make_plan(model, section, model="the same weights elsewhere"), model, source)
    assert content(folder) == before
    for changes, message in [
        (
            {"weights": "0" * 64, "model": "n"},
            r"was begun with weights=.* model='m', now it is weights='0000.* model='n'",
        ),
        ({"source": section | {"path": "other.csv"}}, r"source=.*other\.csv"),
        ({"dtype": "float16"}, "dtype='float32', now it is dtype='float16'"),
        ({"kinds": ("images",)}, "kinds="),
        ({"examples": 22}, "examples=21, now it is examples=22"),
    ]:
        with pytest.raises(ConfigError, match=f"^--output=.*{message}"):
            write(folder, make_plan(model, section, **changes), model, source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds other files, and no embeddings\.json"):
        write(tmp_path / "full", make_plan(model, section), model, source)
    assert content(folder) == before and (tmp_path / "full" / "thesis.tex").exists()


def test_only_one_process_of_a_number_writes(whole, model, section, source):
    shards = ShardFolder(
        whole, plan_name=PLAN, plan=dataclasses.asdict(make_plan(model, section)), kinds=KINDS, shards=3
    )
    with shards.locked():
        with pytest.raises(ConfigError, match="another process is writing it"), shards.locked():
            pass
        with shards.locked(1):
            pass


FIRST = "images-00000-of-00003.parquet"
VECTOR = pa.list_(pa.float32(), 16)


def change_plan(folder, **changes):
    plan = json.loads((folder / PLAN).read_text())
    (folder / PLAN).write_text(json.dumps(plan | changes))


def change_table(folder, change, **options):
    table = change(pq.read_table(folder / FIRST))
    pq.write_table(table, folder / FIRST, **({"compression": "none", "use_dictionary": False} | options))


def column(name, values, type=None):
    def change(table):
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values(table[name]), type))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / PLAN).unlink(), r"has no embeddings\.json"),
        (lambda f: (f / PLAN).write_text("{"), r"embeddings\.json cannot be read"),
        (lambda f: (f / PLAN).write_text("[]"), "it is not a JSON object"),
        (lambda f: change_plan(f, dimension=1 << 40), "dimension=1099511627776: must be from 1"),
        (lambda f: change_plan(f, dimension="16; rm"), r"embeddings\.json\.dimension"),
        (lambda f: change_plan(f, version=2), "version=2"),
        (lambda f: change_plan(f, format="pickle"), "format='pickle'"),
        (lambda f: change_plan(f, dimension=8), r"embeddings \[7, 16\], expected \[7, 8\]"),
        (lambda f: (f / FIRST).unlink(), "is missing; the same mmjax embed"),
        (lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:-9]), "is damaged"),
        (lambda f: (f / FIRST).write_bytes(b""), "is damaged"),
        (lambda f: ((f / FIRST).unlink(), os.mkfifo(f / FIRST)), "not a regular file"),
        (lambda f: shutil.copy(f / FIRST.replace("0-of", "1-of"), f / FIRST), "examples of another shard"),
        (lambda f: change_table(f, lambda t: t.take([1, 0, 2, 3, 4, 5, 6])), "examples out of order"),
        (lambda f: change_table(f, lambda t: t.drop_columns(["id"])), "is damaged"),
        (lambda f: change_table(f, column("id", lambda c: [*c.to_pylist()[:-1], None], pa.int64())), "column id"),
        (lambda f: change_table(f, column("key", lambda c: range(len(c)), pa.int64())), "column key is int64"),
        (lambda f: change_table(f, column("embedding", lambda c: [[9.0] * 16] * len(c), VECTOR)), "of length one"),
        (lambda f: change_table(f, column("embedding", lambda c: [[np.nan] * 16] * len(c), VECTOR)), "of length one"),
        (lambda f: change_table(f, lambda t: t, compression="zstd"), "compressed"),
        (lambda f: change_table(f, lambda t: t, use_dictionary=True), "compressed"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_folders_are_one_line(tmp_path, whole, damage, message):
    folder = shutil.copytree(whole, tmp_path / "out")
    damage(folder)
    with pytest.raises(ConfigError, match=message) as raised:
        open_store(folder)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"--in={folder}: ")


def test_an_array_that_executes_or_lies_is_refused(tmp_path, model, section, source):
    write(tmp_path / "out", make_plan(model, section, format="npy"), model, source)
    file = tmp_path / "out" / FIRST.replace("parquet", "npy")
    for array in (np.array([print] * 7, object), np.zeros((7, 16), np.float64), np.zeros((6, 16), np.float32)):
        np.save(file, array, allow_pickle=True)
        with pytest.raises(ConfigError, match="is damaged"):
            open_store(tmp_path / "out")


def test_pictures_that_are_gone_and_sources_that_are_code_are_not_read(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "out")
    for name, path in (("tables", str(tmp_path / "nowhere.csv")), ("antigravity.birds", "x")):
        change_plan(folder, source={"name": name, "path": path})
        with pytest.raises(Unreadable, match=r"00\.jpg: missing file"):
            open_store(folder).read_picture(0)
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,caption", *(f"x{i}.jpg,a" for i in range(COUNT))]))
    change_plan(folder, source={"name": "tables", "path": str(table)})
    with pytest.raises(Unreadable, match="00"):
        open_store(folder).read_picture(0)
