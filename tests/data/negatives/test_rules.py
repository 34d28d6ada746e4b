import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.data.negatives.rules import KINDS, replace_words, word_list
from mmjax.data.reader import Reader
from mmjax.data.sample import Sample
from mmjax.data.source import Source
from mmjax.data.transform_chain import TransformChain
from mmjax.data.transforms.negatives_rules import Transform

WORDS = re.compile(r"[\w'’-]+")


def rng(seed=0):
    return np.random.default_rng(seed)


def test_only_whole_words_are_exchanged():
    for seed in range(40):
        assert replace_words("a tired, bored man", "color", rng(seed)) is None  # both end in "red"
        assert replace_words("a red-eyed cat at the plant's leaf", "color", rng(seed)) is None
        false = replace_words("a tired man in a red hat", "color", rng(seed))
        assert re.fullmatch(r"a tired man in a (?!red\b)[\w -]+ hat", false)


def test_entries_of_several_words_are_one():
    found = {replace_words("people waiting in line", "action", rng(seed)) for seed in range(50)}
    assert len(found) > 10 and all(text.startswith("people ") and "in line" not in text for text in found)
    assert all("light" not in replace_words("a light blue car", "color", rng(seed)) for seed in range(50))


def test_words_of_one_meaning_are_never_exchanged():
    for seed in range(60):
        false = replace_words("a big dog", "size", rng(seed))
        assert not {"large", "huge", "giant", "massive", "gigantic"} & set(false.split())


def test_actions_keep_or_lack_their_object():
    with_object = {replace_words("a man washing a bus", "action", rng(seed)) for seed in range(60)}
    without = {replace_words("a man running near a bus", "action", rng(seed)) for seed in range(60)}
    assert "a man pushing a bus" in with_object and "a man sleeping near a bus" in without
    assert not {text.split()[2] for text in with_object} & {text.split()[2] for text in without}


def test_the_article_and_the_case_tell_nothing():
    for seed in range(60):
        assert re.fullmatch(r"an [aeiou].* hat", replace_words("an orange hat", "color", rng(seed)) or "an orange hat")
        assert re.fullmatch(r"a [^aeiou].* hat", replace_words("a red hat", "color", rng(seed)))
        assert replace_words("Red hats", "color", rng(seed))[0].isupper()
        assert replace_words("A RED HAT", "color", rng(seed)).isupper()


def test_lists_are_clean():
    for kind in KINDS:
        entries = list(word_list(kind).line_of)
        assert len(set(entries)) == len(entries) >= 15
        assert all(
            entry == entry.strip().casefold() and re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", entry) for entry in entries
        )


ENTRIES = [entry for kind in KINDS for entry in word_list(kind).line_of]


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([*ENTRIES, "a", "an", "dog", "scared", "’s", "ü,", "The"]), max_size=9), st.integers(0, 99)
)
@example(["an", "orange"], 0)
def test_one_place_changes_to_another_entry(pieces, seed):
    caption = " ".join(pieces)
    for kind in KINDS:
        false = replace_words(caption, kind, rng(seed))
        if false is None:
            continue
        assert false != caption and false == replace_words(caption, kind, rng(seed))
        lines = word_list(kind).line_of
        changed = [
            (old, new, place.start())
            for place in word_list(kind).pattern.finditer(caption)
            for old in [place[0]]
            for new in lines
            if lines[new] != lines[old.casefold()]
            and lines[new][0] == lines[old.casefold()][0]
            and (caption[: place.start()] + new + caption[place.end() :]).casefold() == false.casefold()
        ]
        assert changed


class Plain(Source):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        caption = ["a red cube of wood", "a dog"][index]
        return {"id": index, "captions": [caption], "image": np.zeros((4, 4, 3), np.uint8)}


def test_the_transform_gives_negatives_to_any_source():
    chain = TransformChain([("negatives_rules", {"kinds": ("color", "size")})], image_size=4, modalities=("image",))
    reader = Reader(Plain(), chain, seed=0, negative_rows=2)
    reader.first()
    negatives = [reader.sample(n, 0, [0.0] * 3, component=range(2))[0].fields["negatives"] for n in range(20)]
    assert all(len(one) == 1 and one[0][0] == "replace_color" for one in negatives)
    assert len({one[0][2] for one in negatives}) > 5  # another one each time
    assert reader.sample(3, 0, [0.0] * 3, component=range(2))[0].fields["negatives"] == negatives[3]
    assert reader.sample(1, 1, [0.0] * 3, component=range(2))[0].fields["negatives"] == []


def test_the_transform_keeps_those_of_the_data_and_repeats_none():
    own = [("own", "a red hat", f"a {color} hat") for color in ("blue", "green")]
    sample = Sample(id=0, key="0", captions=["a red hat", "a red hat"], fields={"negatives": own})
    made = Transform()(sample, rng()).fields["negatives"]
    assert made[:2] == own and len(own) == 2
    assert len({false for _, _, false in made}) == len(made)


class Captioned(Plain):
    """An example whose captions contradict each other, with a negative that is one of them."""

    def __getitem__(self, index):
        false = [("own", "a red cube", text) for text in ("A Blue cube", "a green cube")]
        return super().__getitem__(index) | {"captions": ["a red cube", "a blue cube"], "negatives": false}


@pytest.mark.parametrize("transforms", [[], [("negatives_rules", {"kinds": ("color",)})]])
def test_another_caption_of_the_image_is_no_negative(transforms):
    chain = TransformChain(transforms, image_size=4, modalities=("image",))
    reader = Reader(Captioned(), chain, seed=0, negative_rows=9)
    reader.first()
    made = [reader.sample(n, 0, [0.0] * 10, component=range(2))[0].fields["negatives"] for n in range(60)]
    texts = {false.casefold() for one in made for _, _, false in one}
    assert "a green cube" in texts and not {"a red cube", "a blue cube"} & texts
    assert len(texts) == 1 if not transforms else len(texts) > 8


class Mirrored(Plain):
    """Captions and negatives that a mirror image exchanges."""

    def __getitem__(self, index):
        false = [("own", "a cat left of a dog", text) for text in ("a cat right of a dog", "A cat left of a dog")]
        return super().__getitem__(index) | {"captions": ["a cat left of a dog", "a cat"], "negatives": false}


def test_the_false_caption_of_a_mirror_image_is_the_true_one_of_the_picture():
    transforms = [("flip", {"horizontal": 1.0}), ("negatives_rules", {"kinds": ("color",)})]
    chain = TransformChain(transforms, image_size=4, modalities=("image",))
    reader = Reader(Mirrored(), chain, seed=0, captions="first", negative_rows=2)
    sample, _ = reader.sample(0, 0, [0.0] * 3, component=range(2))
    assert sample.captions == ["a cat right of a dog"]
    assert sample.fields["negatives"] == [("own", "a cat right of a dog", "a cat left of a dog")]


@pytest.mark.parametrize("kinds", [(), ("color", "color"), ("shape",)])
def test_kinds_are_checked(kinds):
    with pytest.raises(ValueError, match=r"^kinds"):
        Transform(kinds=kinds)
