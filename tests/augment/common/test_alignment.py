import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common import alignment

ROWS, OWN, OTHER, WIDTH = 5, 6, 4, 3
OWN_VALID = np.arange(OWN) < np.array([6, 4, 1, 6, 5])[:, None]
OTHER_VALID = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]], bool)


def tokens(seed, n, scale=1.0):
    return np.float32(scale * np.random.default_rng(seed).normal(size=(ROWS, n, WIDTH)))


def similarity(seed=0):
    return np.float32(np.random.default_rng(seed).uniform(-1, 1, size=(ROWS, OWN, OTHER)))


def sinkhorn(cosine, own, other, temperature, iterations):
    """Of one pair in float64, with plain scalings; rows of the plan over their sums."""
    kernel = np.exp(np.float64(cosine) / temperature) * other
    v = np.ones(kernel.shape[1])
    for _ in range(iterations):
        u = (own / own.sum()) / (kernel @ v)
        v = other / other.sum() / np.where(other, kernel.T @ u, 1.0)
    plan = kernel * v
    return plan / plan.sum(axis=1, keepdims=True)


attention = jax.jit(alignment.attention_weights, static_argnames="temperature")
transport = jax.jit(alignment.transport_weights, static_argnames=("temperature", "iterations"))


def test_cosines_whatever_the_lengths():
    own, other = tokens(0, OWN), tokens(1, OTHER)
    want = [
        [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a] for a, b in zip(own, other, strict=True)
    ]
    call = jax.jit(alignment.cosine_similarities)
    np.testing.assert_allclose(call(own, other), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(call(1e4 * own, 1e-4 * other), want, rtol=1e-5, atol=1e-6)
    assert not np.any(call(0 * own, other))
    assert call(jnp.bfloat16(own), jnp.bfloat16(other)).dtype == jnp.float32


def test_attention_is_a_softmax_over_what_is_valid():
    cosine = similarity()
    got = np.asarray(attention(cosine, OTHER_VALID, temperature=0.2))
    for i in (0, 1, 2, 4):
        e = np.exp(np.float64(cosine[i]) / 0.2) * OTHER_VALID[i]
        np.testing.assert_allclose(got[i], e / e.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-7)
        assert not np.any(got[i][:, ~OTHER_VALID[i]])
    assert np.isfinite(got).all()


@pytest.mark.parametrize(("temperature", "iterations"), [(0.3, 7), (0.1, 100)])
def test_transport_is_sinkhorns_plan(temperature, iterations):
    cosine = similarity()
    got = np.asarray(transport(cosine, OWN_VALID, OTHER_VALID, temperature=temperature, iterations=iterations))
    assert np.isfinite(got).all()
    for i in (0, 1, 2, 4):
        want = sinkhorn(cosine[i], OWN_VALID[i], OTHER_VALID[i], temperature, iterations)
        np.testing.assert_allclose(got[i], want, rtol=2e-3, atol=1e-5)
        assert not np.any(got[i][:, ~OTHER_VALID[i]])
        np.testing.assert_allclose(got[i].sum(axis=1), 1, rtol=1e-5)
        if iterations == 100:  # every valid token carries its part of the mass of the valid own ones
            mass = got[i][OWN_VALID[i]].mean(axis=0)
            np.testing.assert_allclose(mass[OTHER_VALID[i]], 1 / OTHER_VALID[i].sum(), rtol=1e-3)


def test_transport_leaves_no_token_out_and_heeds_valid_own_ones_alone():
    cosine = similarity() * 0.1
    cosine[:, :, 1] += 0.9  # one word that all prefer
    chosen = lambda weights: {*np.argmax(np.asarray(weights)[0], axis=1).tolist()}  # noqa: E731
    plan = transport(cosine, OWN_VALID, OTHER_VALID, temperature=0.1, iterations=100)
    assert chosen(attention(cosine, OTHER_VALID, temperature=0.1)) == {1}
    assert chosen(plan) == {0, 1, 2, 3}
    padded = np.where(OWN_VALID[..., None], cosine, 1.0)
    again = transport(padded, OWN_VALID, OTHER_VALID, temperature=0.1, iterations=100)
    np.testing.assert_allclose(np.asarray(again)[OWN_VALID], np.asarray(plan)[OWN_VALID], rtol=1e-5)
    none = transport(cosine, OWN_VALID, OTHER_VALID, temperature=0.1, iterations=0)
    some = OTHER_VALID.any(axis=1)
    np.testing.assert_array_equal(none[some], attention(cosine, OTHER_VALID, temperature=0.1)[some])


def test_a_small_temperature_is_no_overflow():
    got = transport(similarity(), OWN_VALID, OTHER_VALID, temperature=1e-4, iterations=7)
    assert np.isfinite(got).all()


def test_hard_weights_and_their_entropy():
    weights = jnp.float32([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0.0, 1.0, 0.0]])
    hard = alignment.make_hard(weights)
    np.testing.assert_array_equal(hard, [[0, 1, 0], [1, 0, 0], [0, 1, 0]])
    w = np.asarray(weights, np.float64)
    want = [-(w[0] * np.log(w[0])).sum(), -(w[1] * np.log(w[1])).sum(), 0.0]
    np.testing.assert_allclose(alignment.entropy(weights), want, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda w: alignment.entropy(w).sum())(weights)).all()


