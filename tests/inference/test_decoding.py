"""Decoding against brute force and against the laws of its draws, on language models that are tables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.inference.decoding import DecodingConfig, Loop, Special, cut

PAD, END, START = 0, 1, 2
VOCAB, LENGTH = 6, 5  # the words are 3, 4 and 5
SPECIAL = Special(end=END, pad=PAD, start=START)
LOGITS = 1.5 * np.random.default_rng(0).normal(size=(3, LENGTH, VOCAB, VOCAB))  # row, position, previous -> next


def step(cache, previous, position):
    """The cache has the row's number and, so that a wrong order of rows shows, a sum of all words before."""
    (row, past), rows = cache, jnp.arange(len(previous))
    past = past.at[0].add(previous)
    logits = jnp.asarray(LOGITS, jnp.float32)[row[0], position, previous]
    logits = logits + 0.3 * (past[0] % 5).astype(jnp.float32)[:, None] * jnp.arange(6.0)
    assert logits.shape == (len(rows), VOCAB)
    return logits, (row, past)


def log_p(row, text):
    """The probability of what follows the start, by the definition."""
    total, past = 0.0, 0
    for position in range(1, len(text)):
        past += text[position - 1]
        logits = LOGITS[row, position, text[position - 1]] + 0.3 * (past % 5) * np.arange(6)
        total += logits[text[position]] - np.log(np.exp(logits).sum())
        if text[position] == END:
            break
    return total


def all_texts(shortest=0):
    for n in range(LENGTH - 1):
        for body in itertools.product((3, 4, 5), repeat=n):
            if n >= shortest:
                yield (START, *body, END)
    for body in itertools.product((3, 4, 5), repeat=LENGTH - 1):
        yield START, *body


def decoded(config, rows=3, seed=0):
    loop = Loop(config, SPECIAL, length=LENGTH, first=1)
    numbers = jnp.arange(rows) % 3
    cache = (numbers[None], jnp.zeros((1, rows), jnp.int32))
    keys = jax.random.split(jax.random.key(seed), rows)
    return jax.tree.map(np.asarray, jax.jit(lambda cache, keys: loop(step, cache, keys))(cache, keys))


def padded(text):
    return [*text, *[PAD] * (LENGTH - len(text))]


@pytest.mark.parametrize(("penalty", "shortest"), [(0.0, 0), (1.0, 0), (2.0, 3)])
def test_beams_find_the_best_text(penalty, shortest):
    config = DecodingConfig(method="beam", beams=100, length_penalty=penalty, min_length=shortest)
    tokens, totals = decoded(config)
    for row in range(3):
        best = max(all_texts(shortest), key=lambda text: log_p(row, text) / (len(text) - 1) ** penalty)
        assert tokens[row].tolist() == padded(best)
        np.testing.assert_allclose(totals[row], log_p(row, best), rtol=1e-5)


def test_greedy_decoding_may_be_asked_for_as_one_beam():
    np.testing.assert_array_equal(decoded(DecodingConfig(beams=1))[0], decoded(DecodingConfig())[0])


def test_few_beams_are_those_of_plain_python():
    tokens, totals = decoded(DecodingConfig(method="beam", beams=2, length_penalty=0.7))
    for row in range(3):
        alive, done = [((START,), 0.0)], []
        for position in range(1, LENGTH):
            texts = [((*text, word), None) for text, _ in alive for word in (END, 3, 4, 5)]
            texts = sorted(((text, log_p(row, text)) for text, _ in texts), key=lambda one: -one[1])[:4]
            ends = [one for one in texts if one[0][-1] == END or position == LENGTH - 1]
            done = sorted(done + ends, key=lambda one: -one[1] / (len(one[0]) - 1) ** 0.7)[:2]
            alive = [one for one in texts if one not in ends][:2]
        assert tokens[row].tolist() == padded(done[0][0])
        np.testing.assert_allclose(totals[row], done[0][1], rtol=1e-5)


def test_greedy_takes_the_most_probable_word_each_time_and_is_a_beam_of_one():
    tokens, totals = decoded(DecodingConfig())
    for row in range(3):
        text = [START]
        while len(text) < LENGTH and text[-1] != END:
            text.append(max((END, 3, 4, 5), key=lambda word: log_p(row, (*text, word))))
        assert tokens[row].tolist() == padded(text)
        np.testing.assert_allclose(totals[row], log_p(row, text), rtol=1e-5)


def test_lengths_are_kept():
    long, _ = decoded(DecodingConfig(method="sample", min_length=3), rows=300)
    assert all(END not in row[:4] for row in long.tolist()) and (long[:, 4] == END).any() and (long[:, 4] != END).any()
    assert not np.isin(long[:, 1:4], [PAD, START]).any()


def chi_square(counts, p):
    """The statistic and its 1 - 1e-4 quantile by Wilson and Hilferty."""
    expected = counts.sum() * p[p > 0]
    freedom = len(expected) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    return np.sum((counts[p > 0] - expected) ** 2 / expected), limit


def law(p, *, temperature=1.0, top_k=None, top_p=None):
    """What is drawn, by the definitions: sort, cut, renormalize."""
    p = p ** (1 / temperature)
    p = p / p.sum()
    order = np.argsort(-p)[:top_k]
    kept = p[order] / p[order].sum()
    if top_p is not None:
        kept = kept[: np.searchsorted(np.cumsum(kept), top_p) + 1]
    out = np.zeros_like(p)
    out[order[: len(kept)]] = kept / kept.sum()
    return out


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 2}, {"top_p": 0.9}, {"temperature": 0.5}, {"top_k": 3, "top_p": 0.8, "temperature": 2.0}],
)
def test_draws_follow_their_law(options):
    """The two words after the start, of one row over and over."""
    words = np.array([END, 3, 4, 5])
    tokens, totals = decoded(DecodingConfig(method="sample", **options), rows=6000, seed=1)
    tokens, totals = tokens[::3], totals[::3]
    p = np.zeros(VOCAB)
    p[words] = np.exp([log_p(0, (START, word)) for word in words])
    expected = law(p, **options)
    counts = np.bincount(tokens[:, 1], minlength=VOCAB)
    assert not counts[expected == 0].any()
    statistic, limit = chi_square(counts, expected)
    assert statistic < limit
    wrong = law(p) if options else np.full(VOCAB, 0.25) * (p > 0)
    if not np.any((wrong == 0) & (counts > 0)) and not np.allclose(wrong, expected):
        assert chi_square(counts, wrong)[0] > limit  # and the test would see another law
    for text, total in zip(tokens[:50].tolist(), totals[:50], strict=True):
        end = text.index(END) + 1 if END in text else LENGTH
        np.testing.assert_allclose(total, log_p(0, text[:end]), rtol=1e-5)


def test_rows_draw_with_their_own_keys_and_equal_keys_draw_equally():
    config = DecodingConfig(method="sample")
    one, _ = decoded(config, rows=30, seed=5)
    again, _ = decoded(config, rows=30, seed=5)
    other, _ = decoded(config, rows=30, seed=6)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and len({tuple(row) for row in one[::3].tolist()}) > 2


def test_a_tie_keeps_as_many_as_were_asked_for():
    kept = cut(jnp.zeros((1, 5)), DecodingConfig(method="sample", top_k=3))
    assert (np.asarray(kept) == 0).sum() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, r"top_k=3: is for method='sample', not 'greedy'"),
        ({"method": "beam", "temperature": 0.5}, r"temperature=0\.5: is for method='sample'"),
        ({"min_length": 5, "max_length": 4}, r"min_length=5: is more than max_length=4"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DecodingConfig(**options)
