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

from mmjax.core.sphere import unit
from mmjax.core.state import Params, TrainState
from mmjax.core.types import Batch, Metrics
from mmjax.train import forward
from mmjax.train.augmentation import Augmentations
from mmjax.train.optim import update_ema, updates_done

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def make_step(
    graph: nnx.GraphDef,
    *,
    objective: Loss,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    max_logit_scale: float,
    ema_decay: float = 0.0,
    augmentations: Augmentations,
    micro_batches: int = 1,
) -> Step:
    """The step for the model ``graph``: towers, augmentations, objective, optimizers, moving average; not yet jitted.

    The augmentations' own parameters get their gradients from the same backward pass: adversaries reverse theirs.

    Where the loss, or the norm of the model's or of an augmentation's gradient, is not finite, the update is rejected:
    all of the state but ``step`` stays as it was, and with it the place in the schedule. ``rejected_update`` is then
    1, else 0; ``rejected_updates`` counts them since the first step.
    """
    loss = make_loss(graph, objective=objective, augmentations=augmentations, micro_batches=micro_batches)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learned = {name: own.params for name, own in state.augment.items()}
        # Sequences of another length are another program: all of it is a branch, so none pays for the others.
        branches = [
            functools.partial(jax.grad(loss, argnums=(0, 1), has_aux=True), shares=shares)
            for shares in augmentations.lengths
        ]
        arguments = (state.params, learned, batch, state.step)
        if len(branches) == 1:
            (grads, augment_grads), metrics = branches[0](*arguments)
        else:
            (grads, augment_grads), metrics = jax.lax.switch(augmentations.length(state.step), branches, *arguments)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of its integer count
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Radford et al. 2021 clip the scale itself; limiting its use instead would leave it without a gradient.
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, jnp.log(max_logit_scale))
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = update_ema(ema_params, params, step=state.step, decay=ema_decay)
        augment, more = augmentations.update(augment_grads, state.augment)
        norm = optax.tree.norm(grads)
        good = functools.reduce(
            jnp.logical_and,
            map(jnp.isfinite, [metrics["loss"], norm, *(more[f"augment/{name}/gradient_norm"] for name in augment)]),
        )
        new = TrainState(step=state.step, params=params, opt_state=opt_state, ema_params=ema_params, augment=augment)
        new = jax.tree.map(functools.partial(jnp.where, good), new, state)
        new = dataclasses.replace(new, step=state.step + 1)
        metrics |= {
            "gradient_norm": norm,
            "learning_rate": schedule(updates_done(state.opt_state)),
            "logit_scale": jnp.exp(state.params["logit_scale"]),
            "rejected_update": 1 - good.astype(jnp.float32),
            "rejected_updates": new.step - updates_done(new.opt_state),
        }
        return new, metrics | more

    return step


def make_loss(graph: nnx.GraphDef, *, objective: Loss, augmentations: Augmentations, micro_batches: int = 1) -> Loss:
    """What a step minimises, of parameters, augmentations' parameters, batch and step, with the metrics.

    The towers take a batch in ``micro_batches`` parts; ``shares`` is one of ``augmentations.lengths``.
    """

    def loss(
        params: Params, learned: dict[str, Params], batch: Batch, at: jax.Array, *, shares: tuple[float, ...]
    ) -> tuple[jax.Array, Metrics]:
        model = merge(graph, params)
        shorten_images, shorten_texts = augmentations.shorten(shares, at)
        features = forward.clean(
            model,
            batch,
            towers=augmentations.towers,
            taps=augmentations.taps,
            shorten_images=shorten_images,
            shorten_texts=shorten_texts,
            parts=micro_batches,
        )
        pooled = features["pooled"]
        value, metrics = objective(
            unit(model.visual.project(pooled.image)),
            unit(model.text.project(pooled.text)),
            image_source=pooled.image_source,
            text_source=pooled.text_source,
            scale=jnp.exp(model.logit_scale[...]),
            bias=None if model.logit_bias is None else model.logit_bias[...],
        )
        metrics = {"loss": value, **metrics, **augmentations.dropped(shares)}
        if not augmentations.modules:
            return value, metrics
        added, more = augmentations.loss(
            learned,
            features,
            rest=functools.partial(merge, graph),
            model_params=params,
            objective=objective,
            clean_loss=value,
            step=at,
            shorten_images=shorten_images,
            parts=micro_batches,
        )
        return value + added, metrics | more

    return loss


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The model of plain-dictionary parameters, for use inside a compiled function."""
    return nnx.merge(graph, nnx.State(params))
