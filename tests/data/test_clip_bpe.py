"""CLIP's vocabulary file as a tokenizer, against the algorithm written out."""

import gzip
import itertools
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.text import get_cleaning
from mmjax.data.tokenizer import load

MERGES = [
    "t h",
    "th e</w>",
    "c a",
    "ca t</w>",
    "a n",
    "o n</w>",
    "r e",
    "re d</w>",
    "Ã ¤",
    "l l",
    "' s</w>",
    "1 2",
    "ã ģ",
]
TEXTS = [
    "", "The cat's on a RED mat", "it'll rain; 12 cats!", "Käse &amp;amp; Brot", "schÃ¶n", "a\t\n b\x0b\x85c\u2028d",
    "日本の猫", "😀👩‍🚀 ☃️", "'S 'Ll 'T''", "Ⅷ ½ ٣", "<|startoftext|> x <|endoftext|>", "ﬁne İstanbul", "one " * 40,
]  # fmt: skip


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(MERGES)).encode()))
    return path


def bytes_as_characters():
    printable = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xAD) and not 0x7F <= b <= 0xA0]
    hidden = iter(range(256, 512))
    return {b: chr(b) if b in printable else chr(next(hidden)) for b in range(256)}, printable


def by_hand(text):
    """Pieces, then the merge of lowest rank until none is left."""
    characters, printable = bytes_as_characters()
    order = [*map(chr, printable), *(chr(n) for n in range(256, 256 + 256 - len(printable)))]
    merges = [tuple(line.split()) for line in MERGES]
    names = [*order, *(c + "</w>" for c in order), *("".join(pair) for pair in merges)]
    number = {name: i for i, name in enumerate(names)}
    ids = []
    for piece in pieces(text):
        symbols = [characters[b] for b in piece.encode()]
        symbols[-1] += "</w>"
        while pairs := [p for p in itertools.pairwise(symbols) if p in merges]:
            best = min(pairs, key=merges.index)
            i = next(i for i, p in enumerate(itertools.pairwise(symbols)) if p == best)
            symbols[i : i + 2] = ["".join(best)]
        ids += [number[s] for s in symbols]
    return ids, len(names)


def pieces(text):
    def kind(c):
        return "space" if c.isspace() else {"L": "letter", "N": "number"}.get(unicodedata.category(c)[0], "other")

    i = 0
    while i < len(text):
        end = next((e for e in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(e, i)), None)
        if end is not None:
            yield end
            i += len(end)
            continue
        j = i + 1
        if kind(text[i]) in ("letter", "other"):
            while j < len(text) and kind(text[j]) == kind(text[i]):
                j += 1
        if kind(text[i]) != "space":
            yield text[i:j]
        i = j


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_algorithm(vocabulary, text):
    tokenizer = load(str(vocabulary), context_length=24)
    body, size = by_hand(get_cleaning("lower")(text))
    expected = [size, *body[:22], size + 1]
    assert tokenizer([text])[0].tolist() == expected + [0] * (24 - len(expected))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (size, size + 1, 0, size + 2)


def test_saved_and_pickled_it_is_the_same(vocabulary, tmp_path):
    tokenizer = load(str(vocabulary), context_length=24)
    tokenizer.save(tmp_path / "saved")
    for copy in (pickle.loads(pickle.dumps(tokenizer)), load(str(tmp_path / "saved"), context_length=24)):
        np.testing.assert_array_equal(copy(TEXTS), tokenizer(TEXTS))


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", *map(gzip.compress, (b"heading only", b"x\na b c\n", b"x\n\xff \xfe\n", b"x\nqq zz\n"))],
    ids=["empty", "plain", "heading", "three", "bytes", "unknown"],
)
def test_another_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "bad.txt.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad.txt.gz'.*fetch it again"):
        load(str(tmp_path / "bad.txt.gz"), context_length=24)


@pytest.mark.skipif("MMJAX_CLIP_VOCABULARY" not in os.environ, reason="set it to CLIP's bpe_simple_vocab_16e6.txt.gz")
def test_ids_of_clips_own_file():
    """Ids of the CLIP paper's repository: a photo of a cat."""
    tokenizer = load(os.environ["MMJAX_CLIP_VOCABULARY"], context_length=77)
    assert tokenizer(["a photo of a cat"])[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert tokenizer.vocab_size == 49408


@pytest.mark.parametrize(
    ("name", "text", "cleaned"),
    [
        (None, " A\u00a0b ", " A\u00a0b "),
        ("whitespace", "A&amp;lt;\t b ", "A< b"),
        ("lower", "SchÃ¶n  A", "schön a"),
        ("canonicalize", "A_b, (C)!", "a b c"),
    ],
)
def test_cleaning(name, text, cleaned):
    assert get_cleaning(name)(text) == cleaned


def test_a_wrong_name_of_cleaning_is_refused(vocabulary):
    assert Path(vocabulary).exists()
    with pytest.raises(ConfigError, match="clean='upper'"):
        load(str(vocabulary), context_length=24, clean="upper")


def test_a_greek_iota_below_ends_a_word_and_has_no_id_as_in_open_clip(vocabulary):
    ids = load(str(vocabulary), context_length=12)(["a\u0345b", "a b"])
    assert ids[0].tolist() == ids[1].tolist()
