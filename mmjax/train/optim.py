"""The optimizer: AdamW, its schedule, learning rates by parameter name, and the moving average."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.core.config import ConfigError
from mmjax.core.state import Params, parameter_paths
from mmjax.experiment import LoraConfig, OptimizerConfig

_LAST_NORM = "(visual|text)/(ln_post|ln_final)/"
_HEAD = "(visual|text)/(map_head|attn_pool|attn_pooler|attn_pooler_contrastive|pooler|gates|proj|proj_hidden)/"
"""Parameters behind a tower's blocks."""


def learning_rate(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
    """Linear warm-up, then the schedule down to ``final_fraction`` of the peak.

    The warm-up is ``(step + 1) / warmup_steps``, as open_clip's. One that is longer than the run becomes a tenth of it:
    a run is often shortened by ``steps`` alone. ``rsqrt`` falls as ``sqrt(warmup_steps / step)`` (at least 1 for the
    warm-up), not below the final fraction.
    """
    peak, warmup = config.learning_rate, effective_warmup(config.warmup_steps, steps=steps)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        floor = config.final_fraction
        if config.schedule == "cosine":
            shape = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "rsqrt":
            start = float(max(warmup, 1))
            shape = jnp.maximum(jnp.sqrt(start / jnp.maximum(step, start)), floor)
        else:
            shape = jnp.ones_like(step)
        return peak * shape * jnp.minimum(1.0, (step + 1) / max(warmup, 1))

    return rate


def effective_warmup(warmup_steps: int, *, steps: int) -> int:
    """The warm-up of a run of ``steps``."""
    return warmup_steps if warmup_steps <= steps else steps // 10


def learning_rate_factors(config: OptimizerConfig, params: Params, *, lora: LoraConfig | None = None) -> Params:
    """What the learning rate of each parameter is multiplied by; 0 freezes it.

    A number for each leaf of ``params`` (arrays or shapes), or where the blocks of a stack differ f32[layers, 1, …].
    """
    lora = lora or LoraConfig()
    paths = parameter_paths(params)
    names = jax.tree.leaves(paths)
    patterns = [("optimizer.learning_rate_multipliers", pattern) for pattern, _ in config.learning_rate_multipliers]
    patterns += [("lora.train", pattern) for pattern in lora.train] if lora.rank else []
    for key, pattern in patterns:
        if not any(re.match(pattern, path) for path in names):
            some = ", ".join(sorted({path.split("/")[0] for path in names}))
            raise ConfigError(f"{key}: {pattern!r} matches no parameter; paths start with {some}")
    unlocked = {"visual": config.unlocked_image_groups, "text": config.unlocked_text_groups}
    blocks = {
        tower: max((leaf.shape[0] for leaf in jax.tree.leaves(params.get(tower, {}).get("blocks", {}))), default=0)
        for tower in unlocked
    }
    for tower, key in (("visual", "unlocked_image_groups"), ("text", "unlocked_text_groups")):
        if (unlocked[tower] or 0) > blocks[tower] + 2:
            raise ConfigError(
                f"optimizer.{key}={unlocked[tower]}: the tower has {blocks[tower] + 2} groups; leave it out to train "
                "all of them"
            )

    def factor(path: str, leaf: Any) -> float | np.ndarray:
        value = next((value for pattern, value in config.learning_rate_multipliers if re.match(pattern, path)), 1.0)
        if lora.rank and not path.endswith(("/lora/a", "/lora/b")) and not _matches(lora.train, path):
            return 0.0
        tower = path.split("/")[0]
        if tower not in unlocked:
            return value
        end = blocks[tower] + 1
        layer: Any = 0
        if path.startswith(f"{tower}/blocks/"):
            layer = np.arange(1, end).reshape(-1, *(1,) * (len(leaf.shape) - 1))
        elif _matches((_LAST_NORM, _HEAD), path):
            layer = end
        group = layer - bool(re.match(_LAST_NORM, path))
        groups = unlocked[tower]
        trained = np.True_ if groups is None else group > end - groups
        factors = np.asarray(value * config.layer_decay ** (end - layer) * trained)
        return float(factors.flat[0]) if np.all(factors == factors.flat[0]) else factors.astype(np.float32)

    factors = jax.tree.map(factor, paths, params)
    if not any(np.any(factor) for factor in jax.tree.leaves(factors)):
        raise ConfigError(
            f"optimizer.learning_rate_multipliers={config.learning_rate_multipliers!r}: every parameter is frozen; "
            "leave one above 0"
        )
    return factors


def frozen_blocks(unlocked_groups: int | None, *, layers: int) -> int:
    """How many of a tower's first blocks are frozen where only so many groups train."""
    return 0 if unlocked_groups is None else min(max(layers + 1 - unlocked_groups, 0), layers)


def make_optimizer(config: OptimizerConfig, factors: Params, *, steps: int) -> optax.GradientTransformation:
    """The gradient transformation for parameters with these ``factors``; frozen parameters carry no moments."""
    paths = parameter_paths(factors)
    # An adapter decays where the kernel does that it adds to.
    decayed = jax.tree.map(
        lambda path: re.fullmatch(config.weight_decay_pattern, re.sub("lora/[ab]$", "kernel", path)) is not None, paths
    )

    def scaled(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, _only(factors, updates))

    transforms = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm is not None else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.mu_dtype),
        optax.add_decayed_weights(config.weight_decay, mask=lambda tree: _only(decayed, tree)),
        optax.identity()
        if all(np.all((f == 0) | (f == 1)) for f in jax.tree.leaves(factors))
        else optax.stateless(scaled),
        optax.scale_by_learning_rate(learning_rate(config, steps=steps)),
    ]
    labels = jax.tree.map(lambda factor: "trained" if np.any(factor) else "frozen", factors)
    if "frozen" not in jax.tree.leaves(labels):
        return optax.chain(*transforms)
    return optax.partition({"trained": optax.chain(*transforms), "frozen": optax.set_to_zero()}, labels)


