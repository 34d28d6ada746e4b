"""The optimizer: AdamW, its schedule, learning rates by parameter name, and the moving average."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.config import ConfigError
from mmjax.core.state import Params, parameter_paths
from mmjax.experiment import OptimizerConfig


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


def make_optimizer(config: OptimizerConfig, params: Params, *, steps: int) -> optax.GradientTransformation:
    """The gradient transformation for ``params`` (arrays or shapes); frozen parameters carry no moments."""
    paths = parameter_paths(params)
    multipliers = config.learning_rate_multipliers
    factors = {path: _factor(path, multipliers) for path in jax.tree.leaves(paths)}
    for pattern, _ in multipliers:
        if not any(re.match(pattern, path) for path in factors):
            some = ", ".join(sorted({path.split("/")[0] for path in factors}))
            raise ConfigError(
                f"optimizer.learning_rate_multipliers: {pattern!r} matches no parameter; paths start with {some}"
            )
    if not any(factors.values()):
        raise ConfigError(
            f"optimizer.learning_rate_multipliers={multipliers!r}: every parameter is frozen; leave one above 0"
        )
    decayed = jax.tree.map(lambda path: re.fullmatch(config.weight_decay_pattern, path) is not None, paths)
    factor = jax.tree.map(factors.__getitem__, paths)

    def scaled(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, _only(factor, updates))

    transforms = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm is not None else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=lambda tree: _only(decayed, tree)),
        optax.stateless(scaled) if set(factors.values()) - {0.0, 1.0} else optax.identity(),
        optax.scale_by_learning_rate(learning_rate(config, steps=steps)),
    ]
    if all(factors.values()):
        return optax.chain(*transforms)
    labels = jax.tree.map(lambda path: "trained" if factors[path] else "frozen", paths)
    return optax.partition({"trained": optax.chain(*transforms), "frozen": optax.set_to_zero()}, labels)


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


def _factor(path: str, multipliers: tuple[tuple[str, float], ...]) -> float:
    return next((factor for pattern, factor in multipliers if re.match(pattern, path)), 1.0)


def _only(tree: Any, like: Any) -> Any:
    """``tree`` with the leaves that ``like`` has masked out (by optax.partition) masked out too."""
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda ref, leaf: ref if masked(ref) else leaf, like, tree, is_leaf=masked)
