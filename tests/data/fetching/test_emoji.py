"""``mmjax data fetch emoji``, from small packages in npm's layout."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from mmjax import cli
from mmjax.config_file import load_config
from mmjax.core.config import ConfigError
from mmjax.core.locks import Lock
from mmjax.data.fetching import emoji, emoji_styles
from mmjax.data.fetching.emoji_names import fraction
from mmjax.data.open_source import open_source
from mmjax.experiment import Experiment
from mmjax.train.evaluation import make_evaluation
from mmjax.train.setup import setup
from support import command, emoji_packages
from support.emoji_packages import CODES, COMPONENT, FAMILY, FLAG, PLAIN, UNDRAWN, build, family, plain

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DRAWN = [plain(code) for code in CODES if code not in (COMPONENT, UNDRAWN)]


def files(folder):
    """Names and bytes of all but hidden files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows(folder, table):
    return list(csv.DictReader(io.StringIO((folder / f"{table}.csv").read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    summary = build(folder / "data", folder / "packages")
    return folder, summary


def test_the_same_packages_give_the_same_bytes(built, tmp_path):
    folder, summary = built
    assert build(tmp_path / "again", folder / "packages", workers=3) == summary
    assert files(tmp_path / "again") == files(folder / "data")
    assert len(summary["sha256"]) == 64 and not list((folder / "data").rglob("*.tmp"))


def test_families_are_whole_and_styles_apart(built):
    folder, summary = built
    splits = {name: rows(folder / "data", name) for name in summary["splits"]}
    assert {name: len(table) for name, table in splits.items()} == summary["splits"] and all(splits.values())
    partition = {family(code): set() for code in DRAWN}
    for name, table in splits.items():
        kind = {"val": "val", "test": "test", "both": "test"}.get(name, "train")
        styles = {"style_val": {"fluent_3d"}, "style": {"twitter"}, "both": {"twitter"}}.get(name, {"google"})
        assert {row["style"] for row in table} == styles
        for row in table:
            assert row["filepath"] == f"images/{row['style']}/{row['hexcode']}.png"
            partition[row["family"]].add(kind)
    assert all(len(kinds) == 1 for kinds in partition.values())
    assert {row["hexcode"] for table in splits.values() for row in table} == set(DRAWN)
    assert len({family(code) for code in FAMILY}) == 1 and partition[family(FLAG)] == {"train"}
    # As the specification has it: an even hash of the family, 10 % val and 15 % test.
    for code in set(DRAWN) - {FLAG}:
        place = fraction(family(code))
        assert partition[family(code)] == {"val" if place < 0.1 else "test" if place < 0.25 else "train"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F468-200D-1F4BB", "1F469-1F3FD-200D-1F4BB"),  # man, woman with a skin tone
        ("1F6B6", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F"),  # to the right
        ("1F468-200D-1F9B0", "1F9D1"),  # hair
        ("1F475", "1F9D3-1F3FF"),
    ],
)
def test_what_is_one_family(one, other):
    assert family(one) == family(other) != family("1F600")


def test_captions_have_three_forms(built):
    folder, _ = built
    first = rows(folder / "data", "train")[0]
    assert first["name"] == "a thing, 0"  # from two spaces
    assert first["keywords"] == "a thing, 0, thing, round"  # "!" is no word
    assert first["caption"] == "an emoji of a thing, 0, one of food fruit in food and drink"
    assert (first["group"], first["subgroup"], first["name_de"]) == ("food and drink", "food fruit", "ein thing, 0")
    names = {row["source"]: row["target"] for row in rows(folder / "data", "concepts/de")}
    assert names["a thing, 0"] == "ein thing, 0" and len(names) == len(DRAWN)
    assert set((folder / "data/classes_group.txt").read_text().split("\n")) == {
        "food and drink", "objects", "flags", "",
    }  # fmt: skip


@pytest.mark.parametrize("spec", ["emoji.py:", "style.py:data=emoji,"])
def test_the_configurations_find_all_that_they_measure(built, spec):
    folder, _ = built
    own = setup(Experiment.from_dict(load_config(f"{CONFIGS / spec}path={folder}/data")))
    evaluation = make_evaluation(own.experiment, own.program, own.tokenizer)
    evaluation.open()
    if "linear_probe" in own.experiment.eval.final_tasks:
        probe = evaluation.evaluator("linear_probe", "style")
        assert len(probe.train.source) == len(rows(folder / "data", "train"))
        assert "label" in probe.train.source.first_readable()


def test_the_styles_of_an_emoji_are_modalities_of_training_alone(tmp_path):
    build(tmp_path / "data", tmp_path / "packages", held_out="fluent_3d")
    own = setup(
        Experiment.from_dict(load_config(f"{CONFIGS / 'emoji.py'}:modalities=image+twitter,path={tmp_path}/data"))
    )
    assert {"image", "twitter"} <= own.source.first_readable().keys()
    assert any("of the words of 'val'" in line for line in own.advice())  # whose table has one picture a row


def test_pictures_are_squares_on_white(built):
    folder, _ = built
    for style in PLAIN:
        assert {path.stem for path in (folder / "data/images" / style).iterdir()} == set(DRAWN)
        with Image.open(folder / f"data/images/{style}/1F400.png") as picture:
            assert (picture.size, picture.mode) == ((16, 16), "RGB")
            pixels = np.asarray(picture)
        color = list(bytes.fromhex(emoji_packages._color("1F400")))
        assert pixels[8, 12].tolist() == color and (pixels[8, :5] == 255).all() and (pixels[:3] == 255).all()


def test_the_existing_sources_read_it(built):
    folder, summary = built
    source = open_source({"name": "auto", "path": f"{folder}/data/{{split}}.csv"}, split="style")
    assert len(source) == summary["splits"]["style"] and source[0]["captions"][0].startswith("an emoji of a thing")
    section = {"name": "tables", "path": f"{folder}/data/{{split}}.csv", "caption_columns": ("name", "keywords")}
    source = open_source({**section, "id_column": "hexcode"}, split="train")
    assert len(source[3]["captions"]) == 2 and not source.unreadable
    aligned = open_source(
        {**section, "path": f"{folder}/data/aligned_test.csv"},
        split="test",
        modalities=("image", "twitter", "fluent_3d"),
    )
    assert len(aligned) == summary["splits"]["both"]
    for row, example in zip(rows(folder / "data", "aligned_test"), aligned, strict=True):
        for modality, style in (("image", "google"), ("twitter", "twitter"), ("fluent_3d", "fluent_3d")):
            assert example[modality] == (folder / f"data/images/{style}/{row['hexcode']}.png").read_bytes()
    # What training could see has no other style, neither in the rows nor beside them.
    for table in ("train", "aligned_train"):
        text = (folder / f"data/{table}.csv").read_text(encoding="utf-8")
        assert "google" in text and "twitter" not in text and "fluent_3d" not in text


def test_svg_is_drawn(tmp_path):
    pytest.importorskip("resvg_py", reason="pip install -e '.[emoji]'")
    styles = ("google", "openmoji", "fluent_flat")
    summary = build(tmp_path / "data", tmp_path / "packages", styles=styles, held_out="openmoji")
    assert summary["emoji"] == len(DRAWN) + 1 and "style_val" not in summary["splits"]
    for style, corner in (("openmoji", 255), ("fluent_flat", 255)):
        with Image.open(tmp_path / f"data/images/{style}/1F400.png") as picture:
            pixels = np.asarray(picture)
        assert pixels[0, 0].tolist() == [corner] * 3
        np.testing.assert_allclose(pixels[8, 8], list(bytes.fromhex(emoji_packages._color("1F400"))), atol=2)


def test_svg_without_its_renderer_is_one_line(tmp_path):
    with mock.patch.dict(sys.modules, {"resvg_py": None}):
        with pytest.raises(ConfigError, match=r"openmoji .* resvg-py is not installed; pip .* or use --styles=google$"):
            build(tmp_path / "data", tmp_path / "packages", styles=("google", "openmoji"), held_out="openmoji")
        build(tmp_path / "data", tmp_path / "packages")


def test_a_kill_in_the_middle_continues_where_it_was(built, tmp_path):
    folder, summary = built
    code = f"""
import os, pathlib, signal
from mmjax.data.fetching import emoji_styles
from support import emoji_packages
draw, drawn = emoji_styles.to_png, []
def to_png(*args, **options):
    drawn.append(draw(*args, **options))
    return drawn[-1] if len(drawn) < 30 else os.kill(os.getpid(), signal.SIGKILL)
emoji_styles.to_png = to_png
emoji_packages.build(pathlib.Path({str(tmp_path / "data")!r}), pathlib.Path({str(tmp_path / "packages")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], env=command.environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "data/summary.json").exists() and not list((tmp_path / "data").glob("*.csv"))
    stale = tmp_path / "data/images/google/.1F400.png.0.tmp"
    stale.write_bytes(b"half")
    before = len(list((tmp_path / "data/images").rglob("[!.]*.png")))
    with mock.patch.object(emoji_styles, "to_png", side_effect=emoji_styles.to_png) as draw:
        assert build(tmp_path / "data", tmp_path / "packages") == summary
    assert 0 < before == len(PLAIN) * len(DRAWN) - draw.call_count
    assert files(tmp_path / "data") == files(folder / "data") and not stale.exists()
    with mock.patch.object(emoji_styles, "to_png") as draw:  # a finished one is not built again
        assert build(tmp_path / "data", tmp_path / "packages") == summary and not draw.called


def test_other_options_need_another_folder(built, tmp_path):
    folder, _ = built
    before = files(folder / "data")
    for options, key in (
        ({"held_out": "google", "styles": PLAIN}, "held-out: is 'google', but .* was begun with 'twitter'"),
        ({"size": 32}, "size: is 32"),
        ({"locales": ()}, "locales: is .*; use that again, or another --output"),
        ({"styles": PLAIN[:2]}, "output=.*: was begun with other packages or styles"),
    ):
        with pytest.raises(ConfigError, match=f"^--{key}"):
            build(folder / "data", folder / "packages", **options)
    assert files(folder / "data") == before
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"has thesis.txt, which this command did not write"):
        build(tmp_path, folder / "packages")


def test_a_full_disk_and_a_second_process_are_one_line(built, tmp_path):
    full = mock.patch.object(emoji_styles, "to_png", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with full, pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\); .* command continues"):
        build(tmp_path / "data", tmp_path / "packages")
    with Lock(tmp_path / "data/.lock"), pytest.raises(ConfigError, match=r"another process is writing .*data; wait"):
        build(tmp_path / "data", tmp_path / "packages")
    assert build(tmp_path / "data", tmp_path / "packages") == built[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"held_out": "openmoji"}, r"--held-out='openmoji': no such name; .*google"),
        ({"styles": ("gogle",)}, r"--styles='gogle': .*google"),
        ({"styles": ("twitter", "fluent_3d")}, r"--styles=twitter,fluent_3d: leave none to train on; add .*google"),
        ({"locales": ("xx",)}, r"--locales=xx: .*de"),
    ],
)
def test_mistakes_are_one_line(built, tmp_path, options, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        build(tmp_path / "data", built[0] / "packages", **options)


def test_a_damaged_package_is_named(tmp_path):
    constants = emoji_packages.write(tmp_path / "packages")
    path = tmp_path / "packages" / constants["STYLES"]["twitter"].package.file
    path.write_bytes(path.read_bytes()[:-7])
    with mock.patch.multiple(emoji, **constants), pytest.raises(ConfigError, match=f"{path.name} is damaged.*remove"):
        emoji.fetch(tmp_path / "data", held_out="twitter", styles=PLAIN, package_folder=tmp_path / "packages")
    assert not (tmp_path / "data/images").exists()


NPM = {
    "works": 'test "$1" = pack && /bin/cp {store}/*.tgz .',
    "fails": 'echo "npm error code E404" >&2; echo "npm error 404 Not Found" >&2; exit 1',
    "alters": '/bin/cp {store}/*.tgz . && for f in *.tgz; do echo more >> "$f"; done',
}


@pytest.mark.parametrize(
    ("npm", "line"),
    [
        ("works", None),
        ("fails", r"^emojibase-data@\S+: npm cannot fetch it \(npm error code E404 npm error 404 Not Found\); check"),
        ("alters", r"^emojibase-data@\S+: npm fetched another archive"),
        (
            "missing",
            r"^emojibase-data@\S+: npm is not installed; install it .* or put emojibase-data-\S+ into --packages",
        ),
    ],
)
def test_packages_come_through_npm(built, tmp_path, monkeypatch, messages, npm, line):
    folder, summary = built
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    if npm in NPM:
        script = tmp_path / "bin/npm"
        script.write_text("#!/bin/sh\n" + NPM[npm].format(store=folder / "packages") + "\n")
        script.chmod(0o755)
    (tmp_path / "data/.packages/.npm-killed").mkdir(parents=True)
    options = {"held_out": "twitter", "styles": PLAIN, "size": 16, "locales": ("de",)}
    with mock.patch.multiple(emoji, **emoji_packages.write(tmp_path / "unused")):
        if line is not None:
            with pytest.raises(ConfigError, match=line):
                emoji.fetch(tmp_path / "data", **options)
            return
        assert emoji.fetch(tmp_path / "data", **options) == summary
    assert files(tmp_path / "data") == files(folder / "data")
    assert not (tmp_path / "data/.packages").exists()  # 164 MB that nobody needs any more
    assert any("Twemoji" in message and "CC-BY-4.0" in message for message in messages)


def test_the_command(built, tmp_path, capfd):
    folder, summary = built
    words = ["data", "fetch", "emoji", f"--output={tmp_path}/data", f"--packages={folder}/packages", "--size=16"]
    words += ["--held-out=twitter", f"--styles={','.join(PLAIN)}", "--locales=de"]
    with mock.patch.multiple(emoji, **emoji_packages.write(tmp_path / "packages")):
        assert cli.main(words) == 0
        out = capfd.readouterr().out
        assert f"{len(DRAWN)} emoji in 3 styles" in out and summary["sha256"] in out
        assert cli.main([*words, "--json"]) == 0
        assert json.loads(capfd.readouterr().out) == summary
        assert cli.main([*words, "--size=2"]) == 2 and "--size=2: must be" in capfd.readouterr().err
    notice = (tmp_path / "data/LICENSES.md").read_text()
    assert "16 x 16" in notice and all(emoji_styles.STYLES[style].license in notice for style in PLAIN)
    assert (tmp_path / "data/licenses/google-LICENSE.txt").read_text() == "of google\n"
    assert os.listdir(tmp_path / "data/licenses") == ["google-LICENSE.txt"]
