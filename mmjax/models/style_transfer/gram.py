"""Style transfer by optimizing pixels until their features have the Gram matrices of another picture."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from mmjax.core.config import ConfigError, Ge, Gt, nearest
from mmjax.models.style_transfer.layers import Params
from mmjax.models.style_transfer.vgg import Pooling, gram_matrix, layer_names, vgg_features


@dataclasses.dataclass(frozen=True, kw_only=True)
class GramConfig:
    """How pixels are optimized (Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks").

    With features F of the new picture, P of the content and G, A the Gram matrices of N channels at M positions::

        L = γ ½ Σ (F - P)²  +  β Σ_l w_l / (4 N² M²) Σ (G - A)²

    Args:
        content_layer: where F and P are compared.
        style_layers: where G and A are, with equal w that sum to 1.
        content_weight: γ.
        style_weight: β.
        steps: of the optimizer.
        optimizer: L-BFGS as in the paper, or Adam, which needs less memory.
        learning_rate: of Adam, for pixels from 0 to 1.
        start: the content, which needs fewer steps, or the paper's noise.
        pooling: VGG's own max, or the mean that the paper prefers.
    """

    content_layer: str = "conv4_2"
    style_layers: tuple[str, ...] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
    content_weight: Annotated[float, Ge(0)] = 1.0
    style_weight: Annotated[float, Ge(0)] = 1000.0
    steps: Annotated[int, Ge(1)] = 100
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    learning_rate: Annotated[float, Gt(0)] = 0.02
    start: Literal["content", "noise"] = "content"
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        for layer in (self.content_layer, *self.style_layers):
            if layer not in layer_names():
                raise ConfigError(f"a layer {layer!r} of VGG-19: {nearest(layer, layer_names())}")
        if not self.style_layers:
            raise ConfigError("style_layers=(): name one or more layers of VGG-19")

    def with_strength(self, strength: float | None) -> GramConfig:
        """The same with ``strength`` of the style's weight; None leaves it."""
        return self if strength is None else dataclasses.replace(self, style_weight=strength * self.style_weight)


def gram_loss(params: Params, x: jax.Array, content: jax.Array, style: jax.Array, config: GramConfig) -> jax.Array:
    """L of pictures f32[1, H, W, 3] from 0 to 1; the style may have another size."""
    layers = (config.content_layer, *config.style_layers)
    new = vgg_features(params, x, layers, pooling=config.pooling)
    aim = vgg_features(params, content, layers[:1], pooling=config.pooling)[config.content_layer]
    styles = vgg_features(params, style, config.style_layers, pooling=config.pooling)
    loss = config.content_weight * 0.5 * jnp.sum(jnp.square(new[config.content_layer] - aim))
    for layer in config.style_layers:
        # Divided by M each, so that a style of another size has comparable matrices.
        grams = [gram_matrix(f) / (f.shape[1] * f.shape[2]) for f in (new[layer], styles[layer])]
        size = 4 * new[layer].shape[-1] ** 2 * len(config.style_layers)
        loss += config.style_weight / size * jnp.sum(jnp.square(grams[0] - grams[1]))
    return loss


def transfer_style(
    params: Params, content: jax.Array, style: jax.Array, key: jax.Array, config: GramConfig
) -> tuple[jax.Array, jax.Array]:
    """The content f32[H, W, 3] from 0 to 1 in the style of another picture, and the loss before and after: f32[2]."""
    content, style = content[None], style[None]
    start = content if config.start == "content" else jax.random.uniform(key, content.shape)

    def loss(x: jax.Array) -> jax.Array:
        return gram_loss(params, x, content, style, config)

    tx = optax.lbfgs() if config.optimizer == "lbfgs" else optax.adam(config.learning_rate)
    value_and_grad = optax.value_and_grad_from_state(loss) if config.optimizer == "lbfgs" else None

    def step(_: jax.Array, carry: tuple[jax.Array, optax.OptState]) -> tuple[jax.Array, optax.OptState]:
        x, state = carry
        if value_and_grad is None:
            updates, state = tx.update(jax.grad(loss)(x), state, x)
        else:
            value, gradient = value_and_grad(x, state=state)
            updates, state = tx.update(gradient, state, x, value=value, grad=gradient, value_fn=loss)
        return jnp.asarray(optax.apply_updates(x, updates)), state

    with jax.numpy_dtype_promotion("standard"):  # optax mixes float32 with Python's and numpy's numbers
        x, _ = jax.lax.fori_loop(0, config.steps, step, (start, tx.init(start)))
    x = jnp.clip(x, 0, 1)
    return x[0], jnp.stack([loss(start), loss(x)])
