"""LeMDA against its equations: values, and what each gradient reaches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.augment.common.base import Features, Similarity, TokenMask, reverse_gradient
from mmjax.augment.common.schedules import Schedule
from mmjax.core import rng
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.core.types import Batch, Provenance
from mmjax.objectives import sigmoid
from mmjax.objectives.contrastive import Objective
from mmjax.train import forward
from mmjax.train.augmentation import Augmentations
from support import clip_models, features

KINDS = ("mlp", "attention")
SMALL = {"z_dim": 3, "layers": 1, "width": 8, "heads": 2, "hidden": 8}
ALONE = {"kl": 0.0, "regularizer": 0.0, "consistency": 0.0}


@functools.lru_cache
def made(**options):
    return features.made("lemda", **(SMALL | options))


def initial(augmentations):
    return jax.jit(augmentations.init_states)()


def learned(augmentations, *, seed=9):
    """Parameters as after some training, where residuals are not zero."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(random.normal(center, 0.4, leaf.shape), leaf.dtype)

    shapes = {name: state.params for name, state in jax.eval_shape(augmentations.init_states).items()}
    return jax.tree_util.tree_map_with_path(draw, shapes)


def residuals(augmentations, params, image, text, *, step=0):
    """The network's answer with the very noise that the step draws."""
    module = nnx.merge(nnx.graphdef(augmentations.modules["lemda"]), nnx.State(params["lemda"]))
    key = jax.random.split(rng.key(augmentations.seed, stream="augment/lemda", step=step))[0]
    return module.network(image, text, key, dropout=module.dropout)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_identity_and_is_alive(kind):
    """Nothing changes at first, but the last layer has a gradient; after five steps something does."""
    augmentations = made(kind=kind, **ALONE, adversarial=1.0)
    states, pooled, head = initial(augmentations), features.features(), features.head_params()
    params = {"lemda": states["lemda"].params}
    _, metrics, grads = features.gradients(augmentations, params, head, pooled)
    assert metrics["augment/lemda/image_residual"] == metrics["augment/lemda/text_residual"] == 0
    np.testing.assert_allclose(metrics["augment/lemda/task_gap"], 0, atol=1e-6)
    last = grads[0]["lemda"]["network"]["last"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(last))
    update = jax.jit(augmentations.update)
    for step in range(5):
        grads = features.gradients(augmentations, params, head, pooled, step=step)[2][0]
        states, _ = update(grads, states)
        params = {"lemda": states["lemda"].params}
    _, metrics, _ = features.gradients(augmentations, params, head, pooled)
    assert metrics["augment/lemda/image_residual"] > 0 and metrics["augment/lemda/text_residual"] > 0


def task_loss(augmentations, params, head, image, text, pooled, step, *, stopped):
    """The task on changed pairs without any reversal; ``stopped`` cuts the towers off."""
    deltas = residuals(augmentations, params, *map(jax.lax.stop_gradient, (image, text)), step=step)
    if stopped:
        image, text = jax.lax.stop_gradient((image, text))
    return Objective()(
        unit((image + deltas[0]) @ head["visual"]),
        unit((text + deltas[1]) @ head["text"]),
        image_source=pooled.image_source,
        text_source=pooled.text_source,
        scale=jnp.exp(head["logit_scale"]),
    )[0]


