"""LeMDA against its equations: values, what each gradient reaches, and the networks' locality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax import rng
from mmjax.augment.base import reversed_gradient
from mmjax.augment.lemda import AttentionVae, MlpVae, consistency, drawn, hidden_widths, kl_to_normal
from mmjax.augment.networks import dropped
from mmjax.config import ConfigError
from mmjax.objectives.contrastive import Objective
from mmjax.sphere import unit
from support import features

KINDS = ("mlp", "attention")
SMALL = {"z_dim": 2, "layers": 1, "width": 8, "heads": 2, "hidden": 8}
ALONE = {"kl": 0.0, "regulariser": 0.0, "consistency": 0.0}


@functools.lru_cache
def made(**options):
    return features.made("lemda", **(SMALL | options))


def learned(augmentations, *, moved=0.3):
    """Parameters away from their start, where residuals are not zero."""
    start = augmentations.initial()
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return tree.unflatten([x + moved * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def residuals(augmentations, params, image, text, *, step=0):
    """The network's answer with the very noise that the step draws."""
    module = nnx.merge(augmentations.graphs["lemda"], nnx.State(params["lemda"]))
    key = jax.random.split(rng.key(augmentations.seed, stream="augment/lemda", step=step))[0]
    return module.network(image, text, key, dropout=module.dropout)[0]


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def closed_form(changed, clean, threshold, mask="abs"):
    q, p = softmax(changed), softmax(clean)
    top = p.max(1)
    limit = threshold * (top.max() if mask == "rel" else 1)
    keep = top > limit
    if mask == "correct":
        keep &= p.argmax(1) == np.arange(len(p))
    return (keep * (q * (np.log(q) - np.log(p))).sum(1)).sum() / len(p), keep.mean()


def logits(seed, n=6):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, n)) * 2, random.normal(size=(n, n)) * 2


def measured(changed, clean, threshold, *, mask="abs", valid=None):
    valid = jnp.ones(len(changed), bool) if valid is None else jnp.asarray(valid)
    return consistency(
        jnp.float32(changed), jnp.float32(clean), valid=valid, threshold=jnp.float32(threshold), mask=mask
    )


@pytest.mark.parametrize("mask", ["abs", "correct", "rel"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.1])
def test_consistency_is_its_closed_form(mask, threshold):
    changed, clean = logits(0)
    want, share = closed_form(changed, clean, threshold, mask)
    got, kept = measured(changed, clean, threshold, mask=mask)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(kept, share, rtol=1e-6)
    if threshold == 0.0 and mask == "abs":
        assert abs(measured(clean, changed, threshold)[0] - want) > 1e-3  # the changed one comes first
    if threshold > 1:
        assert got == 0


def test_consistency_divides_by_the_rows_and_not_by_the_confident_ones():
    changed, clean = logits(1)
    clean[2] = 0.0  # as uncertain as can be
    value = measured(changed, clean, 0.4)[0]
    want, share = closed_form(changed, clean, 0.4)
    assert 0 < share < 1
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


def test_divergence_from_the_normal():
    zeros, ones = jnp.zeros((5, 4)), jnp.ones((5, 4))
    assert kl_to_normal(zeros, zeros) == 0
    np.testing.assert_allclose(kl_to_normal(ones, zeros), 0.5)
    np.testing.assert_allclose(kl_to_normal(ones[:, None].repeat(2, 1), zeros[:, None].repeat(2, 1)), 1.0)
    mean, log_variance = np.array([0.3, -1.2]), np.array([0.5, -0.7])
    x = mean + np.random.default_rng(0).normal(size=(200_000, 2)) * np.exp(log_variance / 2)
    log_ratio = (-0.5 * (log_variance + (x - mean) ** 2 / np.exp(log_variance)) + 0.5 * x**2).sum(1)
    got = 2 * kl_to_normal(jnp.float32(mean)[None], jnp.float32(log_variance)[None])
    assert abs(got - log_ratio.mean()) < 3 * log_ratio.std() / np.sqrt(len(x))


@pytest.mark.parametrize(
    ("d", "want"),
    [
        (1024, [821, 618, 415, 212]),
        (1536, [1231, 926, 621, 316]),
        (4096, [3279, 2462, 1645, 828]),
        (128, [104, 80, 56]),
    ],
)
def test_hidden_widths(d, want):
    got = hidden_widths(d, z_dim=8, layers=4)
    assert got[: len(want)] == want and len(got) <= 4


