"""Related concepts from a small WordNet in the files' own format."""

import csv
import json

import numpy as np
import pytest

from mmjax import cli
from mmjax.core.config import ConfigError
from mmjax.data.concepts.related import find_related, make_rows
from mmjax.data.concepts.wordnet import WordNet
from mmjax.data.sample import Sample
from mmjax.data.transforms.culture_mixup import Transform

# Offset, words, more general meanings.
SYNSETS = [
    (10, ["food"], []),
    (20, ["dish"], [10]),
    (30, ["dumpling", "dumplings"], [20]),
    (40, ["noodle"], [20]),
    (50, ["ramen"], [40]),
    (60, ["hot_dog", "frank"], [20]),
    (70, ["dish", "dish_antenna"], []),
    (80, ["inch", "in"], []),
    (90, ["wa", "man_in_black"], []),
]
INDEX = {"food": [10], "dish": [20, 70], "dumpling": [30], "dumplings": [30], "noodle": [40], "ramen": [50],
         "hot_dog": [60], "frank": [60], "dish_antenna": [70], "inch": [80], "in": [80], "wa": [90],
         "man_in_black": [90]}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("dict")
    below = {place: [other for other, _, up in SYNSETS if place in up] for place, _, _ in SYNSETS}
    lines = ["  1 This is the license"]
    for place, words, up in SYNSETS:
        pointers = (
            [f"@ {p:08d} n 0000" for p in up] + [f"~ {p:08d} n 0000" for p in below[place]] + ["+ 00000099 v 0101"]
        )
        words = f"{len(words):02x} " + " ".join(f"{word} 0" for word in words)
        lines.append(f"{place:08d} 13 n {words} {len(pointers):03d} {' '.join(pointers)} | a gloss | with a bar")
    (root / "data.noun").write_text("\n".join(lines) + "\n")
    index = [
        f"{lemma} n {len(places)} 2 @ ~ {len(places)} 0 {' '.join(f'{p:08d}' for p in places)}  "
        for lemma, places in INDEX.items()
    ]
    (root / "index.noun").write_text("  1 This is the license\n" + "\n".join(index) + "\n")
    return root


def test_distances_are_edges_up_and_then_down(folder):
    wordnet = WordNet(str(folder))
    assert find_related(wordnet, "dumpling") == {
        "dumplings": 1, "dish": 1, "food": 2, "noodle": 2, "ramen": 3, "hot dog": 2, "frank": 2,
    }  # fmt: skip
    assert find_related(wordnet, "dumpling", up=1, down=0) == {"dumplings": 1, "dish": 1}
    assert find_related(wordnet, "dumpling", up=0) == {"dumplings": 1}
    assert "dish antenna" not in find_related(wordnet, "dish")
    assert find_related(wordnet, "dish", senses=2)["dish antenna"] == 1


def test_captions_are_searched_for_nouns_also_in_the_plural(folder):
    wordnet = WordNet(str(folder))
    assert list(wordnet.nouns_in("Two hot dogs, and a dish of Noodles!")) == ["hot dog", "dish", "noodle"]
    assert wordnet.lemma("Hot  Dogs") == "hot dog" and wordnet.lemma("cat") is None


def test_function_words_are_no_nouns_of_a_caption(folder):
    wordnet = WordNet(str(folder))
    assert wordnet.lemma("was") == "wa" and "in" in wordnet
    assert list(wordnet.nouns_in("In it was an inch, WAS it? A man in black.")) == ["inch", "man in black"]


def test_targets_are_translations_if_there_are_some(folder):
    wordnet = WordNet(str(folder))
    rows = list(make_rows(wordnet, ["dumpling"], {"dumpling": ["jiaozi"], "ramen": ["lamian"]}, max_distance=3))
    assert [(row["target"], row["distance"]) for row in rows] == [("jiaozi", 0), ("lamian", 3)]


def run(folder, output, *flags):
    return cli.main(["data", "concepts", f"--wordnet={folder}", f"--output={output}", *flags])


def test_the_command_writes_what_culture_mixup_reads(folder, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("Dumplings\nunheard of\n\nnoodle\n")
    (tmp_path / "zh.csv").write_text("source,target\nnoodle,mian\nfood,shiwu\n")
    output = tmp_path / "c.csv"
    flags = [f"--words={tmp_path / 'words.txt'}", f"--translations={tmp_path / 'zh.csv'}", "--json"]
    assert run(folder, output, *flags) == 0
    assert json.loads(capsys.readouterr().out)["unknown"] == 1
    with output.open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("dumplings", "mian", "2"), ("dumplings", "shiwu", "2"), ("noodle", "mian", "0"), ("noodle", "shiwu", "2"),
    ]  # fmt: skip
    mixup = Transform(data_modalities=("image",), concepts=str(output), word=1.0, phrase=1.0)
    sample = mixup(Sample(id=0, key="0", captions=["a noodle"]), np.random.default_rng(0))
    assert sample.captions[0] in ("a mian", "a shiwu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "data.noun").unlink(), "data.noun cannot be read.*name WordNet's folder dict"),
        (lambda root: (root / "index.noun").write_text("dog n 1 0\n"), "line 1 of index.noun is not WordNet's"),
        (lambda root: (root / "index.noun").write_text("dog n 1 0 1 0 00000011\n"), "do not belong together"),
    ],
)
def test_damaged_files_are_refused(folder, tmp_path, change, message):
    for name in ("data.noun", "index.noun"):
        (tmp_path / name).write_text((folder / name).read_text())
    change(tmp_path)
    with pytest.raises(ConfigError, match=message):
        WordNet(str(tmp_path))


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "c.csv") != 0
    assert "--words: give a list of words, or a source with captions" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("zzz\n")
    assert run(folder, tmp_path / "c.csv", f"--words={tmp_path / 'words.txt'}") != 0
    assert "nothing related to the 1 words" in capsys.readouterr().err