@pytest.mark.parametrize(("kind", "reading"), [("mlp", "residual"), ("mlp", "faithful"), ("attention", "residual")])
def test_one_backward_pass_gives_both_players_their_gradients(kind, reading):
    """Whatever the strength: it is 0 at first, then 0.5."""
    pooled, head = features.features(), features.head_params()
    adversarial = Schedule(value=0.5, start=1)
    augmentations = made(kind=kind, reading=reading, **ALONE, adversarial=adversarial)
    params = learned(augmentations)
    plain = functools.partial(task_loss, augmentations, stopped=reading == "faithful")
    alone = jax.jit(jax.grad(lambda *a: plain(*a[:4], pooled, a[4]), argnums=(0, 1, 2, 3)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for step, factor in ((0, 0.0), (1, 0.5)):
        want = alone(params, head, pooled.image, pooled.text, jnp.int32(step))
        _, _, got = features.gradients(augmentations, params, head, pooled, step=step)
        jax.tree.map(lambda a, b, w=factor: close(a, -w * b), got[0], want[0])
        jax.tree.map(close, got[1:], want[1:])
        assert any(np.any(leaf) for leaf in jax.tree.leaves(want[0]))
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


def divergences(changed, clean):
    """KL of each row's softmax, in float64."""
    q, p = (np.exp(x - x.max(1, keepdims=True)) for x in (changed, clean))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    return (q * np.log(q / p)).sum(1)


def test_the_value_adds_up():
    augmentations = made(weight=0.5, kl=0.3, regularizer=0.2, consistency=0.1, threshold=0.0, mask="abs")
    params, pooled, head = learned(augmentations), features.features(), features.head_params()
    value, metrics, _ = features.gradients(augmentations, params, head, pooled)
    m = {name.removeprefix("augment/lemda/"): float(x) for name, x in metrics.items()}
    drawn_again = jax.jit(functools.partial(residuals, augmentations))(params, pooled.image, pooled.text)
    deltas = [np.asarray(d, np.float64) for d in drawn_again]
    size = np.mean(np.concatenate(deltas, axis=1) ** 2)
    want = m["task"] + 0.3 * m["divergence"] + 0.2 * size + 0.1 * m["divergence_from_clean"]
    np.testing.assert_allclose(value, 0.5 * want, rtol=1e-5)
    x = [np.asarray(z, np.float64) for z in (pooled.image, pooled.text)]

    def cosines(image, text):
        z = [a @ np.asarray(head[k], np.float64) for a, k in ((image, "visual"), (text, "text"))]
        z = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in z]
        return np.exp(np.float64(head["logit_scale"])) * z[0] @ z[1].T

    clean, changed = cosines(*x), cosines(*(a + d for a, d in zip(x, deltas, strict=True)))
    both = [divergences(a, b).mean() for a, b in ((changed, clean), (changed.T, clean.T))]
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
    np.testing.assert_array_equal(reverse_gradient(x, factor), x)
    grads = jax.grad(lambda x, w: (reverse_gradient(x, w) * jnp.arange(3.0)).sum(), argnums=(0, 1))(x, factor)
    np.testing.assert_array_equal(grads[0], [-0.0, -0.5, -1.0])
    assert grads[1] == 0
    half = jax.grad(lambda x: reverse_gradient(x, factor).astype(jnp.float32).sum())(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_its_optimizer_has_the_rate_and_limit_of_the_options():
    augmentations = features.made("lemda", learning_rate={"value": 1e-2, "warmup": 3}, clip_norm=0.5)
    module = augmentations.modules["lemda"]
    assert (module.learning_rate, module.clip_norm) == (Schedule(value=1e-2, warmup=3), 0.5)


def unit_features(seed, *, images=range(5), texts=range(5)):
    random = np.random.default_rng(seed)
    image, text = (unit(jnp.asarray(random.normal(size=(len(images), 4)), jnp.float32)) for _ in range(2))
    image_source, text_source = (Provenance.from_ids(jnp.asarray(ids, jnp.int32)) for ids in (images, texts))
    return Features(image=image, text=text, image_source=image_source, text_source=text_source, examples=len(images))


@functools.lru_cache
def compared(prediction):
    """C of clean and changed unit rows with its gradients by everything that goes in."""
    module = features.module("lemda", **SMALL, prediction=prediction, negatives=2, mask="abs", threshold=0.6)

    def value(changed, clean, scale, bias):
        _, metrics = module.compare(
            clean,
            [clean, changed],
            similarity=Similarity(scale=scale, bias=bias),
            key=jax.random.key(0),
            step=jnp.int32(0),
        )
        return metrics["divergence_from_clean"], metrics["confident_fraction"]

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True, allow_int=True))


def entries(changed, clean, positive, *, threshold, negatives):
    """Bernoulli divergences of positives and hardest negatives, row by row, in float64."""
    total = kept = counted = 0
    for b in range(len(clean)):
        rivals = [j for j in np.argsort(-clean[b]) if not positive[b, j]][:negatives]
        for j in [*np.flatnonzero(positive[b]), *rivals]:
            q, p = (1 / (1 + np.exp(-x[b, j])) for x in (changed, clean))
            confident = max(p, 1 - p) > threshold
            total += confident * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
            kept, counted = kept + confident, counted + 1
    return total / len(clean), kept / counted


