"""Schedules at their corners, and which rule applies to which parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.core.state import parameter_paths
from mmjax.experiment import OptimizerConfig
from mmjax.train.optim import learning_rate, make_optimizer
from support import clip_models

STEPS, WARMUP, PEAK = 100, 10, 0.5


def at(step, **options):
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=WARMUP, **options)
    return float(learning_rate(config, steps=STEPS)(step))


@pytest.mark.parametrize("schedule", ["cosine", "constant", "rsqrt"])
def test_warm_up_rises_evenly_to_the_peak(schedule):
    rates = [at(step, schedule=schedule) for step in range(WARMUP)]
    np.testing.assert_allclose(rates, [PEAK * (i + 1) / WARMUP for i in range(WARMUP)], rtol=1e-5)


def test_cosine_ends_at_the_final_fraction():
    np.testing.assert_allclose(at(STEPS, final_fraction=0.1), 0.1 * PEAK, rtol=1e-5)
    middle = (STEPS + WARMUP) / 2
    np.testing.assert_allclose(at(middle, final_fraction=0.1), PEAK * (0.1 + 0.9 / 2), rtol=1e-5)
    assert all(at(s) >= at(s + 1) for s in range(WARMUP, STEPS))


def test_rsqrt_and_constant():
    np.testing.assert_allclose(at(4 * WARMUP, schedule="rsqrt"), PEAK / 2, rtol=1e-5)
    np.testing.assert_allclose(at(STEPS, schedule="rsqrt", final_fraction=0.9), 0.9 * PEAK, rtol=1e-5)
    np.testing.assert_allclose(at(STEPS, schedule="constant"), PEAK, rtol=1e-6)


def test_no_warm_up_starts_at_the_peak_and_a_warm_up_may_fill_the_run():
    config = OptimizerConfig(learning_rate=PEAK)
    np.testing.assert_allclose(learning_rate(config, steps=1)(0), PEAK)
    whole = OptimizerConfig(learning_rate=PEAK, warmup_steps=5)
    assert np.isfinite(learning_rate(whole, steps=5)(4))


def test_a_warm_up_longer_than_the_run_is_a_tenth_of_it():
    short = learning_rate(OptimizerConfig(learning_rate=PEAK, warmup_steps=40), steps=30)
    tenth = learning_rate(OptimizerConfig(learning_rate=PEAK, warmup_steps=3), steps=30)
    assert [short(step) for step in range(30)] == [tenth(step) for step in range(30)]


PARAMS = {"text": {"ln": {"scale": np.ones(2)}}, "visual": {"proj": {"kernel": np.ones((2, 2))}}}


def test_paths():
    assert parameter_paths(PARAMS) == {
        "text": {"ln": {"scale": "text/ln/scale"}},
        "visual": {"proj": {"kernel": "visual/proj/kernel"}},
    }


def update(**options):
    config = OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, eps=0.0, clip_norm=None, schedule="constant", **options)
    tx = make_optimizer(config, PARAMS, steps=10)

    ones = jax.tree.map(np.ones_like, PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(ones, tx.init(PARAMS), PARAMS)
    return float(updates["text"]["ln"]["scale"][0]), float(updates["visual"]["proj"]["kernel"][0, 0])


def decayed(vision, text, **options):
    """The last names of the parameters that a step without gradients moves, and of those that it leaves alone."""
    _, shapes = clip_models.split(clip_models.config(vision, text, init_logit_bias=-10.0))
    params = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    tx = make_optimizer(OptimizerConfig(**options), params, steps=10)
    with jax.numpy_dtype_promotion("standard"):
        updates = jax.jit(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)[0])(params)
    moved = {path.rsplit(".", 1)[-1]: bool(np.any(u)) for path, u in clip_models.flat(updates).items()}
    return {name for name, moves in moved.items() if moves}, {name for name, moves in moved.items() if not moves}


def test_decay_applies_to_what_open_clip_decays():
    """Its rule: what has two or more dimensions and is neither a bias, a norm nor the temperature."""
    parts = {"registers": 2, "qk_norm": True, "patch_bias": True, "modalities": ("image", "depth")}
    text = {"proj_bias": True, "qk_norm": True}
    moved, kept = decayed(parts | {"modality_channels": (3, 1)}, text)
    assert moved == {"kernel", "embedding", "pos_embed", "registers", "modality_embed"}
    assert kept == {"bias", "scale", "cls", "logit_scale", "logit_bias"}
    assert decayed({"pool_type": "map"}, text)[0] >= {"probe"}  # of one row there, [1, 1, width]
    assert decayed(parts | {"modality_channels": (3, 1)}, text, weight_decay_pattern=".*kernel")[0] == {"kernel"}


def test_the_expression_of_weight_decay_can_change_what_it_applies_to():
    np.testing.assert_allclose(update(weight_decay=0.5), (-1.0, -1.5))
    np.testing.assert_allclose(update(weight_decay=0.5, weight_decay_pattern="text/.*"), (-1.5, -1.0))


def test_the_first_rule_that_matches_counts():
    rules = (("text/ln", 0.5), ("text", 0.0), ("visual/.*/kernel", 2.0))
    np.testing.assert_allclose(update(weight_decay=0.0, learning_rate_multipliers=rules), (-0.5, -2.0))
    np.testing.assert_allclose(update(weight_decay=0.0, learning_rate_multipliers=(("text", 0.0),)), (0.0, -1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"b1": 1.5},
        {"eps": -1.0},
        {"clip_norm": 0.0},
        {"warmup_steps": -1},
        {"ema_decay": 1.1},
        {"weight_decay_pattern": "("},
    ],
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(wrong))}"):
        build(OptimizerConfig, wrong, path="optimizer")
