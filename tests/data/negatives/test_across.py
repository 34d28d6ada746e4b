import numpy as np
import pytest

from mmjax.data.negatives import across, swaps
from mmjax.data.negatives.units import find_units

TAGS = {
    **dict.fromkeys(("a", "an", "the"), "DT"),
    **dict.fromkeys(("red", "blue", "left", "wooden"), "JJ"),
    **dict.fromkeys(("is", "holds"), "VBZ"),
    **dict.fromkeys(("on", "near", "with", "to", "of", "behind", "in"), "IN"),
    "dogs": "NNS", "and": "CC", "two": "CD",
}  # fmt: skip


def find_tags(tokens):
    return [[t, TAGS.get(t.lower(), "NN" if t[0].isalnum() else ".")] for t in tokens]


@pytest.fixture
def tagger(monkeypatch):
    monkeypatch.setattr(swaps, "tagger", lambda *_: find_tags)
    across.find_words.cache_clear()
    yield
    across.find_words.cache_clear()


def exchanged(first, second, find="tagged"):
    """All that different seeds make of both, by kind."""
    made = {}
    for seed in range(20):
        for kind, pair in across.exchange_words(first, second, find, np.random.default_rng(seed)):
            made.setdefault(kind, set()).add(pair)
    return made


@pytest.mark.usefixtures("tagger")
class TestExchange:
    def test_words_of_one_tag_change_places(self):
        assert exchanged("A red cat.", "the blue mat") == {
            "exchange_adjective": {("A blue cat.", "the red mat")},
            "exchange_noun": {("A red mat.", "the blue cat")},
        }

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("a cat", "a cat"),
            ("a cat is", "a Cat holds"),  # auxiliaries stay
            ("a cat near a dog", "the dog"),  # both have it
            ("a cat", "dogs"),  # number
            ("a cat", "the apple"),  # the article
            ("", "a cat"),
            (".", "!"),
        ],
    )
    def test_what_would_be_true_or_wrong_english_is_left_out(self, first, second):
        assert exchanged(first, second) == {}

    def test_the_first_word_keeps_the_capital(self):
        assert exchanged("Cat", "the mat") == {"exchange_noun": {("Mat", "the cat")}}


@pytest.mark.usefixtures("tagger")
@pytest.mark.parametrize("find", ["tagged", "lists"])
def test_captions_that_would_only_change_places_are_left_out(find):
    """Side by side, "a red cat. a blue cat." with its colors exchanged is the true caption in the other order."""
    assert exchanged("A red cat.", "a blue cat", find) == {}
    kind = "exchange_adjective" if find == "tagged" else "exchange_color"
    assert exchanged("a red cat", "two blue cats", find)[kind] == {("a blue cat", "two red cats")}


def test_lists_need_no_tagger_and_know_meanings():
    assert exchanged("a red cat", "a blue mat", "lists") == {"exchange_color": {("a blue cat", "a red mat")}}
    assert exchanged("a big cat", "a large mat", "lists") == {}
    assert exchanged("a cat", "a mat", "lists") == {}


def units(caption):
    made = {}
    for seed in range(20):
        for kind, unit, foils in find_units(caption, np.random.default_rng(seed), find_tags=find_tags):
            made.setdefault((kind, unit), set()).update(foils)
    return made


class TestUnits:
    def test_entities_and_relations_have_foils(self):
        made = units("A red cat to the left of a wooden table holds two dogs")
        assert [unit for _, unit in made] == [
            "A red cat", "a wooden table", "two dogs",
            "A red cat to the left of a wooden table", "a wooden table holds two dogs",
        ]  # fmt: skip
        cat = made["entity", "A red cat"]
        assert "A red table" in cat and any(foil.endswith(" cat") for foil in cat) and "A red dogs" not in cat
        relation = made["relation", "A red cat to the left of a wooden table"]
        assert "a wooden table to the left of A red cat" in relation
        assert any("A red cat" in foil and "a wooden table" in foil and "left" not in foil for foil in relation)
        assert all(unit not in foils for (_, unit), foils in made.items())

    def test_lists_of_things_are_no_relation_and_symmetric_ones_are_not_exchanged(self):
        assert [kind for kind, _ in units("a cat and a dog")] == ["entity", "entity"]
        assert "a dog near a cat" not in units("a cat near a dog")["relation", "a cat near a dog"]
        assert units("running") == {("entity", "running"): set()} and units("") == {}