def test_under_the_sigmoid_objective_predictions_are_of_pairs_and_know_the_bias():
    images, texts = np.array([4, 5, 6, 7, 8]), np.array([4, 5, 5, 7, 8])  # the fifth has two texts, the sixth none
    clean, changed = (unit_features(seed, images=images, texts=texts) for seed in (10, 11))
    (got, kept), grads = compared("bernoulli")(changed, clean, jnp.float32(3.0), jnp.float32(-1.0))
    before, after = (3.0 * np.float64(f.image) @ np.float64(f.text).T - 1.0 for f in (clean, changed))
    same, limits = images[:, None] == texts, {"threshold": 0.6, "negatives": 2}
    both = [entries(after, before, same, **limits), entries(after.T, before.T, same.T, **limits)]
    assert abs(entries(after.T, before.T, same, **limits)[0] - both[1][0]) > 0.1
    np.testing.assert_allclose((got, kept), np.mean(both, axis=0), rtol=1e-5)
    assert 0 < kept < 1
    by_changed, by_clean, by_scale, by_bias = grads
    assert np.any(by_changed.image) and np.any(by_changed.text)
    assert by_scale == by_bias == 0 and not np.any(by_clean.image) and not np.any(by_clean.text)


def test_consistency_stops_the_gradient_of_clean_predictions_and_scale():
    clean, changed = unit_features(0), unit_features(1)
    (value, _), grads = compared("softmax")(changed, clean, jnp.float32(3.0), jnp.float32(-1.0))
    (shifted, _), _ = compared("softmax")(changed, clean, jnp.float32(3.0), jnp.float32(7.0))
    by_changed, by_clean, by_scale, by_bias = grads
    assert value > 0 and np.any(by_changed.image) and np.any(by_changed.text)
    assert by_scale == by_bias == 0 and not np.any(by_clean.image) and not np.any(by_clean.text)
    np.testing.assert_allclose(value, shifted, rtol=1e-4)  # a softmax has no use for the bias


def test_pairwise_predictions_need_a_bias():
    module, rows = features.module("lemda", **SMALL, prediction="bernoulli"), unit_features(0)
    with pytest.raises(ConfigError, match=r"augment\.lemda\.prediction='bernoulli'.*model\.init_logit_bias"):
        module.compare(
            rows, [rows, rows], similarity=Similarity(scale=jnp.float32(1)), key=jax.random.key(0), step=jnp.int32(0)
        )


IDS = np.array([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0], [1, 5, 8, 9, 2], [1, 2, 2, 2, 2]])  # 2 ends a text
VALID = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)


