"""Contrast with a queue of a moving average's embeddings, and its similarities as soft targets (MoCo, ALBEF)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError
from mmjax.core.numerics import EXCLUDED
from mmjax.core.types import Provenance
from mmjax.objectives.common.base import State
from mmjax.objectives.common.row_softmax import weighted_mean
from mmjax.objectives.common.targets import similarity

QUEUE_SOURCES = 2
"""Sources of a row that the queue has room for: those of a row that was mixed once."""

SIDES = ("image", "text")


def empty_queue(size: int, embed_dim: int) -> State:
    """A queue for each side without any rows; what is not yet filled is padding, where ALBEF has random vectors."""
    state: State = {}
    for side in SIDES:
        state |= {
            f"{side}_queue": jnp.zeros((size, embed_dim), jnp.float32),
            f"{side}_queue_ids": jnp.full((size, QUEUE_SOURCES), -1, jnp.int32),
            f"{side}_queue_weight": jnp.zeros((size, QUEUE_SOURCES), jnp.float32),
            f"{side}_queue_place": jnp.zeros((), jnp.int32),
        }
    return state


def push(state: State, side: str, rows: jax.Array, source: Provenance) -> State:
    """The queue with ``rows`` f32[n, D] in place of its oldest."""
    size = state[f"{side}_queue"].shape[0]
    if len(rows) > size:
        raise ConfigError(
            f"objective.queue_size={size}: shorter than the {len(rows)} {side} rows of a batch; make it larger"
        )
    source = with_sources(source, QUEUE_SOURCES)
    place = state[f"{side}_queue_place"]
    places = (place + jnp.arange(len(rows))) % size
    new = {"queue": rows, "queue_ids": source.ids, "queue_weight": source.weight}
    return (
        state
        | {f"{side}_{name}": state[f"{side}_{name}"].at[places].set(values) for name, values in new.items()}
        | {f"{side}_queue_place": (place + len(rows)) % size}
    )


def queued_columns(state: State, side: str, rows: jax.Array, source: Provenance) -> tuple[jax.Array, Provenance]:
    """The moving average's rows of this batch, then the queue's: f32[n + size, D], and what they are made of."""
    if f"{side}_queue" not in state:
        return rows, source
    number = max(QUEUE_SOURCES, source.ids.shape[1])
    old = Provenance(ids=state[f"{side}_queue_ids"], weight=state[f"{side}_queue_weight"])
    both = [with_sources(p, number) for p in (source, old)]
    joined = Provenance(ids=jnp.concatenate([p.ids for p in both]), weight=jnp.concatenate([p.weight for p in both]))
    return jnp.concatenate([rows, state[f"{side}_queue"]]), joined


def with_sources(source: Provenance, number: int) -> Provenance:
    """The same rows with room for ``number`` sources; the first row of padding stays padding."""
    more = number - source.ids.shape[1]
    if more < 0:
        raise ConfigError(
            f"objective.queue_size: its rows have {number} sources, and those of this batch {source.ids.shape[1]}; mix "
            "rows once, or set it to 0"
        )
    pad = ((0, 0), (0, more))
    return Provenance(ids=jnp.pad(source.ids, pad, constant_values=-1), weight=jnp.pad(source.weight, pad))


def distilled_loss(
    rows: jax.Array,
    teacher: jax.Array | None,
    columns: jax.Array,
    targets: tuple[jax.Array, jax.Array],
    *,
    scale: jax.Array,
    soft_weight: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """The mean over the rows with a target of ``-Σ_j y_ij log softmax_j(scale · row_i · column_j)``, and R@1.

    ``y_ij = (1 - a) S_ij / Σ_j S_ij + a softmax_j(scale · teacher_i · column_j)``, for a = ``soft_weight``.

    Args:
        rows: f32[N, D].
        teacher: f32[N, D], the same rows by the moving average; None: a is 0.
        columns: f32[C, D], without a gradient.
        targets: S f32[N, C], and bool[N, C] of the pairs that take part.
        scale: f32[].
        soft_weight: From 0 to 1.
    """
    target, among = targets
    columns = jax.lax.stop_gradient(columns)
    logits = jnp.where(among, scale * similarity(rows, columns), EXCLUDED)
    mass = jnp.sum(target, axis=1, keepdims=True)
    wanted = target / jnp.where(mass > 0, mass, 1.0)
    if teacher is not None:
        own = jnp.where(among, scale * similarity(teacher, columns), EXCLUDED)
        wanted = (1 - soft_weight) * wanted + soft_weight * jax.lax.stop_gradient(jax.nn.softmax(own))
    each = jax.nn.logsumexp(logits, axis=1) - jnp.sum(wanted * logits, axis=1)
    has_target = mass[:, 0] > 0
    best = jnp.take_along_axis(target, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0] > 0
    return weighted_mean(each, has_target), weighted_mean(best.astype(jnp.float32), has_target)
