"""``mmjax score``: cosines by example, and a training run on the best of them."""

import json
import signal
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import mmjax
from mmjax import cli
from mmjax.data.open_source import open_source
from mmjax.experiment import Experiment
from mmjax.inference.embedding import Embedding
from mmjax.inference.scoring import format_table, mark_kept, read_table, score_table
from mmjax.train.loop import train
from support import command, models_in_use, pictures, tiny

COUNT, BROKEN = 18, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures with one or two captions each; one is broken."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(COUNT):
        content = pictures.encoded(pictures.photograph(40, 32 + 3 * i, seed=i))
        (root / f"{i:02}.jpg").write_bytes(b"no picture" if i == BROKEN else content)
        rows += [f"{i:02}.jpg,{text}" for text in (("a dog", "a red circle") if i % 2 else ("a blue square",))]
    (root / "t.csv").write_text("\n".join(["image,caption", *rows]))
    return root / "t.csv"


@pytest.fixture(scope="module")
def cosines(model, table):
    """{key: cosines of its captions}, from ``mmjax.load``."""
    loaded, result = mmjax.load(model, batch_size=8), {}
    for example in (source := open_source({"name": "tables", "path": str(table)}, split="train")):
        if example["key"] != f"{BROKEN:02}.jpg":
            result[example["key"]] = loaded.similarity([example["image"]], example["captions"])[0]
    assert len(source) == COUNT
    return result


def flags(model, table, out, *more):
    return [
        "score",
        f"--model={model}",
        f"--path={table}",
        f"--output={out}",
        "--batch-size=8",
        "--max-unreadable=1",
        *more,
    ]


def test_files_hold_the_cosines_by_key(tmp_path, model, table, cosines, capsys):
    assert cli.main(flags(model, table, tmp_path / "s.parquet", "--shard-rows=7")) == 0
    assert "score of 17 examples; 1 unreadable (corrupt image 1)" in capsys.readouterr().out
    scored = pq.read_table(tmp_path / "s.parquet").to_pydict()
    assert scored["key"] == list(cosines) and scored["id"] == [i for i in range(COUNT) if i != BROKEN]
    np.testing.assert_allclose(scored["score"], [each.max() for each in cosines.values()], atol=1e-6)
    assert json.loads((tmp_path / "s.parquet.unreadable.jsonl").read_text())["key"] == f"{BROKEN:02}.jpg"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "s.parquet", "s.parquet.json", "s.parquet.unreadable.jsonl",
    ]  # fmt: skip

    assert cli.main(flags(model, table, tmp_path / "each.csv", "--reduce=each", "--shard-rows=7")) == 0
    each = pyarrow.csv.read_csv(tmp_path / "each.csv").to_pydict()
    for row, expected in enumerate(cosines.values()):
        np.testing.assert_allclose([each["score_0"][row], each["score_1"][row] or 0], [*expected, 0][:2], atol=1e-6)
    best = np.nanmax(np.array([each["score_0"], each["score_1"]], float), axis=0)
    np.testing.assert_array_equal(best.astype(np.float32), np.float32(scored["score"]))


def test_a_file_that_is_there_is_kept_and_another_is_not_overwritten(tmp_path, model, table, capsys):
    out = tmp_path / "s.jsonl"
    assert cli.main(flags(model, table, out, "--reduce=mean")) == 0
    before = out.read_bytes()
    assert cli.main(flags(model, table, out, "--reduce=mean")) == 0 and out.read_bytes() == before
    capsys.readouterr()
    assert cli.main(flags(model, table, out)) == 2
    assert "was begun with reduce='mean', now it is reduce='max'" in capsys.readouterr().err
    (tmp_path / "s.jsonl.json").unlink()
    assert cli.main(flags(model, table, out)) == 2
    assert "is there already, without a s.jsonl.json" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert cli.main(flags(model, table, tmp_path / "s.txt")) == 2
    assert "expected a file that ends in" in capsys.readouterr().err


def test_the_kept_are_marked_and_another_fraction_scores_nothing_again(tmp_path, model, table, capsys, monkeypatch):
    out = tmp_path / "s.csv"
    assert cli.main(flags(model, table, out, "--keep=0.3")) == 0
    assert "5 of them kept, from" in capsys.readouterr().out
    marked = pyarrow.csv.read_csv(out).to_pydict()
    ranked = np.argsort(-np.array(marked["score"]))
    assert sum(marked["keep"]) == 5 == int(0.3 * 17) and np.array(marked["keep"])[ranked[:5]].all()
    section = {"name": "tables", "path": str(table), "selection": {"scores": str(out), "score": "keep", "minimum": 1}}
    assert len(open_source(section, split="train")) == 5
    monkeypatch.setattr("mmjax.inference.embedding.Embedding.run", None)
    assert cli.main(flags(model, table, out, "--keep=0.3", "--compat=datacomp", "--json")) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"]["kept"] == 6
    again = pyarrow.csv.read_csv(out).to_pydict()
    assert sum(again["keep"]) == 6 and again["score"] == marked["score"] and again["key"] == marked["key"]
    assert cli.main(flags(model, table, out)) == 0 and "keep" not in pyarrow.csv.read_csv(out).column_names


