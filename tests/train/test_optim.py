"""Schedules at their corners, and which rule applies to which parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.core.state import parameter_paths
from mmjax.experiment import LoraConfig, OptimizerConfig
from mmjax.train.optim import learning_rate, learning_rate_factors, make_optimizer
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
    tx = make_optimizer(config, learning_rate_factors(config, PARAMS), steps=10)

    ones = jax.tree.map(np.ones_like, PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(ones, tx.init(PARAMS), PARAMS)
    return float(updates["text"]["ln"]["scale"][0]), float(updates["visual"]["proj"]["kernel"][0, 0])


def decayed(vision, text, **options):
    """The last names of the parameters that a step without gradients moves, and of those that it leaves alone."""
    _, shapes = clip_models.split(clip_models.config(vision, text, init_logit_bias=-10.0))
    params = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    config = OptimizerConfig(**options)
    tx = make_optimizer(config, learning_rate_factors(config, params), steps=10)
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


def factors(vision=None, text=None, *, lora=None, **options):
    """By path, of towers of 3 and 2 blocks; ``[...]`` for each block if these differ."""
    sizes = {"layers": 3} | (vision or {}), {"layers": 2} | (text or {})
    _, shapes = clip_models.split(clip_models.config(*sizes))
    tree = learning_rate_factors(OptimizerConfig(**options), shapes, lora=lora)
    return {path.replace(".", "/"): np.ravel(value).tolist() for path, value in clip_models.flat(tree).items()}


def test_layer_decay_is_that_of_beit():
    """Its code numbers the embeddings 0, block k k + 1 and all the rest L + 1, and decays by L + 1 less that number."""
    got = factors(layer_decay=0.75, learning_rate_multipliers=(("visual/blocks/mlp", 0.1),))
    for tower, layers in (("visual", 3), ("text", 2)):
        each = [0.75 ** (layers + 1 - (k + 1)) for k in range(layers)]
        first = 0.75 ** (layers + 1)
        for path in got:
            if path.startswith(f"{tower}/"):
                one = each if "/blocks/" in path else [1.0] if "/proj/" in path or "/ln_" in path else [first]
                one = [first] if path.startswith("visual/ln_pre/") else one
                scaled = np.multiply(one, 0.1 if path.startswith("visual/blocks/mlp") else 1.0)
                np.testing.assert_allclose(got[path], scaled, rtol=1e-6, err_msg=path)
    assert got["logit_scale"] == [1.0] and got["visual/pos_embed"] != [1.0] and len(got["text/blocks/ln_1/scale"]) == 2
    heads = factors({"pool_type": "map"}, {"proj_type": "mlp", "pool_tanh": True}, layer_decay=0.5)
    behind = ("visual/map_head/probe", "text/pooler/kernel", "text/proj_hidden/kernel", "text/proj/kernel")
    assert [heads[path] for path in behind] == [[1.0]] * 4


BEFORE_BLOCKS = ["cls", "ln_pre/scale", "patch_embed/kernel", "pos_embed"]


@pytest.mark.parametrize(
    ("groups", "trained"),
    [
        (0, []),
        (1, ["proj/kernel"]),
        (2, ["blocks[2]", "ln_post/scale", "proj/kernel"]),
        (3, ["blocks[1]", "blocks[2]", "ln_post/scale", "proj/kernel"]),
        (5, sorted([*BEFORE_BLOCKS, "blocks[0]", "blocks[1]", "blocks[2]", "ln_post/scale", "proj/kernel"])),
    ],
)
def test_the_groups_that_are_unlocked_are_open_clips(groups, trained):
    """As its ``lock`` lists them: before the blocks; each block; the last block with the last norm; the projection."""
    got = factors(unlocked_image_groups=groups)
    blocks = {path: (value * 3)[:3] for path, value in got.items() if path.startswith("visual/blocks/")}
    assert len({tuple(value) for value in blocks.values()}) == 1
    names = [f"blocks[{k}]" for k, value in enumerate(next(iter(blocks.values()))) if value]
    names += [p.removeprefix("visual/") for p in got if p.startswith("visual/") and p not in blocks and got[p] == [1.0]]
    assert sorted(name for name in names if not name.endswith("bias")) == trained
    assert all(value == [1.0] for path, value in got.items() if not path.startswith("visual/"))


def test_more_groups_than_a_tower_has_are_refused():
    with pytest.raises(ConfigError, match=r"^optimizer.unlocked_text_groups=5: the tower has 4 groups"):
        factors(unlocked_text_groups=5)
    assert factors(unlocked_text_groups=4) == factors()
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        factors(unlocked_text_groups=0, unlocked_image_groups=0, learning_rate_multipliers=(("logit_scale", 0.0),))


def test_with_adapters_only_they_train_and_what_is_named():
    adapters = {"visual": {"proj": {"kernel": np.ones((2, 2)), "lora": {"a": np.ones((2, 1)), "b": np.ones((1, 2))}}}}
    tree = PARAMS | adapters
    config = OptimizerConfig(learning_rate_multipliers=((".*/lora/b", 16.0),))
    got = {
        path: np.ravel(value).tolist()
        for train in ((), ("text/ln/.*",))
        for path, value in clip_models.flat(
            learning_rate_factors(config, tree, lora=LoraConfig(rank=1, train=train))
        ).items()
        if path != "text.ln.scale" or train
    }
    assert got == {
        "visual.proj.kernel": [0],
        "visual.proj.lora.a": [1],
        "visual.proj.lora.b": [16],
        "text.ln.scale": [1],
    }
    with pytest.raises(ConfigError, match=r"^lora.train: 'txt' matches no parameter; paths start with text, visual"):
        learning_rate_factors(config, tree, lora=LoraConfig(rank=1, train=("txt",)))


def test_an_adapter_decays_where_its_kernel_does():
    adapters = {"lora": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}}
    params = {"visual": {"proj": {"kernel": jnp.ones((2, 2))} | adapters, "bias_map": {"kernel": jnp.ones(2)}}}
    for pattern, moved in ((".*kernel", True), ("visual/bias_map/.*", False)):
        config = OptimizerConfig(weight_decay_pattern=pattern)
        tx = make_optimizer(config, learning_rate_factors(config, params, lora=LoraConfig(rank=1)), steps=10)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        assert bool(np.all(updates["visual"]["proj"]["lora"]["a"])) == moved
        assert not np.any(updates["visual"]["proj"]["kernel"])


def test_a_first_moment_in_bfloat16_is_off_by_its_rounding_alone():
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(20, 50)).astype(np.float32)
    params = {"visual": {"kernel": jnp.zeros(50)}}
    updates, states = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(
            learning_rate=1.0, schedule="constant", weight_decay=0.0, clip_norm=None, mu_dtype=dtype
        )
        tx = make_optimizer(config, learning_rate_factors(config, params), steps=20)
        state = tx.init(params)
        with jax.numpy_dtype_promotion("standard"):
            for grad in grads:
                update, state = tx.update({"visual": {"kernel": jnp.asarray(grad)}}, state, params)
        updates[dtype] = np.asarray(update["visual"]["kernel"])
        states[dtype] = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert states == {"float32": {jnp.dtype("float32")}, "bfloat16": {jnp.dtype("float32"), jnp.dtype("bfloat16")}}
    m, v = np.zeros(50), np.zeros(50)
    for grad in grads.astype(np.float64):
        m, v = 0.9 * m + 0.1 * grad, 0.98 * v + 0.02 * grad**2
    spread = np.sqrt(v / (1 - 0.98**20)) + 1e-6
    np.testing.assert_allclose(updates["float32"], -m / (1 - 0.9**20) / spread, rtol=1e-4, atol=1e-6)
    # Each step rounds what is left of the sum twice, to 8 bits: the moment's errors stay below 2^-8 of gradients of 1.
    error = np.abs(updates["bfloat16"] - updates["float32"])
    assert 0 < error.max() < 2e-2


@pytest.mark.parametrize(
    "wrong",
    [
        {"b1": 1.5},
        {"eps": -1.0},
        {"clip_norm": 0.0},
        {"warmup_steps": -1},
        {"ema_decay": 1.1},
        {"mu_dtype": "float16"},
        {"weight_decay_pattern": "("},
        {"layer_decay": 0.0},
        {"unlocked_image_groups": -1},
    ],
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(wrong))}"):
        build(OptimizerConfig, wrong, path="optimizer")