def sequences(seed=0, *, dtype=jnp.float32, patches=3):
    """Four pairs of three image tokens and up to five text tokens; their texts are second to none but first of two."""
    random = np.random.default_rng(seed)
    pooled = features.features(n=4, texts=2)
    other = np.roll(IDS, 1, axis=0)
    return dataclasses.replace(
        pooled,
        image=jnp.asarray(random.normal(size=(4, patches, 6)), dtype),
        text=jnp.asarray(random.normal(size=(8, 5, 8)), dtype),
        token_mask=TokenMask.from_ids(jnp.asarray(np.stack([IDS, other], 1).reshape(8, 5), jnp.int32), eos_id=2),
        num_prefix_tokens=1,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_tokens_views_are_whole_sequences_with_their_ids(dtype):
    clean = sequences(dtype=dtype)
    augmentations = made(kind="attention", tap="tokens@1", regularizer=1.0, dropout=0.0)
    module = nnx.merge(nnx.graphdef(augmentations.modules["lemda"]), nnx.State(learned(augmentations)["lemda"]))

    @jax.jit
    def run(f):
        answer = module.augment(f, key=jax.random.key(0), step=jnp.int32(0))
        parts = ("image", "text", "ids", "text_source")
        return [{part: getattr(view, part) for part in parts} for view in answer.views], answer.terms, answer.metrics

    (task, changed), terms, metrics = run(clean)
    image, text = (np.asarray(x, np.float64) for x in (clean.image, clean.text[::2]))
    for view in (task, changed):
        assert view["image"].dtype == view["text"].dtype == dtype
        np.testing.assert_array_equal(view["ids"], IDS)
        np.testing.assert_array_equal(view["text_source"].ids, clean.image_source.ids)
        np.testing.assert_array_equal(np.asarray(view["text"], np.float64)[~VALID], text[~VALID])
    jax.tree.map(np.testing.assert_array_equal, (task["image"], task["text"]), (changed["image"], changed["text"]))
    if dtype == jnp.float32:
        moved = np.asarray(task["image"]) - image, (np.asarray(task["text"]) - text)[VALID]
        size = sum((x**2).sum() for x in moved) / sum(x.size for x in moved)
        np.testing.assert_allclose(terms["regularizer"], size, rtol=1e-4)
        for side, x, rows in zip(("image", "text"), moved, (image, text[VALID]), strict=True):
            want = np.linalg.norm(x) / np.linalg.norm(rows)
            np.testing.assert_allclose(metrics[f"{side}_residual"], want, rtol=1e-4)
    assert np.isfinite(terms["kl"])


def test_in_the_network_the_blocks_after_the_tokens_run_again():
    config = clip_models.config({"layers": 1}, {"layers": 1}, init_logit_bias=-1.0)
    graph, shapes = clip_models.split(config)
    towers, source = forward.make_tower_info(config), Provenance.from_ids(jnp.arange(4, dtype=jnp.int32))
    options = {
        "kind": "attention",
        "tap": "tokens@-1",
        "prediction": "bernoulli",
        "threshold": 0.0,
        "dropout": 0.0,
    } | SMALL
    augmentations = Augmentations.from_config([("lemda", options)], towers=towers, seed=0)
    batch = Batch(
        images=clip_models.images(config, n=4),
        tokens=jnp.asarray(clip_models.TOKENS),
        image_source=source,
        text_source=source,
    )

    def loss(learned, params):
        model, objective = clip_models.model(graph, params), sigmoid.Objective()
        found = forward.run_clean(model, batch, towers=towers, taps=augmentations.taps)
        image, text = model.visual.project(found["pooled"].image), model.text.project(found["pooled"].text)
        scale, bias = jnp.exp(params["logit_scale"]), params["logit_bias"]
        sources = {"image_source": source, "text_source": source}
        clean_loss, _ = objective(unit(image), unit(text), **sources, scale=scale, bias=bias)
        rest = functools.partial(clip_models.model, graph)
        given = {"make_model": rest, "model_params": params, "objective": objective, "clean_loss": clean_loss}
        return augmentations.loss(learned, found, **given, step=jnp.int32(0))

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    params = clip_models.random_params(shapes)
    moved, results = learned(augmentations), []
    start = jax.tree.map(lambda x: x, moved)
    start["lemda"]["network"]["last"] = jax.tree.map(jnp.zeros_like, start["lemda"]["network"]["last"])
    for network in (start, moved):
        (_, metrics), grads = run(network, params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, grads)))
        results.append(({k.removeprefix("augment/lemda/"): float(v) for k, v in metrics.items()}, grads))
    (start, _), (changed, by_network) = results
    assert start["image_residual"] == 0 and abs(start["task_gap"]) < 1e-5 and abs(start["divergence_from_clean"]) < 1e-6
    for side in ("image", "text"):
        assert abs(start[f"task_{side}_cosine"] - 1) < 1e-5 and changed[f"task_{side}_cosine"] < 0.99
    assert abs(changed["task_gap"]) > 1e-3 and changed["divergence_from_clean"] > 1e-3
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_network["lemda"]["network"]["enter"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "faithful", "tap": "embedding"}, r"augment\.lemda\.reading='faithful' with tap='embedding'"),
        ({"kind": "attention", "heads": 3}, r"augment\.lemda\.heads=3: must divide augment\.lemda\.width=8"),
        ({"tap": "tokens@1"}, r"augment\.lemda\.tap='tokens@1' with kind='mlp': .* kind='attention'"),
        ({"tap": "tokens@9", "kind": "attention"}, r"augment\.lemda\.tap='tokens@9'"),
        ({"tap": "input", "kind": "attention"}, r"augment\.lemda\.tap='input'.*'pooled'"),
        ({"negatives": -1}, r"augment\.lemda\.negatives=-1"),
        ({"layers": 40}, r"augment\.lemda\.layers=40: too many"),
        ({"dropout": 1.0}, r"augment\.lemda\.dropout=1\.0"),
        ({"clip_norm": 0.0}, r"augment\.lemda\.clip_norm=0\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        features.made("lemda", **(SMALL | options))