def test_a_field_of_synthetic_captions_is_scored_for_the_policies(tmp_path, model, table, cosines):
    own = table.with_name("with_field.csv")
    lines = [f"{i:02}.jpg,a dog,{'' if i % 3 else 'a red circle'}" for i in range(COUNT) if i != BROKEN]
    own.write_text("\n".join(["image,caption,blip", *lines]))
    raw, synthetic = tmp_path / "raw.csv", tmp_path / "synthetic.parquet"
    assert cli.main(flags(model, own, raw)) == 0
    assert cli.main(flags(model, own, synthetic, "--field=blip", "--option=columns=blip", "--keep=0.5")) == 0
    scored = pq.read_table(synthetic).to_pydict()
    assert [score is None for score in scored["blip_score"]] == [bool(int(key[:2]) % 3) for key in scored["key"]]
    by_key = dict(zip(scored["key"], scored["blip_score"], strict=True))
    np.testing.assert_allclose(by_key["03.jpg"], cosines["03.jpg"][1], atol=1e-6)  # of the same text
    assert sum(scored["keep"]) == 3  # of six
    section = {"name": "tables", "path": str(own), "columns": ("blip",)}
    policy = {"captions": "filtered", "synthetic": "blip", "synthetic_score": "blip_score", "top": 0.5}
    source = open_source(section | {"selection": policy | {"scores": f"{raw}::{synthetic}"}}, split="train")
    captions = {example["key"]: example["captions"] for example in source}
    best = pyarrow.csv.read_csv(raw).to_pydict()
    least = sorted(best["score"])[-8]  # of 17
    wanted = {key: ["a dog"] for key, score in zip(best["key"], best["score"], strict=True) if score >= least}
    wanted |= {k: ["a red circle"] for k, score in by_key.items() if k not in wanted and score and score >= least}
    assert captions == wanted


def test_a_field_that_is_not_there_is_named(tmp_path, model, table, capsys):
    assert cli.main(flags(model, table, tmp_path / "s.csv", "--field=blip")) == 2
    assert "--field=blip: the first example has no such field; it has" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_tables_are_read_back_as_they_were(ending):
    scores = pa.array([0.1, None, 0.1, -0.25], pa.float32())
    table = pa.table({"id": pa.array(range(4), pa.int64()), "key": ["1", "", "007", 'a,"b"'], "score": scores})
    assert read_table(format_table(table, ending), ending).equals(table)
    marked, summary = mark_kept(table, top=0.4)
    assert marked["keep"].to_pylist() == [0, 0, 1, 0] and summary == {
        "kept": 1,
        "threshold": np.float32(0.1),
    }  # 007 < 1
    assert mark_kept(table, minimum=-0.25)[0]["keep"].to_pylist() == [1, 0, 1, 1]
    assert mark_kept(table, minimum=0.0)[0]["keep"].to_pylist() == [1, 0, 1, 0]
    assert mark_kept(table, top=0)[1] == {"kept": 0, "threshold": None}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--keep=1.5",), "--keep=1.5"),
        (("--keep=0.3", "--minimum=0.2"), "--minimum=0.2: --keep=0.3 decides the same"),
        (("--compat=datacomp",), "--compat=datacomp: says how many --keep keeps"),
        (("--keep=0.3", "--reduce=each"), "--reduce=each"),
    ],
)
def test_what_marks_nothing_is_an_error(tmp_path, model, table, more, problem, capsys):
    assert cli.main(flags(model, table, tmp_path / "s.csv", *more)) == 2
    assert problem in capsys.readouterr().err


def test_one_device_gives_the_numbers_of_eight(model, table):
    source = open_source({"name": "tables", "path": str(table)}, split="train")
    lists = []
    for devices in (jax.devices(), jax.devices()[:1]):
        loaded = mmjax.load(model, batch_size=8, devices=devices)
        shard = Embedding(loaded, source, kinds=("images", "texts")).run(range(3, 16))  # no multiple of a batch
        lists.append(score_table(shard)["scores"].to_pylist())
    assert [len(scores) for scores in lists[0]] == [1 + i % 2 for i in range(3, 16) if i != BROKEN]
    many, one = (np.concatenate(scores) for scores in lists)
    np.testing.assert_allclose(many, one, atol=1e-5)
    assert (np.abs(many) <= 1 + 1e-6).all()


@pytest.mark.slow
def test_a_run_trains_on_the_best_of_what_was_scored(tmp_path, model, table, cosines, capsys):
    file = tmp_path / "scores.csv"
    assert cli.main(flags(model, table, file)) == 0
    section = {"name": "tables", "path": str(table), "selection": {"scores": str(file), "top": 0.5}}
    best = sorted(cosines, key=lambda key: -cosines[key].max())[:8]  # of the 17 that have a score
    assert {example["key"] for example in open_source(section, split="train")} == set(best)
    sections = tiny.sections(steps=1, batch_size=8, eval__tasks=(), eval__final_tasks=(), eval__final_splits=("val",))
    sections["data"] |= {"source": section, "train": {}, "evaluation": {"path": str(table)}}
    train(Experiment.from_dict(sections), workdir=tmp_path / "run")
    output = capsys.readouterr().out
    assert "8 of 18 examples selected" in output and f"1 have no 'score', such as {BROKEN:02}.jpg" in output


@pytest.mark.slow
def test_a_kill_changes_no_byte(tmp_path, model, table):
    more = ("--shard-rows=2",)
    command.run(*flags(model, table, tmp_path / "whole.parquet", *more))
    killed = tmp_path / "killed.parquet"
    process = command.start(*flags(model, table, killed, *more))
    shards = tmp_path / ".killed.parquet.shards"
    while process.poll() is None and not (shards / "scores-00001-of-00009.parquet").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    command.run(*flags(model, table, killed, *more))
    assert killed.read_bytes() == (tmp_path / "whole.parquet").read_bytes() and not shards.exists()
