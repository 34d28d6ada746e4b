"""Runs with a fusion encoder: a moving average and queues in their state, on any number of devices."""

import itertools

import jax
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from support import tiny
from support.training import assembled, trained

MOMENTUM = {"momentum": 0.9, "queue_size": 32, "distillation": 0.4, "distillation_warmup_steps": 4}
METHODS = {
    "albef": {"objective": {"name": "albef", **MOMENTUM}, "model__fusion": {"layers": 1}},
    "tcl": {"objective": {"name": "tcl", **MOMENTUM}, "model__fusion": {"layers": 1, "block_norm": "post"}},
    "vilt": {
        "objective": {"name": "fusion", "contrastive_weight": 0.0},
        "model__fusion": {"kind": "joint", "layers": 2, "pool_tanh": True, "word_head": "own"},
        "model__vision_cfg__layers": 0,
        "model__text_cfg__layers": 0,
    },
}


def run(method, *, devices, steps=3, **options):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2} if devices == 8 else {"data": -1}
    return trained(tiny.experiment(mesh=mesh, **METHODS[method], **options), steps=steps, devices=devices)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_one_device_and_eight_in_micro_batches_train_alike(method):
    options = {"data__transforms": (("mixgen", {}),), "augment": (("mixup", {"tap": "tokens@0"}),)}
    whole, shared = run(method, devices=1, **options), run(method, devices=8, micro_batches=2, **options)
    for (state, metrics), (wanted_state, wanted) in zip(shared, whole, strict=True):
        for key, value in wanted.items():
            np.testing.assert_allclose(metrics[key], value, rtol=2e-4, atol=2e-5, err_msg=key)
        for part in ("params", "momentum_params", "objective"):
            jax.tree.map(
                lambda got, want: np.testing.assert_allclose(got, want, atol=3e-4),
                getattr(state, part), getattr(wanted_state, part),
            )  # fmt: skip


@pytest.mark.slow
def test_queue_and_average_follow_the_updates():
    history = run("albef", devices=1)
    (first, metrics), *_, (last, _) = history
    assert not any(values["rejected_update"] for _, values in history)
    assert {"contrastive_loss", "matching_loss", "words_loss", "words_accuracy"} <= metrics.keys()
    assert "carried" not in metrics and np.isfinite(metrics["loss"])
    assert int(last.objective["updates"]) == 3 and int(last.objective["image_queue_place"]) == 48 % 32
    ids = np.asarray(first.objective["text_queue_ids"])
    assert (ids[:16, 0] >= 0).all() and (ids[16:] == -1).all()
    np.testing.assert_allclose(np.linalg.norm(first.objective["image_queue"][:16], axis=1), 1, atol=1e-5)
    for (before, _), (after, _) in itertools.pairwise(history):
        jax.tree.map(
            lambda old, now, average: np.testing.assert_allclose(average, 0.9 * old + 0.1 * now, atol=1e-6),
            before.momentum_params, after.params, after.momentum_params,
        )  # fmt: skip


def test_they_are_split_like_parameters_and_rows():
    experiment = tiny.experiment(mesh={"data": 2, "fsdp": 4}, model__text_cfg__width=256, **METHODS["albef"])
    program, batches = assembled(experiment, jax.devices())
    batches.close()
    state = program.abstract_state
    assert state.objective["image_queue"].sharding.shard_shape((32, 16)) == (4, 16)
    kernel = state.momentum_params["fusion"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.spec == state.params["fusion"]["blocks"]["mlp"]["fc1"]["kernel"].sharding.spec
    assert "fsdp" in kernel.sharding.spec


def test_a_model_without_the_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"objective.name='albef': runs model.fusion, and the model has none"):
        assembled(tiny.experiment(objective={"name": "albef"}), jax.devices()[:1])
