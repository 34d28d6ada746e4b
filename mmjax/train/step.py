"""One training step as a pure function; it touches no files, logs or meshes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax import rng
from mmjax.augment.base import Features
from mmjax.sphere import unit
from mmjax.train.augmenting import Augmentations
from mmjax.train.optim import moving_average
from mmjax.train.state import AugmentState, Params, TrainState
from mmjax.types import Batch, Metrics, Provenance

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def make_step(
    graph: nnx.GraphDef,
    *,
    objective: Loss,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    max_logit_scale: float,
    average: float = 0.0,
    augmentations: Augmentations | None = None,
    augment_tx: optax.GradientTransformation | None = None,
) -> Step:
    """The step for the model ``graph``: towers, augmentations, objective, optimizers, moving average; not yet jitted.

    The augmentations' own parameters get their gradients from the same backward pass: adversaries reverse theirs.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = rng.key(seed, stream="patch_dropout", step=state.step)
        learned = {} if state.augment is None else state.augment.params
        (grads, augment_grads), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            state.params, learned, batch, key, state.step
        )
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of its integer count
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Radford et al. 2021 clip the scale itself; limiting its use instead would leave it without a gradient.
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, jnp.log(max_logit_scale))
        averaged = state.average
        if averaged is not None:
            averaged = moving_average(averaged, params, step=state.step, decay=average)
        metrics |= {
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
            "logit_scale": jnp.exp(state.params["logit_scale"]),
        }
        augment = state.augment
        if augment is not None and augment_tx is not None:
            with jax.numpy_dtype_promotion("standard"):
                updates, augment_opt_state = augment_tx.update(augment_grads, augment.opt_state, augment.params)
            for name, inner in augment_grads.items():
                metrics[f"augment/{name}/gradient_norm"] = optax.tree.norm(inner)
            augment = AugmentState(params=optax.apply_updates(augment.params, updates), opt_state=augment_opt_state)
        new = TrainState(step=state.step + 1, params=params, opt_state=opt_state, average=averaged, augment=augment)
        return new, metrics

    def loss(params: Params, learned: Params, batch: Batch, key: jax.Array, at: jax.Array) -> tuple[jax.Array, Metrics]:
        model = merge(graph, params)
        pooled = model.visual.pooled(model.visual.embed(batch.images, key=key))
        pooled_text = model.text.pooled(model.text.embed(batch.tokens), batch.tokens)
        examples = batch.image_source.ids.shape[0]
        before = Features(
            image=pooled,
            text=pooled_text,
            image_source=_repeated(batch.image_source, pooled.shape[0] // examples),
            text_source=batch.text_source,
            examples=examples,
        )
        clean = dataclasses.replace(
            before, image=unit(model.visual.project(pooled)), text=unit(model.text.project(pooled_text))
        )
        value, metrics = objective(
            clean.image,
            clean.text,
            image_source=clean.image_source,
            text_source=clean.text_source,
            scale=jnp.exp(model.logit_scale[...]),
            bias=None if model.logit_bias is None else model.logit_bias[...],
        )
        metrics = {"loss": value, **metrics}
        if augmentations is None:
            return value, metrics
        added, more = augmentations.loss(
            learned,
            before,
            head=functools.partial(merge, graph),
            model_params=params,
            objective=objective,
            clean_loss=value,
            step=at,
        )
        return value + added, metrics | more

    return step


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The model of plain-dictionary parameters, for use inside a compiled function."""
    return nnx.merge(graph, nnx.State(params))


def _repeated(source: Provenance, times: int) -> Provenance:
    """For the views of further modalities, which follow one another in whole batches of rows."""
    return Provenance(ids=jnp.tile(source.ids, (times, 1)), weight=jnp.tile(source.weight, (times, 1)))