def split_frozen(params: Params, trained: Params) -> tuple[Params, Params]:
    """Parameters of which some part is trained, and the others; in place of the other half each has None."""
    return (
        jax.tree.map(lambda t, p: p if t.any() else None, trained, params),
        jax.tree.map(lambda t, p: None if t.any() else p, trained, params),
    )


def join_frozen(params: Params, frozen: Params) -> Params:
    """The parameters that ``split_frozen`` has split."""
    return jax.tree.map(lambda p, f: f if p is None else p, params, frozen, is_leaf=lambda leaf: leaf is None)


def complete_gradients(grads: Params, params: Params, trained: Params) -> Params:
    """Gradients of the trained half of ``params`` as those of all; frozen parameters and layers have zeros."""

    def complete(t: np.ndarray, grad: Any, param: jax.Array) -> jax.Array:
        if grad is None:
            return jnp.zeros_like(param)
        return grad if t.all() else jnp.where(t, grad, 0)

    return jax.tree.map(complete, trained, grads, params)


def keep_frozen(new: Params, old: Params, trained: Params) -> Params:
    """``new`` with the frozen parameters, and frozen layers of stacks, as they are in ``old``."""

    def choose(t: np.ndarray, new: jax.Array, old: jax.Array) -> jax.Array:
        if not t.any():
            return old
        return new if t.all() else jnp.where(t, new, old)

    return jax.tree.map(choose, trained, new, old)


def updates_done(opt_state: Any) -> jax.Array:
    """i32[]: how many updates an optimizer state of ``make_optimizer`` has seen; its schedule is at that place."""
    is_place = lambda state: isinstance(state, optax.ScaleByScheduleState)  # noqa: E731
    places = [state.count for state in jax.tree.leaves(opt_state, is_leaf=is_place) if is_place(state)]
    return places[0]


def update_ema(ema: Params, params: Params, *, step: jax.Array, decay: float) -> Params:
    """``decay · ema + (1 - decay) · params``, with a smaller decay in the first steps: (1 + t) / (10 + t)."""
    t = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, ema, params)


def _matches(patterns: Iterable[str], path: str) -> bool:
    return any(re.match(pattern, path) for pattern in patterns)


def _only(tree: Any, like: Any) -> Any:
    """``tree`` with the leaves that ``like`` has masked out (by optax.partition) masked out too."""
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda ref, leaf: ref if masked(ref) else leaf, like, tree, is_leaf=masked)
