import csv
import json
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.cli import main
from mmjax.data.negatives import generate, swaps
from mmjax.data.negatives.rules import word_list

COUNT = 5200
SUBJECTS = ("man", "woman", "tired horse", "child", "dog")
COLORS = ("red", "blue", "green", "black", "purple")
THINGS = ("bench", "kite", "bus", "wooden table", "plastic chair", "hundred-year-old tree")
ACTIONS = ("riding", "holding", "sitting on", "looking up at", "washing")


def caption(number, random):
    subject, color, thing, action = (pool[random.integers(len(pool))] for pool in (SUBJECTS, COLORS, THINGS, ACTIONS))
    return f"A {subject} is {action} a {color} {thing} on street {number % 97}."


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A caption file in COCO's format with more than 5,000 captions; its pictures are none."""
    folder, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(COUNT // 2)]
    for image in images:
        (folder / image["file_name"]).write_bytes(b"x")
    annotations = [{"id": i, "image_id": i // 2, "caption": caption(i, random)} for i in range(COUNT)]
    annotations[2]["caption"] = annotations[3]["caption"]  # the same twice
    for name, count in (("captions", COUNT), ("few", 600)):
        content = {"images": images[: count // 2], "annotations": annotations[:count]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def arguments(coco, output, *flags, name="captions"):
    return [
        *("data", "negatives", "--source=captions", f"--path={coco}/{name}.json", f"--option=image_root={coco}"),
        *("--method=rules", f"--output={output}", *flags),
    ]


@pytest.fixture(scope="module")
def table(coco):
    assert main(arguments(coco, coco / "whole.parquet")) == 0
    return coco / "whole.parquet"


def test_one_word_of_each_caption_is_changed(coco, table, capsys):
    rows = pq.read_table(table).to_pylist()
    assert len(rows) > COUNT and all(row["valid"] and row["method"] == "rules" for row in rows)
    assert len({(row["key"], row["negative"]) for row in rows}) == len(rows)
    for row in rows:
        kind = row["kind"].removeprefix("replace_")
        assert row["negative"] != row["caption"]
        assert ("tired horse" in row["negative"]) == ("tired horse" in row["caption"])
        listed = word_list(kind)
        assert any(
            row["negative"].startswith(row["caption"][: place.start()])
            and row["negative"].endswith(row["caption"][place.end() :])
            and row["negative"][place.start() : len(row["negative"]) - len(row["caption"]) + place.end()]
            in listed.line_of
            for place in listed.pattern.finditer(row["caption"])
        )
    assert main(arguments(coco, table)) == 0  # again: it is there
    lines = capsys.readouterr().out
    assert f"{len(rows):,} negatives of {COUNT:,} captions" in lines
    for kind, count in generate.count_kinds(pq.read_table(table)).items():
        assert re.search(rf"{kind}: {count:,} \(\d+\.\d% of captions\)", lines)


def test_a_kill_changes_no_byte(coco, table, monkeypatch):
    monkeypatch.setattr("mmjax.commands.data_negatives._SHARD", 100)
    expected, output, made, calls = coco / "few.csv", coco / "killed.csv", generate.Generator.rows, iter(range(250))
    assert main(arguments(coco, expected, name="few")) == 0

    def stop(self, key, captions):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return made(self, key, captions)

    with monkeypatch.context() as patch:
        patch.setattr(generate.Generator, "rows", stop)
        assert main(arguments(coco, output, name="few")) == 130
    shards = coco / f".{output.name}.shards"
    assert not output.exists() and len(list(shards.glob("*.parquet"))) == 2
    assert main(arguments(coco, output, name="few")) == 0
    assert output.read_bytes() == expected.read_bytes() and not shards.exists()
    with open(output, newline="") as file:
        rows = [row["negative"] for row in csv.DictReader(file)]
    assert rows == pq.read_table(table)["negative"].to_pylist()[: len(rows)]  # whatever the size of the shards


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--kinds=colour",), r"--kinds='colour': no such name"),
        (("--seed=1",), r"--output=.*was begun with seed=0, now it is seed=1; use another name"),
        (("--output=x.txt",), r"--output=x.txt: expected a file that ends in"),
    ],
)
def test_errors_are_one_line(coco, table, flags, message, capsys):
    assert main(arguments(coco, table, *flags)) == 2
    error = capsys.readouterr().err
    assert re.match(rf"mmjax data negatives: {message}", error) and error.count("\n") == 1


def test_a_choice_depends_on_seed_key_and_caption_alone():
    def made(seed, key, *captions):
        return generate.Generator("rules", ("color", "action"), seed=seed).rows(key, captions)

    texts = ["a red hat", "a man riding a blue bus"]
    assert made(0, "a", *texts) == made(0, "a", *texts) == [*made(0, "a", texts[0]), *made(0, "a", texts[1])]
    assert len({row["negative"] for key in "abcdefgh" for row in made(0, key, texts[0])}) > 3
    assert len({row["negative"] for seed in range(8) for row in made(seed, "a", texts[0])}) > 3
    assert all(
        row["negative"] != "a blue hat" for seed in range(60) for row in made(seed, "a", "a red hat", "A blue hat")
    )


def test_rows_of_one_key_are_compared_with_each_other():
    """As those of a table whose rows are examples of their own, several of one image."""

    def row(key, caption, negative, kind="replace_color"):
        return {"key": key, "kind": kind, "caption": caption, "negative": negative, "valid": True, "method": "rules"}

    rows = [
        row("a", "a red cat", "a blue cat"),
        row("a", "a cat", "a Red cat"),  # true
        row("a", "the cat", "a blue cat"),  # a repetition
        row("b", "a cat", "a red cat"),
        row("a", "a mat", "a red mat", "entity"),
        row("a", "a hat", "a red mat", "entity"),  # of another unit
    ]
    kept = generate.without_repeats(pa.Table.from_pylist(rows, generate.SCHEMA))
    assert kept.to_pylist() == [rows[i] for i in (0, 3, 4, 5)]


@pytest.mark.parametrize("method", ["rules", "swap", "units"])
def test_a_thousand_captions_a_second(method, monkeypatch):
    monkeypatch.setattr(swaps, "tagger", lambda *_: lambda tokens: [[t, "JJ" if t in COLORS else "NN"] for t in tokens])
    random = np.random.default_rng(0)
    captions = [caption(i, random) for i in range(400)]
    generator = generate.Generator(method, generate.KINDS[method], seed=0)
    generator.rows("first", captions[:1])
    start = time.process_time()
    for number, text in enumerate(captions):
        generator.rows(str(number), [text])
    assert len(captions) / (time.process_time() - start) > 1000
