"""The compiled step: equal on every mesh, one compilation, and each parameter moved as the equations say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.sphere import unit
from support import tiny
from support.jaxprs import low_precision_sums
from support.training import assembled, trained


def curve(experiment, *, devices, steps):
    program, batches = assembled(experiment, devices)
    state = program.initialize()
    compiled, losses = None, []
    for _ in range(steps):
        arrays = next(batches)
        compiled = compiled or program.trace(program.batch_shape(arrays)).lower().compile()
        state, metrics = compiled(state, program.place(arrays))
        losses.append(float(metrics["loss"]))
    batches.close()
    return np.array(losses), state


class Plain:
    """A plain step of one device, compiled once for the tests that need no other; each has states of its own."""

    def __init__(self):
        experiment = tiny.experiment(
            mesh__data=1, optimizer__weight_decay=0.3, optimizer__clip_norm=0.05, optimizer__ema_decay=0.5
        )
        self.program, batches = assembled(experiment, jax.devices()[:1])
        self.batches = [next(batches) for _ in range(6)]
        batches.close()
        self.step = self.program.trace(self.program.batch_shape(self.batches[0])).lower().compile()
        self.initial = jax.device_get(self.program.initialize())

    def state(self):
        """The state before the first step, which the step consumes."""
        return jax.tree.map(jax.device_put, self.initial, self.program.shardings)


@pytest.fixture(scope="module")
def plain():
    return Plain()


MESHES = [(1, 1, 1, 1), (8, 8, 1, 1), (8, 1, 8, 1), (4, 2, 1, 2), (8, 2, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "optimizer"), [("contrastive", "parameters"), ("sigmoid", "parameters"), ("contrastive", "zero")]
)
def test_losses_and_parameters_are_the_same_on_every_mesh(objective, optimizer, monkeypatch):
    monkeypatch.setattr("mmjax.parallel.sharding.FSDP_MIN_SIZE", 1)
    bias = {"model__init_logit_bias": -10.0} if objective == "sigmoid" else {}
    reference = None
    for devices, data, fsdp, tensor in MESHES:
        experiment = tiny.experiment(
            steps=20,
            objective={"name": objective},
            mesh={"data": data, "fsdp": fsdp, "tensor": tensor, "optimizer": optimizer},
            optimizer__ema_decay=0.9,
            optimizer__learning_rate=1e-3,  # a loss that jumps amplifies rounding
            **bias,
        )
        losses, state = curve(experiment, devices=jax.devices()[:devices], steps=20)
        if reference is None:
            reference = losses, state
            assert losses[-1] < losses[0]
        np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
        for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(reference[1].params), strict=True):
            np.testing.assert_allclose(jax.device_get(got), jax.device_get(want), atol=2e-4)


def test_fsdp_really_splits_parameters_moments_and_averages():
    experiment = tiny.experiment(mesh__data=1, mesh__fsdp=8, optimizer__ema_decay=0.9, model="scenes-tiny")
    program, batches = assembled(experiment)
    batches.close()
    state = program.initialize()
    kernel = lambda tree: tree["visual"]["blocks"]["mlp"]["fc1"]["kernel"]  # noqa: E731
    trees = [state.params, state.ema_params]
    trees += [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    assert len(trees) == 3
    for tree in trees:
        whole, shard = kernel(tree).shape, kernel(tree).addressable_shards[0].data.shape
        assert np.prod(shard) * 8 == np.prod(whole)
        assert tree["logit_scale"].sharding.is_fully_replicated


@pytest.mark.slow
def test_zero_splits_what_the_optimizer_keeps_and_changes_no_number(monkeypatch):
    """With a clipped gradient, a moving average, frozen parameters, an augmentation of its own, and micro-batches."""
    monkeypatch.setattr("mmjax.parallel.sharding.FSDP_MIN_SIZE", 64)
    options = {
        "augment": (("lemda", {"kind": "mlp"}),),
        "optimizer__ema_decay": 0.9,
        "optimizer__clip_norm": 0.1,
        "optimizer__learning_rate": 1e-3,
        "optimizer__learning_rate_multipliers": (("text/", 0.0),),
        "model__vision_cfg__layers": 1,
        "model__text_cfg__layers": 1,
    }
    mesh = {"data": 4, "fsdp": 2, "optimizer": "zero"}
    want, one = curve(tiny.experiment(**options, mesh={"data": 1}), devices=jax.devices()[:1], steps=2)
    got, state = curve(tiny.experiment(**options, mesh=mesh, micro_batches=2), devices=jax.devices(), steps=2)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=1e-5), state, one)

    def parts(tree):
        """How many different parts of an array the devices hold at most."""
        return max(len({str(shard.index) for shard in x.addressable_shards}) for x in jax.tree.leaves(tree))

    learned = state.augment["lemda"]
    assert [parts(tree) for tree in (state.params, learned.params)] == [2, 2]
    assert [parts(tree) for tree in (state.ema_params, state.opt_state, learned.opt_state)] == [8, 8, 8]


def test_update_equals_adamw_by_hand(plain):
    """One step in numpy: clip, moments, decay only of matrices, warm-up; gradients from jax.grad of the same loss."""
    program, before = plain.program, plain.initial.params
    settings, batch = program.experiment.optimizer, program.place(plain.batches[0])

    def loss(params):
        from mmjax.objectives.contrastive import Objective
        from mmjax.train.step import merge

        model = merge(program.graph, params)
        return Objective()(
            unit(model.encode_image(batch.images)),
            unit(model.encode_text(batch.tokens)),
            image_source=batch.image_source,
            text_source=batch.text_source,
            scale=jnp.exp(params["logit_scale"]),
        )[0]

    grads = jax.device_get(jax.jit(jax.grad(loss))(before))
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
    state, metrics = plain.step(plain.state(), batch)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    rate = settings.learning_rate / settings.warmup_steps
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    decayed = 0
    for (path, p), g, new in zip(
        jax.tree_util.tree_leaves_with_path(before),
        jax.tree.leaves(grads),
        jax.tree.leaves(jax.device_get(state.params)),
        strict=True,
    ):
        g = g.astype(np.float64) * min(1, settings.clip_norm / norm)
        direction = g / (np.abs(g) + settings.eps)  # both moments corrected for their start are g and g²
        name = jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 1)[-1]
        decay = settings.weight_decay if name in ("kernel", "embedding", "pos_embed") else 0.0
        decayed += decay > 0
        # Where the gradient is tiny beside eps, its rounding error is all of the direction.
        sure = np.abs(g) > 1e-7
        want = p - rate * (direction + decay * p)
        np.testing.assert_allclose(new[sure], want[sure], atol=rate * 0.02, err_msg=name)
    assert decayed > 5


def test_the_logit_scale_is_clipped_to_its_maximum(plain):
    state = plain.state()
    state.params["logit_scale"] = jnp.full_like(state.params["logit_scale"], 8.0)
    state, _ = plain.step(state, plain.program.place(plain.batches[0]))
    np.testing.assert_allclose(np.exp(state.params["logit_scale"]), 100.0, rtol=1e-5)


def test_another_batch_shape_is_an_error_and_not_a_second_compilation(plain):
    half = jax.tree.map(lambda x: x[: len(x) // 2], plain.batches[0])
    with pytest.raises((TypeError, ValueError)):
        plain.step(plain.state(), plain.program.place(half))


def test_views_of_further_modalities_are_rows_of_the_same_caption():
    experiment = tiny.experiment(
        data__modalities=("image", "depth", "thermal"), model__init_logit_scale=-2.0, mesh__data=1
    )
    program, batches = assembled(experiment, jax.devices()[:1])
    arrays = next(batches)
    batches.close()
    loss = jax.jit(lambda state, batch: program.step(state, batch)[1]["loss"])  # the update is not compiled
    value = float(loss(program.initialize(), program.place(arrays)))
    # Three views of each caption are three positives of its column: chance is still ln(columns) by rows, and
    # ln(rows) by columns.
    n = len(arrays["image_ids"])
    chance = 0.5 * (np.log(n) + np.log(3 * n))
    assert abs(value - chance) < 0.1


@pytest.mark.slow
def test_gates_and_dropped_modalities_are_the_same_on_any_devices_and_in_micro_batches():
    experiment = functools.partial(
        tiny.experiment,
        data__modalities=("image", "depth", "thermal"),
        model__vision_cfg__fusion="gated",
        augment=(("modality_dropout", {"drop_rate": 0.5}), ("mixup", {}), ("patch_dropout", {})),
        mesh__data=-1,
    )
    one = trained(experiment(), steps=3)
    for other in (trained(experiment(), steps=3, devices=8), trained(experiment(micro_batches=2), steps=3, devices=2)):
        for (a, left), (b, right) in zip(one, other, strict=True):
            assert left["augment/modality_dropout/kept"] == right["augment/modality_dropout/kept"] < 1
            assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
            for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    gates = one[-1][0].params["visual"]["gates"]
    assert all(np.any(x) for x in jax.tree.leaves(gates))  # they were zero


def test_frozen_parameters_keep_their_bits_and_have_no_moments():
    experiment = tiny.experiment(
        optimizer__learning_rate_multipliers=(("visual/", 0.0), ("text/blocks", 0.1)), mesh__data=1
    )
    program, batches = assembled(experiment, jax.devices()[:1])
    state = program.initialize()
    before = jax.device_get(state.params)
    state, _ = jax.jit(program.step)(state, program.place(next(batches)))
    batches.close()
    after = jax.device_get(state.params)
    for a, b in zip(jax.tree.leaves(before["visual"]), jax.tree.leaves(after["visual"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(before["text"]["proj"]["kernel"], after["text"]["proj"]["kernel"])
    trained = sum(x.size for x in jax.tree.leaves({k: v for k, v in before.items() if k != "visual"}))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim or x.dtype == jnp.float32)
    assert moments == 2 * trained


def test_moving_average_follows_its_recurrence(plain):
    state, average = plain.state(), plain.initial.params
    for t, batch in enumerate(plain.batches[:4]):
        state, _ = plain.step(state, plain.program.place(batch))
        decay = min(0.5, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, jax.device_get(state.params))
    for a, b in zip(jax.tree.leaves(average), jax.tree.leaves(state.ema_params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_in_bfloat16_no_gradient_is_a_sum_in_bfloat16():
    augment = tuple((name, {}) for name in ("tmmda", "xmda", "lemda", "mixup", "m2mix", "latent_noise"))
    experiment = tiny.experiment(precision="bfloat16", augment=augment, mesh__data=1)
    program, batches = assembled(experiment, jax.devices()[:1])
    trace = program.trace(program.batch_shape(next(batches)))
    batches.close()
    assert not low_precision_sums(trace.jaxpr.jaxpr)


def test_bfloat16_towers_train_with_float32_parameters(plain):
    experiment = dataclasses.replace(plain.program.experiment, precision="bfloat16")
    losses, state = curve(experiment, devices=jax.devices()[:1], steps=6)
    full, own = [], plain.state()
    for batch in plain.batches:
        own, metrics = plain.step(own, plain.program.place(batch))
        full.append(float(metrics["loss"]))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    np.testing.assert_allclose(losses, full, rtol=0.05)
