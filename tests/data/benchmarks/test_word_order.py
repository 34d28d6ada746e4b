import json

import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from support.benchmarks import gray

CAPTION = "A small brown dog, chasing 2 red balls over the green field!"
WORDS = ["a", "small", "brown", "dog,", "chasing", "2", "red", "balls", "over", "the", "green", "field"]


@pytest.fixture
def opened(tmp_path):
    gray(tmp_path / "val2014" / "a.jpg", 9)

    def open_list(*entries, **options):
        (tmp_path / "list.json").write_text(json.dumps([{"image": "val2014/a.jpg", **entry} for entry in entries]))
        section = {"name": "mmjax.data.benchmarks.word_order", "path": str(tmp_path / "list.json")}
        return open_source(section | {"image_root": str(tmp_path), **options}, split="test")

    return open_list


def by_kind(source):
    return {kind: (true.split(), false.split()) for kind, true, false in source[0]["negatives"]}


def test_trigrams_change_places_or_their_own_order(opened):
    shuffles = by_kind(opened({"caption": [CAPTION]}))
    assert shuffles.keys() == {"shuffle_trigrams", "shuffle_within_trigrams"}
    threes = lambda words: [tuple(words[i : i + 3]) for i in range(0, 12, 3)]  # noqa: E731
    for true, false in shuffles.values():
        assert true == WORDS != false and sorted(false) == sorted(true)
    assert sorted(threes(shuffles["shuffle_trigrams"][1])) == sorted(threes(WORDS))
    for before, after in zip(threes(WORDS), threes(shuffles["shuffle_within_trigrams"][1]), strict=True):
        assert sorted(before) == sorted(after)


def test_nouns_and_adjectives_are_those_of_the_file(opened, tmp_path):
    (tmp_path / "words.txt").write_text("Small\nbrown\nred\nballs\ngreen\nfield\n")
    shuffles = by_kind(opened({"caption": CAPTION}, content_words=str(tmp_path / "words.txt")))
    content = {"small", "brown", "red", "balls", "green", "field"}
    for kind, moves in (("shuffle_nouns_adj", True), ("shuffle_other_words", False)):
        true, false = shuffles[kind]
        assert false != true and sorted(false) == sorted(true)
        assert all(a == b for a, b in zip(true, false, strict=True) if (a in content) != moves)
    with pytest.raises(ConfigError, match=r"content_words.*name a text file"):
        opened({"caption": CAPTION}, content_words=str(tmp_path / "none.txt"))


def test_shuffles_depend_on_the_seed_and_the_caption_alone(opened):
    several = [{"caption": [CAPTION, CAPTION + " now"]}, {"caption": CAPTION}]
    first, again, other = opened(*several), opened(*several), opened(*several, seed=1)
    assert first[0] == again[0] and first[0]["negatives"] != other[0]["negatives"]
    assert opened(several[0])[0]["negatives"] == first[0]["negatives"][:4]
    twice = opened({"caption": [CAPTION, CAPTION]})[0]["negatives"]
    assert twice[:2] != twice[2:]  # each caption has draws of its own
    assert len({false for _, _, false in first[0]["negatives"]}) > 3


def test_orders_that_do_not_exist_are_left_out(opened):
    assert by_kind(opened({"caption": ["red dog"]})).keys() == {"shuffle_within_trigrams"}
    with pytest.raises(ConfigError, match="no annotations"):
        opened({"caption": ["dog"]})
    assert len(opened({"caption": ["dog", "red dog"]})[0]["negatives"]) == 1


def test_options_of_a_file_are_taken_as_they_are(opened):
    options = ["A dog.", "Dog a.", "a. Dog", "A dog.", "dog A."]
    example = opened({"caption_options": options})[0]
    assert example["negatives"] == [(f"option_{i}", "A dog.", options[i]) for i in (1, 2, 4)]
    assert example["groups"] == ["0"] * 3 and example["captions"] == ["A dog."]
    bad = opened({"caption_options": options}, {"caption_options": ["x", None]}, {"caption": 7}, {})
    assert [reason for _, reason, _ in bad.unreadable] == ["bad row"] * 3
