"""Both divergences against loops over rows and entries in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.divergences import bernoulli_consistency, softmax_consistency

MASKS = ("abs", "correct", "rel")


def logits(seed, n=6, spread=2.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, n)) * spread, random.normal(size=(n, n)) * spread


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_rows(changed, clean, threshold, mask="abs"):
    q, p = softmax(changed), softmax(clean)
    top = p.max(1)
    limit = threshold * (top.max() if mask == "rel" else 1)
    keep = top > limit
    if mask == "correct":
        keep &= p.argmax(1) == np.arange(len(p))
    return (keep * (q * (np.log(q) - np.log(p))).sum(1)).sum() / len(p), keep.mean()


def measured(changed, clean, threshold, *, mask="abs", valid=None):
    valid = jnp.ones(len(changed), bool) if valid is None else jnp.asarray(valid)
    return softmax_consistency(
        jnp.float32(changed), jnp.float32(clean), valid=valid, threshold=jnp.float32(threshold), mask=mask
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.1])
def test_of_rows_it_is_the_closed_form(mask, threshold):
    changed, clean = logits(0)
    want, fraction = by_rows(changed, clean, threshold, mask)
    got, kept = measured(changed, clean, threshold, mask=mask)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(kept, fraction, rtol=1e-6)
    if threshold == 0.0 and mask == "abs":
        assert abs(measured(clean, changed, threshold)[0] - want) > 1e-3  # the changed one comes first
    if threshold > 1:
        assert got == 0


def test_the_sum_is_divided_by_all_rows_and_not_by_the_confident_ones():
    changed, clean = logits(1)
    clean[2] = 0.0  # as uncertain as can be
    value = measured(changed, clean, 0.4)[0]
    want, fraction = by_rows(changed, clean, 0.4)
    assert 0 < fraction < 1
    np.testing.assert_allclose(value, want, rtol=1e-5)
    per_row = (softmax(changed) * np.log(softmax(changed) / softmax(clean))).sum(1)
    keep = softmax(clean).max(1) > 0.4
    np.testing.assert_allclose(value, per_row[keep].sum() / 6, rtol=1e-5)


def test_an_unconfident_row_changes_nothing_and_the_threshold_itself_is_outside():
    changed, clean = logits(2)
    clean[1] = 0.0
    other = changed.copy()
    other[1] += np.arange(6)
    assert measured(changed, clean, 0.3)[0] == measured(other, clean, 0.3)[0]
    grad = jax.grad(lambda x: measured(x, clean, 0.3)[0])(jnp.float32(changed))
    np.testing.assert_array_equal(grad[1], 0)
    assert np.any(grad)
    even = np.zeros((4, 4))
    assert measured(np.random.default_rng(0).normal(size=(4, 4)), even, 0.25)[0] == 0
    assert measured(np.random.default_rng(0).normal(size=(4, 4)), even, 0.2499)[0] > 0


def test_padding_is_in_no_prediction():
    changed, clean = logits(3)
    valid = np.array([True] * 4 + [False] * 2)
    got = measured(changed, clean, 0.3, valid=valid)
    np.testing.assert_allclose(got, measured(changed[:4, :4], clean[:4, :4], 0.3), rtol=1e-6)


POSITIVE = np.eye(6, dtype=bool) | (np.arange(6)[:, None] // 2 == np.arange(6) // 2) & (np.arange(6) < 2)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def by_entries(changed, clean, threshold, mask, *, negatives, positive=POSITIVE):
    """The docstring's sum, one entry at a time."""
    entries = []
    for b in range(len(clean)):
        rivals = sorted((j for j in range(len(clean)) if not positive[b, j]), key=lambda j: -clean[b, j])
        entries += [(b, j) for j in range(len(clean)) if positive[b, j]] + [(b, j) for j in rivals[:negatives]]
    sure = {e: max(1 / (1 + np.exp(-clean[e])), 1 / (1 + np.exp(clean[e]))) for e in entries}
    limit = threshold * (max(sure.values()) if mask == "rel" else 1)
    total = count = 0
    for e in entries:
        if sure[e] <= limit or (mask == "correct" and (clean[e] > 0) != positive[e]):
            continue
        log_q, log_p = log_sigmoid(changed[e]), log_sigmoid(clean[e])
        not_q, not_p = log_sigmoid(-changed[e]), log_sigmoid(-clean[e])
        total += np.exp(log_q) * (log_q - log_p) + np.exp(not_q) * (not_q - not_p)
        count += 1
    return total / len(clean), count / len(entries)


