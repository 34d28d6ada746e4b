"""One training step as a pure function; it touches no files, logs or meshes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax import rng
from mmjax.train.optim import moving_average
from mmjax.train.state import Params, TrainState
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
) -> Step:
    """The step for the model ``graph``: towers, objective, optimizer, moving average; to be jitted by the caller."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = rng.key(seed, stream="patch_dropout", step=state.step)
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key)
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
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, average=averaged), metrics

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        model = merge(graph, params)
        image = unit(model.encode_image(batch.images, key=key))
        text = unit(model.encode_text(batch.tokens))
        bias = None if model.logit_bias is None else model.logit_bias[...]
        value, metrics = objective(
            image,
            text,
            image_source=_repeated(batch.image_source, image.shape[0] // batch.image_source.ids.shape[0]),
            text_source=batch.text_source,
            scale=jnp.exp(model.logit_scale[...]),
            bias=bias,
        )
        return value, {"loss": value, **metrics}

    return step


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The model of plain-dictionary parameters, for use inside a compiled function."""
    return nnx.merge(graph, nnx.State(params))


def unit(x: jax.Array) -> jax.Array:
    """Rows of length one, in float32; a row of zeros stays zero and has a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def _repeated(source: Provenance, times: int) -> Provenance:
    """For the views of further modalities, which follow one another in whole batches of rows."""
    return Provenance(ids=jnp.tile(source.ids, (times, 1)), weight=jnp.tile(source.weight, (times, 1)))
