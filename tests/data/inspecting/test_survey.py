import json

import numpy as np
import pytest

from mmjax.data import source, tokenizer
from mmjax.data.inspecting import survey
from mmjax.data.open_source import open_source
from mmjax.data.preparing.plan import evenly_spaced
from support.pictures import encoded, photograph
from support.prepared import Source

TEXTS = ["a caption 0 1 2 of naïve , one two three"]


@pytest.fixture(scope="module")
def tokens():
    return tokenizer.load("word", context_length=8, captions=TEXTS)


def facts_of(source, tokens, *, count=None, threads=2):
    numbers = range(len(source)) if count is None else evenly_spaced(len(source), count)
    facts = survey.survey(source, tokenizer=tokens, numbers=numbers, threads=threads)
    assert json.loads(json.dumps(facts)) == facts
    return facts


def test_facts_of_a_source(tokens):
    source = Source(12, height=20, width=50)
    facts = facts_of(source, tokens)
    assert (facts["examples"], facts["inspected"], facts["group"]) == (12, 12, 1)
    picture = facts["pictures"]["image"]
    assert picture["storage"] == "encoded" and picture["formats"] == {"jpeg": 0.5, "png": 0.5}
    assert picture["height"] == {"min": 20, "median": 20, "max": 20}
    assert picture["width"]["median"] == 50
    sizes = [len(source[i]["image"]) for i in range(12)]
    assert picture["bytes"] == {"min": min(sizes), "median": float(np.median(sizes)), "max": max(sizes)}
    assert facts["captions"]["per_image"] == {"min": 1, "mean": 2.0, "max": 3}
    assert facts["fields"]["label"] == "integer; 3 of 3 classes"
    assert facts["fields"]["score"] == "number; 0 to 2.75, mean 1.375"
    assert facts["fields"]["negatives"].startswith("negatives")
    assert facts["unreadable"] == {"when opened": {}, "when read": {}}
    shown = survey.text(facts)
    assert "12 examples, all of them read" in shown and "jpeg 50%" in shown and "unreadable: none" in shown


def test_lengths_and_repeats(tokens):
    source = Source(3)
    texts = [["one two", "one two"], ["one two three , one two three , one two three"], ["one , two"]]
    source = Changed(source, {i: dict(source[i], captions=texts[i]) for i in range(3)})
    facts = facts_of(source, tokens)["captions"]
    # With BOS and EOS: 4, 4, 8 (of 13), 5.
    assert facts["tokens"] == {"min": 4, "median": 4.5, "max": 8}
    assert facts["truncated"] == 0.25 and facts["duplicates"] == 0.25 and facts["context_length"] == 8
    assert facts["per_image"]["mean"] == pytest.approx(4 / 3)


class Changed(source.Source):
    def __init__(self, source, changes):
        self.source, self.changes = source, changes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.changes.get(index) or self.source[index]


def test_what_is_broken_is_counted_with_its_first_keys(tokens):
    source = Source(40, broken=range(20, 30))
    jpeg = encoded(photograph(40, 40))
    changed = Changed(
        source,
        {
            0: dict(source[0], image=jpeg[: len(jpeg) // 2]),
            1: dict(source[1], image=b""),
            2: dict(source[2], captions=[]),
        },
    )
    changed.unreadable = [("x", "duplicate key", ""), ("y", "duplicate key", "")]
    facts = facts_of(changed, tokens)
    read = facts["unreadable"]["when read"]
    assert next(iter(read)) == "missing file" and read["missing file"]["count"] == 10
    assert read["missing file"]["keys"] == [f"birds/{i:03d}.jpg" for i in range(20, 25)]
    assert {reason: entry["count"] for reason, entry in read.items()} == {
        "missing file": 10, "truncated image": 1, "empty image": 1, "no caption": 1,
    }  # fmt: skip
    assert facts["unreadable"]["when opened"] == {"duplicate key": {"count": 2, "keys": ["x", "y"], "detail": ""}}
    assert facts["pictures"]["image"]["count"] == 27
    assert "missing file: 10: birds/020.jpg" in survey.text(facts)


def test_nothing_that_can_be_read(tokens):
    facts = facts_of(Source(4, broken=range(4)), tokens)
    assert facts["captions"]["count"] == 0 and "missing file: 4" in survey.text(facts)


def test_some_examples_evenly_spaced(tokens):
    assert (
        evenly_spaced(10, 4) == [0, 2, 5, 7]
        and list(evenly_spaced(3, 8)) == [0, 1, 2]
        and list(evenly_spaced(0, 5)) == []
    )
    facts = facts_of(Source(30), tokens, count=7)
    assert facts["inspected"] == 7 and "30 examples, 7 of them read" in survey.text(facts)


def test_the_shares_of_a_mixture(tokens):
    parts = [{"name": "scenes", "size": 20, "weight": 3.0}, {"name": "scenes", "size": 40, "weight": 1.0, "title": "b"}]
    mixture = open_source({"name": "mix", "sources": tuple(parts)}, split="train")
    facts = facts_of(mixture, tokens, count=6)
    assert facts["components"] == [
        {"name": "scenes", "examples": 20, "fraction": 0.75}, {"name": "b", "examples": 40, "fraction": 0.25},
    ]  # fmt: skip
    assert facts["pictures"]["image"]["storage"] == "pixels"
    assert "b: 40 examples, 25.0% of the rows" in survey.text(facts)


def test_more_than_the_threads_hold_at_a_time(tokens, monkeypatch):
    source = Source(25, broken=(3, 9))
    whole = facts_of(source, tokens)
    monkeypatch.setattr(survey, "_CHUNK", 4)
    assert facts_of(source, tokens) == whole


def test_threads_change_nothing(tokens):
    source = Source(25, broken=(3, 9))
    assert facts_of(source, tokens, threads=1) == facts_of(source, tokens, threads=4)


def test_transparent_pictures_and_the_first_reasons_are_shown(tokens, tmp_path):
    pixels = np.dstack([photograph(20, 20), np.full((20, 20), 255, np.uint8)])
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("a caption")
        pixels[:5, :5, 3] = 255 if number else 0
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels, "PNG") if number < 3 else b"x")
    (tmp_path / "4.png").write_bytes(encoded(photograph(8, 8), "PNG"))
    facts = facts_of(open_source({"name": "folders", "path": str(tmp_path)}, split="train"), tokens)
    assert facts["pictures"]["image"]["transparent"] == pytest.approx(1 / 3)
    shown = survey.text(facts)
    assert "transparent pixels in 33.3% of them, put on data.background" in shown
    assert "no caption: 1: 4.png (the first one: no text beside it, and no class)" in shown
    assert "corrupt image: 1: 3.png (the first one: not one of JPEG" in shown