def test_no_gradient_goes_through():
    own, other = tokens(0, OWN), tokens(1, OTHER)
    weight = similarity(3)

    def through(own, other, logits):
        cosine = alignment.cosine_similarities(own, other)
        a = alignment.attention_weights(cosine + logits, OTHER_VALID, temperature=0.1)
        b = alignment.transport_weights(cosine + logits, OWN_VALID, OTHER_VALID, temperature=0.1, iterations=3)
        return jnp.sum(weight * (a + b))

    for x in jax.jit(jax.grad(through, argnums=(0, 1, 2)))(own, other, similarity(4)):
        assert not np.any(x)


# Connectionist temporal classification: K - 1 labels and the blank.
K, LABELS = 4, 3
BLANK = K - 1
path_of = jax.jit(lambda log_probs, labels, valid: alignment.ctc_path(log_probs, labels, valid, blank=BLANK))


def log_probs(seed, rows, frames, scale=2.0):
    logits = scale * np.random.default_rng(seed).normal(size=(rows, frames, K))
    return np.float32(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


def collapsed(path):
    return tuple(k for k, _ in itertools.groupby(path) if k != BLANK)


@pytest.mark.parametrize("frames", [2, 5, 6])
def test_the_path_is_the_likeliest_of_all_that_spell_the_labels(frames):
    random = np.random.default_rng(frames)
    rows = 60
    labels = random.integers(0, K - 1, size=(rows, LABELS)).astype(np.int32)
    labels[:15, 1] = labels[:15, 0]  # adjacent ones that need a blank between them
    counts = random.integers(0, LABELS + 1, size=rows)
    counts[:8] = LABELS
    valid = np.arange(LABELS) < counts[:, None]
    scores = log_probs(frames, rows, frames)
    states, feasible = (np.asarray(x) for x in path_of(scores, labels, valid))
    positions = np.asarray(alignment.ctc_positions(jnp.asarray(states)))

    spelling = {}
    for path in itertools.product(range(K), repeat=frames):
        spelling.setdefault(collapsed(path), []).append(path)
    seen = 0
    for i in range(rows):
        wanted = tuple(labels[i, : counts[i]].tolist())
        possible = spelling.get(wanted, []) if wanted else []
        assert feasible[i] == bool(possible)
        if not possible:
            continue
        seen += 1
        value = lambda path, i=i: scores[i, np.arange(frames), path].sum(dtype=np.float64)  # noqa: E731
        got = tuple(BLANK if s % 2 == 0 else int(labels[i, s // 2]) for s in states[i])
        assert collapsed(got) == wanted
        np.testing.assert_allclose(value(np.array(got)), max(value(np.array(p)) for p in possible), rtol=1e-5)
        # Frames go through the labels in order, and miss none.
        assert set(np.diff(states[i])) <= {0, 1, 2} and set(np.diff(positions[i])) <= {0, 1}
        assert {*positions[i].tolist()} == {*range(counts[i])}
    assert seen > 5


def test_a_frame_of_no_label_takes_the_nearest_and_of_two_the_earlier():
    path = jnp.asarray([[0, 0, 1, 2, 2, 2, 3], [1, 2, 2, 2, 2, 3, 4], [0, 0, 0, 1, 3, 5, 6]])
    want = [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 2, 2]]
    np.testing.assert_array_equal(alignment.ctc_positions(path), want)


def test_paths_have_no_gradient_and_stay_within_the_labels_where_there_is_none():
    labels = np.zeros((2, LABELS), np.int32)
    valid = np.array([[True] * 3, [False] * 3])
    scores = log_probs(0, 2, 2, scale=50.0)
    states, feasible = path_of(scores, labels, valid)
    assert not np.any(feasible)
    assert np.all(states >= 0) and np.all(states <= 2 * LABELS)
    positions = alignment.ctc_positions(states)
    assert np.all(positions >= 0) and np.all(positions <= LABELS)

    def through(scores):
        return jnp.sum(alignment.ctc_positions(path_of(scores, labels, valid)[0]).astype(jnp.float32) * scores[..., 0])

    np.testing.assert_array_equal(jax.grad(through)(scores)[..., 0], positions)
