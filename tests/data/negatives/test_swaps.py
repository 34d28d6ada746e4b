import collections
import re

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.negatives import swaps
from mmjax.data.negatives.generate import Generator

TAGS = {
    **dict.fromkeys(("a", "an", "the"), "DT"),
    **dict.fromkeys(("two", "three"), "CD"),
    **dict.fromkeys(("red", "blue", "old", "orange", "big"), "JJ"),
    **dict.fromkeys(("cats", "dogs", "hats"), "NNS"),
    **dict.fromkeys(("quickly", "slowly"), "RB"),
    "is": "VBZ", "sleeping": "VBG", "running": "VBG", "slept": "VBD", "and": "CC", "kicking": "VBG", "standing": "VBG",
    "on": "IN", "near": "IN", "Bob": "NNP", "there": "EX", "next": "JJ", "to": "TO",
}  # fmt: skip


def find_tags(tokens):
    """Parts of speech by a table; words that it lacks are nouns."""
    tag_of = {token: TAGS.get(token, TAGS.get(token.lower(), "NN" if token[0].isalnum() else ".")) for token in tokens}
    return [[token, tag_of[token]] for token in tokens]


def swapped(caption, kind):
    """All that different seeds make of it."""
    tagged = swaps.Tagged(caption, find_tags=find_tags)
    return {tagged.swap(kind, np.random.default_rng(seed)) for seed in range(12)}


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("adjective", "a red cat near a blue mat", {"a blue cat near a red mat"}),
        ("noun", "a red cat near a blue mat", {"a red mat near a blue cat"}),
        ("noun", "A cat on a fire hydrant.", {"A fire hydrant on a cat."}),
        ("noun", "Cats on dogs", {"Dogs on cats"}),
        ("noun", "Bob on a cat", {"cat on a Bob"}),
        ("noun_phrase", "A red cat on the blue mat!", {"The blue mat on a red cat!"}),
        (
            "noun",
            "a man kicking a cat near a dog",
            {"a cat kicking a man near a dog", "a man kicking a dog near a cat", "a dog kicking a cat near a man"},
        ),
        ("noun_phrase", "the cat is sleeping near a dog", {"a dog is sleeping near the cat"}),
        ("adverb", "a cat runs quickly near dogs slowly", {"a cat runs slowly near dogs quickly"}),
        ("verb_phrase", "a man is sleeping near a dog is running", {"a man is running near a dog is sleeping"}),
        # What is left out:
        ("noun", "a cat and a dog", {None}),  # the order of a list means nothing
        ("noun", "cats, dogs and hats", {None}),
        ("noun_phrase", "a red cat, the old dog and a hat", {None}),
        ("adjective", "a big and old cat", {None}),
        ("adjective", "a big red cat", {None}),
        ("noun_phrase", "cat is on a mat", {None}),  # one of them is a noun alone
        ("noun", "A cat near a fire hydrant.", {None}),  # says the same
        ("noun", "a red cat near the red mat", {None}),
        ("noun_phrase", "A red cat near the blue mat!", {None}),
        ("noun_phrase", "there is a cat standing next to a dog", {None}),
        ("adjective", "red cats and blue dogs", {"blue cats and red dogs"}),
        ("noun", "a cat near dogs", {None}),  # number
        ("adjective", "an old cat near a red mat", {None}),  # the article
        ("verb_phrase", "a man slept near a dog is running", {None}),
        ("noun", "a cat near a CAT", {None}),
        ("noun", "a cat", {None}),
        ("noun", "", {None}),
    ],
)
def test_two_spans_change_places(kind, caption, expected):
    assert swapped(caption, kind) == expected


def test_words_stay_whole_and_the_same():
    generator = np.random.default_rng(0)
    vocabulary = [*TAGS, "cat", "mat", "x-ray", "child's", ",", "."]
    count = 0
    for _ in range(300):
        caption = " ".join(generator.choice(vocabulary, 9))
        for kind in swaps.KINDS:
            for false in swapped(caption, kind) - {None}:
                count += 1
                assert false != caption
                bags = [collections.Counter(re.findall(r"[\w'’-]+|[^\w\s]", t.casefold())) for t in (caption, false)]
                assert bags[0] == bags[1]
    assert count > 300


def test_without_textblob_the_error_is_one_line(monkeypatch):
    swaps.tagger.cache_clear()
    monkeypatch.setattr(swaps.importlib, "import_module", lambda name: __import__("no_such_module"))
    with pytest.raises(ConfigError, match=r"^--method=swap: .*pip install 'mmjax\[negatives\]', or use --method=rules"):
        Generator("swap", swaps.KINDS, seed=0)
    swaps.tagger.cache_clear()


@pytest.mark.filterwarnings("ignore")  # it leaves the file of its lexicon open
def test_textblob_finds_the_parts():
    pytest.importorskip("textblob")
    rows = Generator("swap", swaps.KINDS, seed=0).rows("k", ["A small white dog is chasing a big black horse."])
    assert {row["kind"] for row in rows} >= {"swap_noun", "swap_adjective", "swap_noun_phrase"}
