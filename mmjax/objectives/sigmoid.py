"""The pairwise sigmoid objective over provenance targets: SigLIP's."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import Labels, pulled, similarity, targets_of
from mmjax.objectives.common.tiles import count

_Scales = tuple[jax.Array, jax.Array]  # scale and bias, f32[]
_Side = tuple[jax.Array, Labels]  # unit rows f32[N, D] and what they are labelled with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """Independent binary cross-entropy of every pair (Zhai et al. 2023, arXiv:2303.15343; soft targets).

    With logits ``L = scale · z_image z_textᵀ + bias`` and targets ``S`` (``source_mass``, used as it is)::

        loss = -1/n Σ_ij [S_ij log σ(L_ij) + (1 - S_ij) log σ(-L_ij)]

    The sum runs over pairs without padding, n is the number of images that are not padding. ``mask_partners`` leaves
    out the pairs that share an original without being positives under ``targets="identity"``.
    ``impl`` and ``chunk``: see ``Base``; in tiles it takes one pass, as no pair's gradient needs any other pair.
    """

    def __call__(
        self,
        image: jax.Array,  # f32[N, D], unit rows
        text: jax.Array,  # f32[M, D], unit rows
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[] and the mean probability of positives and negatives."""
        if bias is None:
            raise ConfigError(
                "model.init_logit_bias=None: the sigmoid objective needs a bias; set it to -10, as SigLIP does"
            )
        sides = (self.labels(image_source), self.labels(text_source))
        sweep = self.sweep(count(image), count(text))
        if sweep is not None:
            return _in_tiles(sweep, image, text, (scale, bias), sides)
        sums, _ = _seen((scale, bias), (image, sides[0]), (text, sides[1]))
        return sums.result(_images(sides))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sums:
    """Over the pairs of each image row that take part, f32[N] all, with ``p = σ(L)``."""

    loss: jax.Array
    positive: jax.Array  # Σ S
    negative: jax.Array  # Σ (1 - S)
    positive_probability: jax.Array  # Σ S p
    negative_probability: jax.Array  # Σ (1 - S) p

    def result(self, images: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss a image, and what both kinds of pairs are held to be."""
        total = jax.tree.map(jnp.sum, self)
        metrics = {
            "positive_probability": total.positive_probability / jnp.maximum(total.positive, 1.0),
            "negative_probability": total.negative_probability / jnp.maximum(total.negative, 1.0),
        }
        return total.loss / images, metrics


def _images(sides: tuple[Labels, Labels]) -> jax.Array:
    return jnp.maximum(jnp.sum(sides[0].valid, dtype=jnp.float32), 1.0)


def _none(rows: int) -> _Sums:
    return _Sums(**{field.name: jnp.zeros(rows) for field in dataclasses.fields(_Sums)})


def _block(scales: _Scales, image: _Side, text: _Side) -> tuple[_Sums, jax.Array]:
    """The sums over a tile, and ``p - S`` where a pair takes part: the gradient by its logits."""
    scale, bias = scales
    target, pairs = targets_of(image[1], text[1])
    logits = scale * similarity(image[0], text[0]) + bias
    loss = -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    probability = jax.nn.sigmoid(logits)

    def over(pair: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(pairs, pair, 0.0), axis=1)

    sums = _Sums(
        loss=over(loss),
        positive=over(target),
        negative=over(1 - target),
        positive_probability=over(target * probability),
        negative_probability=over((1 - target) * probability),
    )
    return sums, jnp.where(pairs, probability - target, 0.0)


def _seen(scales: _Scales, image: _Side, text: _Side) -> tuple[_Sums, tuple[()]]:
    """What a tile shows of its rows."""
    return _block(scales, image, text)[0], ()


def _pull(scales: _Scales, image: _Side, text: _Side) -> tuple[tuple[_Sums, jax.Array, jax.Array], jax.Array]:
    """That, and what the tile adds to the gradient: by rows' embeddings and biases, and by columns' embeddings."""
    sums, by_logit = _block(scales, image, text)
    by_image, by_text = pulled(by_logit, image[0], text[0])
    return (sums, by_image, jnp.sum(by_logit, axis=1)), by_text


def _added(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_tiles(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, sides: tuple[Labels, Labels]
) -> tuple[jax.Array, Metrics]:
    """The loss and its metrics without the matrix; gradients by embeddings, scale and bias alone."""
    empty = (_none, lambda _: ())
    sums, _ = sweep(_seen, scales, (image, sides[0]), (text, sides[1]), empty=empty, merge=_added)
    return sums.result(_images(sides))


def _forward(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, sides: tuple[Labels, Labels]
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """With the gradients in the same pass; they are as small as the embeddings."""

    def none(rows: int) -> tuple[_Sums, jax.Array, jax.Array]:
        return _none(rows), jnp.zeros((rows, image.shape[1])), jnp.zeros(rows)

    (sums, by_image, by_bias), by_text = sweep(
        _pull,
        scales,
        (image, sides[0]),
        (text, sides[1]),
        empty=(none, lambda rows: jnp.zeros((rows, text.shape[1]))),
        merge=_added,
    )
    images = _images(sides)
    by_scale = jnp.sum(image * by_image) / images
    each = scales[0] / images
    return sums.result(images), (each * by_image, each * by_text, (by_scale, jnp.sum(by_bias) / images))


def _backward(sweep: Sweep, saved: Any, given: tuple[jax.Array, Metrics]) -> tuple[Any, ...]:
    return *jax.tree.map(lambda gradient: given[0] * gradient, saved), None


_in_tiles.defvjp(_forward, _backward)