def pairwise(changed, clean, threshold, *, mask="abs", negatives=2, positive=POSITIVE, valid=None):
    valid = jnp.ones(len(clean), bool) if valid is None else jnp.asarray(valid)
    return bernoulli_consistency(
        jnp.float32(changed),
        jnp.float32(clean),
        positive=jnp.asarray(positive),
        valid=valid,
        threshold=jnp.float32(threshold),
        mask=mask,
        negatives=negatives,
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("negatives", [0, 2, 99])
def test_of_entries_it_is_the_closed_form(mask, negatives):
    changed, clean = logits(4)
    clean[2, 0] = -9.0  # surest of all, and no hard negative
    for threshold in (0.0, 0.7, 0.95, 1.1):
        want, fraction = by_entries(changed, clean, threshold, mask, negatives=negatives)
        got, kept = pairwise(changed, clean, threshold, mask=mask, negatives=negatives)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(kept, fraction, rtol=1e-6)
        if threshold == 0.0 and mask == "abs":
            assert kept == 1 and abs(pairwise(clean, changed, 0.0, negatives=negatives)[0] - want) > 1e-3
        if threshold == 0.7 and negatives:
            assert 0 < kept < 1
        if threshold > 1:
            assert got == kept == 0


def test_a_probability_at_the_threshold_is_outside():
    changed, _ = logits(5)
    even = np.zeros((6, 6))  # p = ½
    assert pairwise(changed, even, 0.5)[0] == 0
    assert pairwise(changed, even, 0.4999)[0] > 0


def test_only_positives_and_the_hardest_negatives_are_looked_at():
    changed, clean = logits(6)
    grad = np.asarray(jax.grad(lambda x: pairwise(x, clean, 0.0)[0])(jnp.float32(changed)))
    rivals = np.where(POSITIVE, -np.inf, clean)
    hardest = rivals >= np.sort(rivals, axis=1)[:, -2:-1]
    np.testing.assert_array_equal(grad != 0, POSITIVE | hardest)
    # Ties do not add rivals: two of five equal ones are taken.
    counted = np.asarray(
        jax.grad(lambda x: pairwise(x, np.zeros((6, 6)), 0.0, positive=np.eye(6, dtype=bool))[0])(jnp.float32(changed))
    )
    np.testing.assert_array_equal((counted != 0).sum(1), 3)


def test_it_is_zero_where_nothing_changed_and_positive_elsewhere():
    changed, clean = logits(7)
    assert abs(pairwise(clean, clean, 0.0)[0]) < 1e-7
    assert pairwise(changed, clean, 0.0)[0] > 0.1


def test_logits_of_hundreds_stay_numbers():
    """As with a scale of 100: probabilities are 0 and 1 in float32, their logarithms are not."""
    changed, clean = (100 * x for x in logits(8))
    want, _ = by_entries(changed, clean, 0.0, "abs", negatives=99)
    got, grad = jax.value_and_grad(lambda x: pairwise(x, clean, 0.0, negatives=99)[0])(jnp.float32(changed))
    assert want > 100
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.isfinite(grad).all()
    # d KL / d changed = q (1 - q) (changed - clean)
    small, _ = logits(9)
    grad = jax.grad(lambda x: pairwise(x, clean, 0.0, negatives=99)[0])(jnp.float32(small))
    q = 1 / (1 + np.exp(-small))
    np.testing.assert_allclose(grad, q * (1 - q) * (small - clean) / 6, rtol=1e-4, atol=1e-5)


def test_padding_is_no_positive_no_negative_and_no_row():
    changed, clean = logits(10)
    changed[4:], changed[:, 4:], clean[4:], clean[:, 4:] = 50, 50, 90, 90  # the hardest, were they any
    valid = np.array([True] * 4 + [False] * 2)
    for mask in MASKS:
        got = pairwise(changed, clean, 0.6, mask=mask, negatives=3, valid=valid)
        want = pairwise(changed[:4, :4], clean[:4, :4], 0.6, mask=mask, negatives=3, positive=POSITIVE[:4, :4])
        np.testing.assert_allclose(got, want, rtol=1e-6)
    nothing = pairwise(changed, clean, 0.0, valid=np.zeros(6, bool))
    assert nothing[0] == nothing[1] == 0
