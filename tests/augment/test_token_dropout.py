"""Which words stay: how many, in which order, between the start and the end that no text loses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.token_dropout import Augmentation
from support.features import TOWERS

LENGTH, START, END, PAD = 12, 1, TOWERS.eos_id, TOWERS.pad_id


def texts(*counts, pad=PAD, length=LENGTH):
    """A text for each number of words, which are numbered from 10."""
    rows = [[START, *range(10, 10 + n), END] for n in counts]
    return jnp.asarray([row + [pad] * (length - len(row)) for row in rows], jnp.int32)


def shortened(ids, drop_rate, *, seed=0, of="words", **options):
    module = Augmentation(drop_rate=drop_rate, relative_to=of, **options)
    return np.asarray(module.drop_tokens(ids, jax.random.key(seed), drop_rate=drop_rate, towers=TOWERS))


def words(row):
    """The words of a shortened text; checks its frame."""
    row = row.tolist()
    assert row[0] == START and END in row, row
    end = row.index(END)
    assert all(token == PAD for token in row[end + 1 :]), row
    return row[1:end]


@pytest.mark.parametrize("kind", ["random", "block", "truncate"])
@pytest.mark.parametrize("of", ["words", "length"])
@pytest.mark.parametrize("drop_rate", [0.1, 0.25, 0.5, 0.9])
def test_a_text_keeps_its_fraction_of_words_in_their_order(kind, of, drop_rate):
    counts = [0, 1, 3, 7, 9, 10] * 8
    got = shortened(texts(*counts), drop_rate, of=of, kind=kind)
    most = math.ceil((LENGTH - 2) * (1 - drop_rate) - 1e-9)
    assert got.shape == (len(counts), most + 2)
    for n, row in zip(counts, got, strict=True):
        kept = words(row)
        assert len(kept) == (math.ceil(n * (1 - drop_rate) - 1e-9) if of == "words" else min(n, most))
        assert kept == sorted(set(kept)) and set(kept) <= set(range(10, 10 + n))
        if kept and kind == "block":
            assert kept == list(range(kept[0], kept[0] + len(kept)))
        if kept and kind == "truncate":
            assert kept[0] == 10 and kept[-1] == 9 + len(kept)


def test_every_word_stays_as_often_as_any_other_and_every_block_is_drawn():
    ids = texts(*[8] * 3000)
    stays = np.array([np.isin(np.arange(10, 18), words(row)) for row in shortened(ids, 0.5)])
    assert np.abs(stays.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / 3000**0.5
    starts = np.array([words(row)[0] - 10 for row in shortened(ids, 0.5, kind="block")])
    assert np.abs(np.bincount(starts, minlength=5) / 3000 - 0.2).max() < 4.5 * 0.4 / 3000**0.5


def test_padding_that_is_the_end_token_and_texts_without_either():
    """As CLIP pads; and a text that fills its row."""
    same = texts(3, 10, pad=END)
    got = shortened(same, 0.5)
    assert len(words(got[1])) == 5
    assert got[0].tolist()[:4].count(END) == 1 and got[0].tolist().index(END) == 3  # ⌈3/2⌉ words between
    full = jnp.asarray([[START, *range(10, 21)]], jnp.int32)  # no end token: the last place counts as the end
    row = shortened(full, 0.5)[0].tolist()
    assert row[0] == START and row[-1] == 20 and row == sorted(row)


def test_the_key_alone_decides_and_a_rate_of_zero_drops_nothing():
    ids = texts(9, 8, 7, 6)
    np.testing.assert_array_equal(shortened(ids, 0.5, seed=1), shortened(ids, 0.5, seed=1))
    assert not np.array_equal(shortened(ids, 0.5, seed=1), shortened(ids, 0.5, seed=2))
    assert Augmentation().drop_tokens(ids, jax.random.key(0), drop_rate=0.0, towers=TOWERS) is ids
