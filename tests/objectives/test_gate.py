"""The gate: what it keeps, how it follows the model, and what a batch without its gated rows is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.core.types import Batch, Provenance
from mmjax.objectives import contrastive, sigmoid, sluma
from mmjax.objectives.common.gate import Gate, GateConfig
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from mmjax.planning import abstract_data
from support import tiny
from support.training import assembled, trained

N, TEXTS, D = 16, 2, 5
DENSE = contrastive.Objective()


@pytest.fixture(scope="module")
def rows():
    """A batch of two texts an image, the second a hard negative; embeddings of both sides."""
    rng = np.random.default_rng(0)
    ids = jnp.arange(N, dtype=jnp.int32)
    text = Provenance(ids=jnp.repeat(ids, TEXTS)[:, None], weight=jnp.tile(jnp.float32([1, 0]), N)[:, None])
    batch = Batch(
        images={},
        tokens=jnp.zeros((N * TEXTS, 3), jnp.int32),
        image_source=Provenance.from_ids(ids),
        text_source=text,
        quantile=jnp.asarray((1 + rng.permutation(N)) / N, jnp.float32),
    )
    image, other = rng.normal(size=(N, D)), rng.normal(size=(N * TEXTS, D))
    other[::TEXTS] += 2 * image
    unit = [jnp.float32(z / np.linalg.norm(z, axis=1, keepdims=True)) for z in (image, other)]
    return batch, *unit


def state(performance):
    return {"performance": jnp.float32(performance)}


@functools.partial(jax.jit, static_argnames="objective")
def gated(rows, performance, objective=DENSE):
    """The batch behind the gate, its loss, gradients and metrics."""
    batch, image, text = rows
    gate = Gate(GateConfig(), objective)
    kept, metrics = gate.apply(batch, state(performance))
    sources = {"image_source": kept.image_source, "text_source": kept.text_source}
    scales = {"scale": jnp.float32(5), "bias": jnp.float32(-1)}

    def loss(image, text):
        return objective(image, text, **sources, **scales)

    (value, _), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(image, text)
    return kept, value, gradients, metrics | gate.measure(image, text, **sources)


def test_it_keeps_everything_first_and_never_more_as_the_model_gets_better(rows):
    gate, before = Gate(GateConfig(), DENSE), None
    for performance in np.linspace(0, 1, 21):
        batch, metrics = gate.apply(rows[0], state(performance))
        kept = np.asarray(batch.image_source.valid)
        np.testing.assert_array_equal(kept, np.asarray(rows[0].quantile) >= np.float32(0.7) * np.float32(performance))
        np.testing.assert_array_equal(batch.text_source.valid, np.repeat(kept, TEXTS))
        assert float(metrics["gate/kept"]) == kept.mean()
        assert kept.all() if performance == 0 else not (kept & ~before).any()
        before = kept
    assert before.sum() == 5  # 12/16 to 16/16
    unscored = dataclasses.replace(rows[0], quantile=jnp.zeros(N))
    assert gate.apply(unscored, state(0))[0].image_source.valid.all()
    assert not gate.apply(unscored, state(1e-3))[0].image_source.valid.any()


@pytest.mark.parametrize("objective", [DENSE, sigmoid.Objective()], ids=["contrastive", "sigmoid"])
def test_what_is_left_out_has_no_loss_and_is_no_negative(rows, objective):
    batch, image, text = rows
    kept, value, gradients, metrics = gated(rows, 0.8, objective)
    own = np.flatnonzero(kept.image_source.valid)
    texts = (own[:, None] * TEXTS + np.arange(TEXTS)).ravel()
    assert 3 < len(own) < N
    fewer = jax.tree.map(lambda x: x[own], batch.image_source), jax.tree.map(lambda x: x[texts], batch.text_source)
    sources = {"image_source": fewer[0], "text_source": fewer[1]}
    alone, _ = jax.jit(objective)(image[own], text[texts], **sources, scale=jnp.float32(5), bias=jnp.float32(-1))
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert not np.delete(gradients[0], own, axis=0).any() and not np.delete(gradients[1], texts, axis=0).any()
    cosines = np.asarray(image, np.float64)[own] @ np.asarray(text, np.float64)[texts].T
    right = cosines.argmax(axis=1) == TEXTS * np.arange(len(own))
    np.testing.assert_allclose(metrics["gate/accuracy"], right.mean(), rtol=1e-6)
    assert 0 < right.mean() < 1


def test_a_batch_that_is_left_out_altogether_has_a_loss_of_zero_and_moves_nothing(rows):
    nothing = (dataclasses.replace(rows[0], quantile=jnp.zeros(N)), *rows[1:])
    _, value, gradients, metrics = gated(nothing, 0.5)
    assert float(value) == 0 and not any(np.any(g) for g in gradients)
    assert all(np.isfinite(m) for m in metrics.values())
    after = Gate(GateConfig(), DENSE).next_state(state(0.5), metrics)
    assert float(after["performance"]) == 0.5


def test_what_is_left_out_can_stay_as_images_without_a_caption(rows):
    gate = Gate(GateConfig(left_out="unlabeled"), sluma.Objective())
    batch, _ = gate.apply(rows[0], state(0.8))
    plain, _ = Gate(GateConfig(), DENSE).apply(rows[0], state(0.8))
    np.testing.assert_array_equal(batch.image_source.ids, rows[0].image_source.ids)
    np.testing.assert_array_equal(batch.image_source.weight, plain.image_source.weight)
    jax.tree.map(np.testing.assert_array_equal, batch.text_source, plain.text_source)
    with pytest.raises(ConfigError, match=r"gate\.left_out='unlabeled': .*objective\.name=sluma"):
        Gate(GateConfig(left_out="unlabeled"), DENSE)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99, 1.0])
def test_the_average_has_its_closed_form(decay):
    gate = Gate(GateConfig(decay=decay), DENSE)
    accuracies, current = np.random.default_rng(3).random(60), gate.init_state()
    assert float(current["performance"]) == 0
    for t, accuracy in enumerate(accuracies):
        current = gate.next_state(current, {"gate/accuracy": jnp.float32(accuracy), "gate/kept": jnp.float32(0.5)})
        weights = (1 - decay) * decay ** np.arange(t, -1, -1.0)
        np.testing.assert_allclose(current["performance"], weights @ accuracies[: t + 1], atol=1e-6)


def test_eight_devices_keep_and_measure_the_same(rows):
    sharding = batch_sharding(make_mesh(MeshConfig(), devices=jax.devices()))
    objective = contrastive.Objective(impl="ring", chunk=3, row_sharding=sharding)

    spread = gated(jax.tree.map(lambda x: jax.device_put(x, sharding), rows), 0.8, objective)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), spread, gated(rows, 0.8))


def scored(path, **options):
    """The tiny experiment with a file of scores; every third example has none."""
    ids = np.arange(48)[np.arange(48) % 3 > 0]
    pq.write_table(pa.table({"id": ids, "score": np.random.default_rng(5).random(len(ids))}), path)
    layers = {"model__vision_cfg__layers": 1, "model__text_cfg__layers": 1}
    return tiny.experiment(gate={"scores": str(path)}, data__captions_per_image=2, **layers, **options)


def test_a_step_goes_by_its_state_and_carries_it_on(tmp_path):
    experiment = scored(tmp_path / "s.parquet")
    program, batches = assembled(experiment, jax.devices()[:1])
    arrays = next(batches)
    batches.close()
    quantile = arrays["quantile"]
    assert quantile.shape == (16,) and ((quantile == 0) == (arrays["image_ids"][:, 0] % 3 == 0)).all()
    planned = abstract_data.batch_shapes(abstract_data.resolve_without_data(experiment, shards=1)[0]).quantile
    assert planned is not None and (planned.shape, planned.dtype) == (quantile.shape, quantile.dtype)
    step, initial = program.trace(program.batch_shape(arrays)).lower().compile(), jax.device_get(program.initialize())

    def run(performance, quantile):
        start = dataclasses.replace(initial, gate={"performance": np.float32(performance)})
        after, metrics = step(
            jax.tree.map(jax.device_put, start, program.shardings), program.place({**arrays, "quantile": quantile})
        )
        return float(after.gate["performance"]), {name: float(value) for name, value in metrics.items()}

    after, metrics = run(0.0, quantile)
    assert metrics["gate/kept"] == 1 and metrics["gate/threshold"] == 0
    np.testing.assert_allclose(after, 0.1 * metrics["gate/accuracy"], atol=1e-6)
    after, metrics = run(1.0, quantile)
    np.testing.assert_allclose(metrics["gate/kept"], (quantile >= 0.7).mean())
    np.testing.assert_allclose(after, 0.9 + 0.1 * metrics["gate/accuracy"], atol=1e-6)
    after, metrics = run(0.25, 0 * quantile)
    assert metrics["loss"] == metrics["gradient_norm"] == metrics["rejected_update"] == 0 and after == 0.25


def test_a_gate_without_scores_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"column='score': the source 'scenes' has no columns"):
        assembled(tiny.experiment(gate={"score": "score"}))
    with pytest.raises(ConfigError, match=r"gate\.scores='.*none\.csv'"):
        assembled(tiny.experiment(gate={"scores": str(tmp_path / "none.csv")}))
    with pytest.raises(ConfigError, match=r"gate\.strictness=1\.5"):
        tiny.experiment(gate={"strictness": 1.5})


@pytest.mark.slow
def test_training_with_a_gate_is_the_same_on_eight_devices(tmp_path):
    experiment = scored(tmp_path / "s.parquet", gate__decay=0.2, optimizer__learning_rate=1e-3)
    runs = [trained(dataclasses.replace(experiment), steps=8, devices=devices) for devices in (1, 8)]
    for (one, wanted), (many, metrics) in zip(*runs, strict=True):
        for name in ("loss", "gate/accuracy", "gate/kept", "gate/threshold"):
            np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(many.gate["performance"], one.gate["performance"], atol=1e-6)
    assert runs[0][-1][1]["gate/kept"] < 1
