"""Replies of models: what is asked for is found, and nothing raises."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.generate import parsers
from support.generating import REPLIES

KINDS = ("color", "shape", "material", "other")
ROW = {"kind": "color", "value": "red", "other": "blue", "caption": "a red ball", "wrong": "a blue ball"}
PARSERS = (
    parsers.first_line,
    lambda text: parsers.rewrite(text, caption="=>"),
    lambda text: parsers.choice(text, ["a", "1.", "]"]),
    parsers.without_thoughts,
    parsers.list_lines,
    parsers.json_object,
    lambda text: parsers.objects(text, most=3),
    lambda text: parsers.attributes(text, kinds=KINDS),
)


@settings(max_examples=60)
@given(REPLIES)
def test_no_reply_raises(text):
    for parser in PARSERS:
        parser(text)


@given(st.recursive(st.none() | st.text(max_size=3) | st.integers(), lambda x: st.lists(x, max_size=3), max_leaves=4))
def test_json_of_other_types_is_refused(value):
    for name in ("objects", "attributes"):
        text = json.dumps({name: value})
        assert parsers.attributes(text, kinds=KINDS) in (None, [])
        found = parsers.objects(text, most=9)
        assert found is None or all(isinstance(item, str) and item for item in found)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ("a dog\nand more", "a dog"),
        ("Sure! Here it is:\n\na dog\n", "a dog"),
        ("Sure:", "Sure:"),
        ("  \n\n", None),
        ("“quoted”", "quoted"),
    ],
)
def test_first_line(reply, line):
    assert parsers.first_line(reply) == line


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (" a puppy", "a puppy"),
        ("a puppy\na cat => a kitty\na bird => a small bird", "a puppy"),  # a model that goes on by itself
        ("a puppy\nthere is a dog => a puppy is there\n", "a puppy"),
        ("Sure! Here is another way:\n\n“a puppy”\n\nI hope that it helps.", "a puppy"),
        ("a cat => a kitty\na dog => \n  'a puppy' \nx", "a puppy"),
        ("Of course.\n- A  dog => a puppy", "a puppy"),
        ("=> a puppy", "a puppy"),
        ("a hound => a puppy", "a puppy"),
        ("a dog =>", None),
        ("", None),
    ],
)
def test_rewrites_are_those_of_the_caption(reply, text):
    assert parsers.rewrite(reply, caption="a dog") == text


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        ("dark blue", "dark blue"),
        ("The answer is Blue.", "blue"),
        ("It is dark blue, I think", "dark blue"),
        ("blue or red", None),
        ("bluish", None),
        ("", None),
    ],
)
def test_choices_are_found_in_sentences(reply, chosen):
    assert parsers.choice(reply, ["red", "blue", "dark blue", ""]) == chosen


def test_thoughts_are_no_reply():
    for reply in ("<think>\nHm: a cat?\n</think>\n\na dog", "Hm.\n</think>a dog", "a dog", "<think></think> a dog"):
        assert parsers.without_thoughts(reply) == "a dog"
    assert parsers.without_thoughts("<think>so long that") == ""


def test_lists_have_no_bullets_and_nothing_twice():
    reply = "Sure!\n1. a photo of a bird in snow.\n2) A photo of a bird at night\n- a photo of a bird in snow\n* else"
    assert parsers.list_lines(reply, begin="a photo of a bird") == [
        "a photo of a bird in snow",
        "A photo of a bird at night",
    ]


def test_attributes_differ_in_the_value_alone():
    def found(**changes):
        reply = f"Of course:\n```json\n{json.dumps({'attributes': [ROW | changes]})}\n```"
        return parsers.attributes(reply, kinds=KINDS)

    assert found() == [ROW]
    for wrong in (
        {"kind": "mood"}, {"other": "red"}, {"wrong": "a red ball"}, {"wrong": "a blue bat"}, {"value": ""},
        {"caption": "a bored ball", "wrong": "a boblue ball"}, {"other": 3},
    ):  # fmt: skip
        assert found(**wrong) == []
    assert found(caption="a red ball on red ground", wrong="a red ball on blue ground")
    assert found(caption="Red ball", wrong="Blue ball")
    assert found(other="orange", wrong="an orange ball") and found(value="red", other="orange", wrong="a orange ball")
    assert found(other="orange", wrong="an orange ban") == []
    assert (
        parsers.attributes("no", kinds=KINDS) is None and parsers.attributes('{"attributes": 1}', kinds=KINDS) is None
    )
