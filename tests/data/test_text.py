import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.data.sample import Unreadable
from mmjax.data.text import captions_of, clean, why_not_utf8


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        (" a\tred\n circle ", "a red circle"),
        ("\ufeffA Red circle.", "A Red circle."),
        ("a\x00b\x07c", "abc"),
        ("a\r\nb\x85c\u2028d", "a b c d"),
        ("naïve café 日本 👩‍👩‍👧", "naïve café 日本 👩‍👩‍👧"),
        ("\x00\x01 \x7f", ""),
        ("", ""),
    ],
)
def test_a_caption_becomes_one_line_of_text(raw, cleaned):
    assert clean(raw) == clean(raw.encode()) == cleaned


@pytest.mark.parametrize("raw", [b"caf\xe9", b"\xff\xfea", "a\udce9", "\ud800", b"\xc0\x80", b"\xed\xa0\x80"])
def test_only_utf8_is_text(raw):
    with pytest.raises(Unreadable, match="caption is not UTF-8") as error:
        clean(raw)
    assert error.value.reason == "caption is not UTF-8"
    with pytest.raises(Unreadable, match=r"^k: caption is not UTF-8"):
        captions_of(["fine", raw], "k")


def test_long_texts_are_cut():
    assert clean("ab " * 10, limit=5) == "ab ab"
    assert len(clean("word " * 1_000_000)) == 4096
    assert clean("日" * 100_000) == "日" * 4096


SAID = 'A Man\'s  half-eaten pizza/pie, "hot" (very)! #1: <person> ~ok; what? yes.'


def test_blip_keeps_commas_apostrophes_hyphens_and_question_marks():
    assert clean(SAID, norm="blip") == "a man's half-eaten pizza/pie, hot very 1 <person> ok what? yes"


def test_albef_takes_punctuation_out_and_splits_at_hyphens_and_slashes():
    assert clean(SAID, norm="albef") == "a mans half eaten pizza pie hot very 1 person ok what yes"


@pytest.mark.parametrize("norm", ["blip", "albef"])
def test_the_published_cleanings_keep_thirty_words(norm):
    words = [f"W{i}" for i in range(40)]
    assert clean(" ".join(words), norm=norm).split() == [w.lower() for w in words[:30]]
    assert len(clean(" ".join(words)).split()) == 40


@pytest.mark.parametrize("norm", ["none", "blip", "albef"])
@given(st.text())
def test_cleaning_is_idempotent_and_leaves_no_control_characters(norm, text):
    text = text.encode("utf-8", "ignore").decode()
    once = clean(text, norm=norm)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ufeff]|  |^ | $", once)
    assert clean(once, norm="none") == once
    if norm != "none":
        assert clean(once, norm=norm) == once


def test_empty_captions_are_left_out_and_the_order_stays():
    assert captions_of([" b ", "", None, "\x00", b"a", "b"], "k") == ["b", "a", "b"]
    assert captions_of("one", "k") == captions_of(b"one", "k") == ["one"]
    assert captions_of(iter(["a", "b", "c"]), "k", most=2) == ["a", "b"]
    assert captions_of(["A.B"], "k", norm="blip") == ["a b"]


@pytest.mark.parametrize("values", [None, [], "", [""], [None], "\x00 ", [" ", b"\t"]])
def test_an_example_without_a_caption_is_named(values):
    with pytest.raises(Unreadable, match=r"^k: no caption") as error:
        captions_of(values, "k")
    assert (error.value.reason, error.value.key) == ("no caption", "k")


@pytest.mark.parametrize("values", [5, [5], [["a"]], [{"a": 1}], 1.5])
def test_a_caption_of_another_type_is_a_bad_row(values):
    with pytest.raises(Unreadable, match="bad row") as error:
        captions_of(values, "k")
    assert error.value.reason == "bad row"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_latin_1_is_recognized_and_other_encodings_are_not_taken_for_it(encoding):
    for text in ("un café au lait", "ein Mädchen, ein Bär; größer", "«año» 2020"):
        why = why_not_utf8(text.encode(encoding))
        assert f"in Latin-1 it is {text!r}: convert the file by iconv" in why
        surrogates = text.encode(encoding).decode("utf-8", "surrogateescape")
        assert why_not_utf8(surrogates) == why
        with pytest.raises(Unreadable, match="iconv"):
            clean(text.encode(encoding))
    for data in (
        "кошка и собака".encode("cp1251"),
        "日本の猫".encode("shift-jis"),
        "日本".encode()[:-1],
        b"a\xff\xfe\0",
    ):
        assert why_not_utf8(data) and "Latin-1" not in why_not_utf8(data)
    assert why_not_utf8("naïve 日本") == why_not_utf8("naïve 日本".encode()) == ""
    assert "surrogates" in why_not_utf8("\ud800")
