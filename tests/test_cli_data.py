"""``mmjax data``: what people type, and what they see."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmjax import cli
from mmjax.data.open_source import open_source
from support import command, generating, models_in_use
from support.archives import write_webdataset
from support.pictures import encoded, photograph

SCENES = ["--source=scenes", "--option", "world=easy", "--option", "size=24"]


def ran(capfd, *words, status=0):
    assert cli.main(["data", *words]) == status
    return capfd.readouterr()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twenty photographs in two tar shards; two are torn."""
    folder = tmp_path_factory.mktemp("shards")
    examples = []
    for number in range(20):
        data = encoded(photograph(60, 90, seed=number))
        data = data[: len(data) // 2] if number in (3, 11) else data
        examples.append((f"{number:05d}", data, [f"a photo of thing {number}"]))
    write_webdataset(folder, examples, shards=2)
    return f"{folder}/{{00000..00001}}.tar"


def test_prepare_inspect_and_read(shards, tmp_path, capfd):
    words = ["prepare", "--source=webdataset", f"--path={shards}", f"--output={tmp_path}", "--name=things",
             "--image-size=32", "--workers=1", "--shards=3"]  # fmt: skip
    said = ran(capfd, *words, "--max-unreadable=0.2")
    assert "18 examples, 18 captions" in said.out and "truncated image 2" in said.out
    said = ran(capfd, *words, status=1)
    assert "10.00% of the examples were left out" in said.err and "unreadable.jsonl" in said.err
    assert "3 of 3 shards exist already" in said.err
    facts = json.loads(ran(capfd, *words, "--json", "--max-unreadable=1").out)
    assert facts["examples"] == 18 and facts["unreadable"] == {"truncated image": 2}

    source = open_source({"name": "tfds", "path": str(tmp_path / "things")}, split="train")
    with Image.open(io.BytesIO(source[0]["image"])) as image:
        assert image.size == (48, 32)
    facts = json.loads(ran(capfd, "inspect", "--source=tfds", f"--path={tmp_path}/things", "--json").out)
    assert facts["examples"] == 18 and facts["pictures"]["image"]["height"]["max"] == 32


def test_prepare_from_a_config_adds_splits(tmp_path, capfd):
    config = f"--config={command.config_file(tmp_path)}"
    for split in ("val", "train"):
        words = ["prepare", config, "--config.data.train.size=8", f"--split={split}", "--limit=8", "--workers=1"]
        assert "8 examples" in ran(capfd, *words, f"--output={tmp_path}").out
    for split in ("val", "train"):
        source = open_source({"name": "tfds", "path": str(tmp_path / "scenes")}, split=split)
        assert len(source) == 8 and len(source[0]["captions"]) == 5


def test_inspect_draws_what_a_config_trains_on(shards, tmp_path, capfd):
    said = ran(
        capfd, "inspect", f"--config={command.config_file(tmp_path)}", "--examples=9", "--rows=5",
        "--config.data.captions_per_image=2", "--config.data.transforms=(('mixgen', {'num': 4}),)",
        f"--sheet={tmp_path}/sheet.png",
    )  # fmt: skip
    assert "48 examples, 9 of them read" in said.out and "context length of" in said.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 600 and sheet.height > 300 and len(np.unique(np.asarray(sheet))) > 50


def test_inspect_without_a_config(shards, tmp_path, capfd):
    said = ran(
        capfd, "inspect", "--source=webdataset", f"--path={shards}", "--examples=all", "--rows=3",
        f"--sheet={tmp_path}/sheet.png",
    )  # fmt: skip
    assert "20 examples, all of them read" in said.out and "truncated image: 2: " in said.out and "00003" in said.out
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_inspect_reports_on_captions_and_knows_what_is_true_of_scenes(shards, tmp_path, capfd):
    noisy = ran(capfd, "inspect", *SCENES, "--option", "caption_noise=0.5", "--captions", "--json").out
    groups = json.loads(noisy)["groups"]
    assert list(groups) == ["source"] and groups["source"]["captions"] == 120 and 0.3 < groups["source"]["true"] < 0.7
    said = ran(
        capfd, "inspect", f"--config={command.config_file(tmp_path)}", "--captions", "--examples=20",
        "--config.data.train.negatives=swap_color,replace_shape", "--config.data.transforms=(('eda', {}),)",
    )  # fmt: skip
    lines = {line.split("  ")[0]: line.split()[-3:] for line in said.out.splitlines()}
    assert said.out.split()[:3] == ["source", "negatives", "training"]
    assert lines["true"][:2] == ["100.0%", "0.0%"] and lines["equal to a source caption"][-2] == "0.0%"


def test_inspect_compares_captions_of_a_table_and_of_a_recipe(shards, tmp_path, capfd):
    captioner = {"captioner": {"name": "scenes", "error": 0.3}}
    generating.run(generating.make_job(tmp_path / "made", (("caption", {"n": 2}),), captioner))
    made = ran(capfd, "inspect", "--source=generated", f"--path={tmp_path}/made", "--captions", "--json").out
    groups = json.loads(made)["groups"]
    assert list(groups) == ["raw", "caption"] and groups["raw"]["true"] == 1 > groups["caption"]["true"]
    table = tmp_path / "made.csv"
    rows = [
        (example["key"], example["captions"][0])
        for example in open_source({"name": "webdataset", "path": shards}, split="train")
    ]
    table.write_text(
        "key,caption\n" + "".join(f"{key},{text if n % 2 else 'a dog'}\n" for n, (key, text) in enumerate(rows[:18]))
    )
    model = models_in_use.write(tmp_path / "model", seed=1)  # whose cosines are above 0
    torn = ran(capfd, "inspect", f"--path={shards}", f"--captions={table}", f"--model={model}")
    lines = {line.split("  ")[0]: line.split()[-2:] for line in torn.out.splitlines()}
    assert lines["captions"] == ["20", "18"] and lines["equal to a source caption"][-1] == "50.0%"
    assert 4 < float(lines["CIDEr-D"][-1]) < 10 and float(lines["RefCLIPScore"][-1]) > 0
    assert "CLIPScore" in torn.out and "of another image's caption" in torn.out and "vocabulary" in torn.out
    table.write_text("key,caption\nnobody,a cat\n")
    nobody = ran(capfd, "inspect", f"--path={shards}", f"--captions={table}", status=2).err
    assert "names none of the 20 examples by its 'key', such as '" in nobody
    assert "--captions" in ran(capfd, "inspect", *SCENES, "--model=x", status=2).err
    assert "--sheet=x" in ran(capfd, "inspect", *SCENES, "--captions", "--sheet=x", status=2).err
    assert "--languages: of captions" in ran(capfd, "inspect", *SCENES, "--languages", status=2).err


def test_inspect_counts_languages_of_captions(shards, capfd):
    pytest.importorskip("py3langid")
    options = "--captions", "--languages", "--examples=4"
    assert "languages of source: en 100.0%" in ran(capfd, "inspect", f"--path={shards}", *options).out


def test_bench(tmp_path, capfd):
    words = ["bench", f"--config={command.config_file(tmp_path)}", "--seconds=0.05", "--threads=1"]
    said = ran(capfd, *words, "--step-ms=1000", "--batch-size=8")
    assert "whole batches" in said.out and "a step of 8 in 1000 ms needs 8 examples/s" in said.out
    facts = json.loads(ran(capfd, *words, "--json").out)
    assert facts["batch_size"] == 16 and facts["threads"] == 1 and facts["examples_per_second"]["whole batches"] > 0


def test_overrides_and_options_reach_the_source(tmp_path, capfd):
    facts = json.loads(ran(capfd, "inspect", *SCENES, "--modalities=image,depth", "--json").out)
    assert facts["examples"] == 24 and set(facts["pictures"]) == {"image", "depth"}
    words = ["inspect", f"--config={command.config_file(tmp_path)}", "--config.data.train.size=30", "--json"]
    assert json.loads(ran(capfd, *words).out)["examples"] == 30


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["inspect"], ["--config=FILE", "--path=PATH", "--source=NAME"]),
        (["inspect", "--source=scene"], ["scene", "scenes"]),
        (["inspect", "--source=scenes", "--option", "wrld=easy"], ["wrld", "world"]),
        (["inspect", "--source=scenes", "--option", "world"], ["--option world", "KEY=VALUE"]),
        (["inspect", "--source=scenes", "--split=trian"], ["trian", "train"]),
        (["inspect", "--source=scenes", "--config.data.x=1"], ["--config.data.x=1", "--option"]),
        (["inspect", "--config=CONFIG", "--path=x"], ["--path", "--config.data.source"]),
        (["inspect", *SCENES, "--examples=some"], ["--examples=some", "all"]),
        (["inspect", *SCENES, "--sheet=nowhere/x.png"], ["--sheet=nowhere/x.png"]),
        (["inspect", *SCENES, "--sheets=x.png"], ["--sheets", "--sheet"]),
        (["prepare", *SCENES, "--output=OUT", "--format=gif"], ["format='gif'", "jpeg"]),
        (["prepare", *SCENES, "--output=OUT", "--max-unreadable=2"], ["--max-unreadable=2"]),
        (["prepare", *SCENES, "--output=OUT", "--version=one"], ["--version=one", "1.0.0"]),
        (["prepare", *SCENES, "--output=gs://bucket"], ["--output=gs://bucket", "local"]),
        (["bench", *SCENES, "--seconds=0"], ["--seconds=0"]),
        (["bench", *SCENES, "--batch-size=0"], ["--batch-size=0"]),
        (["bench", *SCENES, "--threads=0"], ["--threads=0"]),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(words, mentions, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(command.config_file(tmp_path))
    words = [word.replace("CONFIG", config).replace("OUT", str(tmp_path / "out")) for word in words]
    said = ran(capfd, *words, status=2)
    assert len(said.err.strip().splitlines()) == 1, said.err
    for mention in (f"mmjax data {words[0]}", *mentions):
        assert mention in said.err, said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", [[], ["--source=tables"]])
def test_options_of_a_table_are_words_and_inspect_says_what_a_path_was_taken_for(source, tmp_path, capfd):
    (tmp_path / "0.png").write_bytes(encoded(photograph(16, 16), "PNG"))
    (tmp_path / "t.csv").write_text(
        "file,name,other,id,part\n0.png,a cup,eine Tasse,7,train\n0.png,a mug,ein Becher,7,val\n"
    )
    words = ["inspect", f"--path={tmp_path / 't.csv'}", *source, "--option", "group=false", "--option"]
    assert "tables: 2 examples, all of them read" in ran(capfd, *words, "caption_columns=other").out
    facts = ran(capfd, *words, "caption_columns=name,other", "--option", "split_column=part", "--json").out
    assert json.loads(facts)["captions"]["per_image"]["max"] == 2 and json.loads(facts)["examples"] == 1
    assert json.loads(facts)["source"] == "tables"


@pytest.mark.parametrize("words", [[], ["prepare"], ["inspect"], ["bench"]])
def test_help_explains_each_command(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", *words, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: mmjax data" in shown and len(shown) > 150


def test_a_path_alone_is_looked_at(shards, capfd):
    words = ["inspect", f"--path={shards}", "--option", "max_captions=1"]
    assert "20 examples" in ran(capfd, *words).out
    said = ran(capfd, *words, "--option", "max_caption=1", status=2)
    assert "max_caption" in said.err and "max_captions" in said.err


def test_preparing_a_source_imports_neither_jax_nor_tensorflow(tmp_path):
    words = ["data", "prepare", "--source=scenes", "--split=winoground", "--limit=4", f"--output={tmp_path}"]
    code = (
        f"import sys; from mmjax import cli; status = cli.main({words!r} + ['--workers=1']); "
        "heavy = [m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules]; assert not heavy, heavy; "
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--path=TABLE"],
            "--option image_column=None: 'TABLE' has none of the usual names; set it to one of 'thing', 'words'",
        ),
        (
            ["--path=TABLE", "--source=tables", "--option=image_column=fil", "--option=caption_columns=words"],
            "--option image_column='fil': 'TABLE' has no such",
        ),
        (
            ["--path=TABLE", "--option=image_colum=thing"],
            "--option image_colum='thing': unknown key; did you mean 'image_column'",
        ),
        (["--path=TABLEE"], "--path='TABLEE': no such file or folder"),
        (["--source=tabels"], "--source='tabels': no such name; did you mean 'tables'"),
    ],
)
def test_mistakes_are_named_by_the_flags_that_were_given(words, message, tmp_path, capfd):
    table = tmp_path / "a.csv"
    table.write_text("thing,words\na.jpg,a dog\n")
    said = ran(capfd, "inspect", *(word.replace("TABLE", str(table)) for word in words), status=2)
    assert message.replace("TABLE", str(table)) in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input=scenes", "--option=wrld=easy"], "--option wrld='easy': unknown key; did you mean 'world'"),
        (["--input=TABLE"], "--input='TABLE': no such file or folder"),
        (["--input=TABLE", "--source=tabels"], "--source='tabels': no such name; did you mean 'tables'"),
    ],
)
def test_mistakes_in_the_input_of_a_recipe_are_named_by_flags(words, message, tmp_path, capfd):
    words = [word.replace("TABLE", str(tmp_path / "a.csv")) for word in words]
    assert cli.main(["generate", "--config=nguyen", f"--output={tmp_path}/out", *words]) == 2
    assert message.replace("TABLE", str(tmp_path / "a.csv")) in capfd.readouterr().err