def test_noise_is_the_given_one_and_its_mean_is_the_mean():
    mean, log_variance = jnp.float32([[0.5, -1.0]]), jnp.float32([[0.2, -0.4]])
    key = jax.random.key(4)
    want = mean + jax.random.normal(key, (1, 2)) * jnp.exp(0.5 * log_variance)
    np.testing.assert_allclose(drawn(mean, log_variance, key), want, rtol=1e-6)
    many = drawn(*(x.repeat(50_000, 0) for x in (mean, log_variance)), key)
    np.testing.assert_allclose(many.mean(0), mean[0], atol=4 * 1.2 / np.sqrt(50_000))


def test_dropout_keeps_the_mean():
    out = dropped(jnp.ones((200, 200)), jax.random.key(0), share=0.3)
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.7)}
    np.testing.assert_allclose(out.mean(), 1, atol=0.02)


def vae(kind, **options):
    size = {"z_dim": 2, "layers": 1, "rngs": nnx.Rngs(0)} | options
    network = MlpVae((6, 8), **size) if kind == "mlp" else AttentionVae((6, 8), width=8, heads=2, hidden=8, **size)
    graph, state = nnx.split(network)
    keys = iter(jax.random.split(jax.random.key(1), 200))
    state = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), state)
    return nnx.merge(graph, state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_sees_itself_alone_and_both_of_its_sides(kind):
    network, f = vae(kind), features.features(n=4)

    def sides(image, text):
        return network(image, text, jax.random.key(2), dropout=0.0)[0]

    jacobian = jax.jit(jax.jacobian(sides, argnums=(0, 1)))(f.image, f.text)
    for by_side in jacobian:
        for block in by_side:  # [B, D, B, D']
            across = np.abs(np.asarray(block)).sum((1, 3))
            assert (across[~np.eye(4, dtype=bool)] == 0).all()
            assert (np.diag(across) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_identity_and_is_alive(kind):
    """Nothing changes at first, but the last layer has a gradient; after five steps something does."""
    augmentations = made(kind=kind, **ALONE, adversarial=1.0)
    params, pooled, head = augmentations.initial(), features.features(), features.head_params()
    _, metrics, grads = features.gradients(augmentations, params, head, pooled)
    assert metrics["augment/lemda/image_residual"] == metrics["augment/lemda/text_residual"] == 0
    np.testing.assert_allclose(metrics["augment/lemda/task_gap"], 0, atol=1e-6)
    last = grads[0]["lemda"]["network"]["last"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(last))
    tx = augmentations.optimizer(params)
    state = tx.init(params)
    for step in range(5):
        grads = features.gradients(augmentations, params, head, pooled, step=step)[2][0]
        updates, state = updated(tx, grads, state, params)
        params = optax.apply_updates(params, updates)
    _, metrics, _ = features.gradients(augmentations, params, head, pooled)
    assert metrics["augment/lemda/image_residual"] > 0 and metrics["augment/lemda/text_residual"] > 0


def updated(tx, grads, state, params):
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of its integer count
        return tx.update(grads, state, params)


def task_loss(augmentations, params, head, image, text, pooled, *, still):
    """The task on changed pairs without any reversal; ``still`` cuts the towers off."""
    deltas = residuals(augmentations, params, *map(jax.lax.stop_gradient, (image, text)))
    if still:
        image, text = jax.lax.stop_gradient((image, text))
    return Objective()(
        unit((image + deltas[0]) @ head["visual"]),
        unit((text + deltas[1]) @ head["text"]),
        image_source=pooled.image_source,
        text_source=pooled.text_source,
        scale=jnp.exp(head["logit_scale"]),
    )[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", ["residual", "faithful"])
def test_one_backward_pass_gives_both_players_their_gradients(kind, reading):
    pooled, head = features.features(), features.head_params()
    reference = made(kind=kind, reading=reading, **ALONE, adversarial=0.0)
    params = learned(reference)
    plain = functools.partial(task_loss, reference, still=reading == "faithful")
    want = jax.jit(jax.grad(lambda *a: plain(*a, pooled), argnums=(0, 1, 2, 3)))(
        params, head, pooled.image, pooled.text
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for factor in (0.0, 0.5):
        augmentations = made(kind=kind, reading=reading, **ALONE, adversarial=factor)
        _, _, got = features.gradients(augmentations, params, head, pooled)
        jax.tree.map(lambda a, b, w=factor: close(a, -w * b), got[0], want[0])
        jax.tree.map(close, got[1:], want[1:])
    assert bool(np.any(got[2])) == (reading == "residual")


@pytest.mark.parametrize("reading", ["residual", "faithful"])
def test_consistency_reaches_the_augmenter_and_the_head_only_in_the_faithful_reading(reading):
    pooled, head = features.features(), features.head_params()
    grads = []
    for factor in (0.0, 1.0):
        augmentations = made(reading=reading, **(ALONE | {"consistency": factor}), threshold=0.0, mask="abs")
        params = learned(augmentations)
        grads.append(features.gradients(augmentations, params, head, pooled)[2])
    changed = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), *grads)
    by_network, by_head, by_image, by_text = changed
    assert max(jax.tree.leaves(by_network)) > 1e-4
    assert by_image == by_text == by_head["logit_scale"] == 0
    for side in ("visual", "text"):
        assert (by_head[side] > 1e-4) == (reading == "faithful")


def test_the_value_adds_up():
    augmentations = made(weight=0.5, kl=0.3, regulariser=0.2, consistency=0.1, threshold=0.0, mask="abs")
    params, pooled, head = learned(augmentations), features.features(), features.head_params()
    value, metrics, _ = features.gradients(augmentations, params, head, pooled)
    m = {name.removeprefix("augment/lemda/"): float(x) for name, x in metrics.items()}
    deltas = [np.asarray(d, np.float64) for d in residuals(augmentations, params, pooled.image, pooled.text)]
    size = np.mean(np.concatenate(deltas, axis=1) ** 2)
    want = m["task"] + 0.3 * m["divergence"] + 0.2 * size + 0.1 * m["divergence_from_clean"]
    np.testing.assert_allclose(value, 0.5 * want, rtol=1e-5)
    x = [np.asarray(z, np.float64) for z in (pooled.image, pooled.text)]

    def cosines(image, text):
        z = [a @ np.asarray(head[k], np.float64) for a, k in ((image, "visual"), (text, "text"))]
        z = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in z]
        return np.exp(np.float64(head["logit_scale"])) * z[0] @ z[1].T

    clean, changed = cosines(*x), cosines(*(a + d for a, d in zip(x, deltas, strict=True)))
    both = [closed_form(a, b, 0.0)[0] for a, b in ((changed, clean), (changed.T, clean.T))]
    np.testing.assert_allclose(m["divergence_from_clean"], np.mean(both), rtol=1e-4)


def test_the_augmenter_raises_the_task_loss_and_the_head_lowers_it():
    augmentations = made(**ALONE, adversarial=1.0, dropout=0.0)
    params, pooled, head = learned(augmentations), features.features(), features.head_params()
    loss = lambda p, h: float(features.gradients(augmentations, p, h, pooled)[1]["augment/lemda/task"])  # noqa: E731
    before = loss(params, head)
    grads = features.gradients(augmentations, params, head, pooled)[2]
    step = lambda tree, grad: jax.tree.map(lambda x, g: x - 1e-2 * g, tree, grad)  # noqa: E731
    assert loss(step(params, grads[0]), head) > before > loss(params, step(head, grads[1]))


def test_reversal_is_the_identity_forwards():
    x, factor = jnp.arange(3.0), jnp.float32(0.5)
    np.testing.assert_array_equal(reversed_gradient(x, factor), x)
    grads = jax.grad(lambda x, w: (reversed_gradient(x, w) * jnp.arange(3.0)).sum(), argnums=(0, 1))(x, factor)
    np.testing.assert_array_equal(grads[0], [-0.0, -0.5, -1.0])
    assert grads[1] == 0
    half = jax.grad(lambda x: reversed_gradient(x, factor).astype(jnp.float32).sum())(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_its_optimizer_is_adam_clipped_alone_without_decay():
    augmentations = made(learning_rate=1e-2, clip_norm=0.5)
    params = learned(augmentations)
    tx, reference = augmentations.optimizer(params), optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
    state, other = tx.init(params), reference.init(params["lemda"])
    for scale in (100.0, 0.01):
        grads = jax.tree.map(lambda x, s=scale: s * jnp.ones_like(x), params)
        updates, state = updated(tx, grads, state, params)
        want, other = updated(reference, grads["lemda"], other, None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates["lemda"], want)
    still, _ = updated(tx, jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(still))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "faithful", "tap": "embedding"}, r"augment\.lemda\.reading='faithful' with tap='embedding'"),
        ({"kind": "attention", "heads": 3}, r"augment\.lemda\.heads=3: must divide augment\.lemda\.width=8"),
        ({"layers": 40}, r"augment\.lemda\.layers=40: no room"),
        ({"dropout": 1.0}, r"augment\.lemda\.dropout=1\.0"),
        ({"clip_norm": 0.0}, r"augment\.lemda\.clip_norm=0\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        features.made("lemda", **(SMALL | options))
