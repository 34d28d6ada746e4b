"""The pairwise sigmoid objective over provenance targets: SigLIP's."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import Labels, embedding_gradients, make_targets, similarity
from mmjax.objectives.common.tiles import num_rows

_Scales = tuple[jax.Array, jax.Array]  # scale and bias, f32[]
_Side = tuple[jax.Array, Labels]  # unit rows f32[N, D] and their labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """Independent binary cross-entropy of every pair (Zhai et al. 2023, arXiv:2303.15343), with soft targets.

    With logits ``L = scale · z_image z_textᵀ + bias`` and targets ``S`` (``source_mass``, not normalized)::

        loss = -1/n Σ_ij [S_ij log σ(L_ij) + (1 - S_ij) log σ(-L_ij)]

    The sum runs over pairs without padding, and n is the number of images that are not padding. ``mask_partners``
    leaves out the pairs that share an original without being positives under ``targets="identity"``.

    For the options see ``Base``. In tiles it takes one pass, because no pair's gradient needs any other pair.

    >>> from mmjax.core.types import Provenance
    >>> source = Provenance.from_ids(jnp.arange(4))
    >>> rows, scale, bias = jnp.eye(4), jnp.float32(40), jnp.float32(-20)
    >>> loss, metrics = Objective()(rows, rows, image_source=source, text_source=source, scale=scale, bias=bias)
    >>> round(loss.item(), 4), round(metrics["positive_probability"].item(), 4)
    (0.0, 1.0)
    """

    model_options: ClassVar[Mapping[str, float]] = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[] and the mean probability of positives and negatives; for the arguments see ``Base``."""
        if bias is None:
            raise ConfigError(
                "model.init_logit_bias=None: the sigmoid objective needs a bias; set it to -10, as SigLIP does"
            )
        labels = (self.make_labels(image_source), self.make_labels(text_source))
        sweep = self.make_sweep(num_rows(image), num_rows(text))
        if sweep is not None:
            return _tiled(sweep, image, text, (scale, bias), labels)
        sums, _ = _tile_sums((scale, bias), (image, labels[0]), (text, labels[1]))
        return sums.loss_and_metrics(_num_images(labels))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums over the pairs of each image row that take part, with ``p = σ(L)``; all f32[N]."""

    loss: jax.Array
    positive: jax.Array  # Σ S
    negative: jax.Array  # Σ (1 - S)
    positive_probability: jax.Array  # Σ S p
    negative_probability: jax.Array  # Σ (1 - S) p

    @classmethod
    def empty(cls, rows: int) -> _Sums:
        """Before the first tile."""
        return cls(**{field.name: jnp.zeros(rows) for field in dataclasses.fields(cls)})

    def loss_and_metrics(self, images: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss per image, and the mean probability of positives and of negatives."""
        total = jax.tree.map(jnp.sum, self)
        metrics = {
            "positive_probability": total.positive_probability / jnp.maximum(total.positive, 1.0),
            "negative_probability": total.negative_probability / jnp.maximum(total.negative, 1.0),
        }
        return total.loss / images, metrics


def _num_images(labels: tuple[Labels, Labels]) -> jax.Array:
    return jnp.maximum(jnp.sum(labels[0].valid, dtype=jnp.float32), 1.0)


def _tile(scales: _Scales, image: _Side, text: _Side) -> tuple[_Sums, jax.Array]:
    """A tile's sums, and its gradient by logits: ``p - S`` for the pairs that take part."""
    scale, bias = scales
    target, pairs = make_targets(image[1], text[1])
    logits = scale * similarity(image[0], text[0]) + bias
    loss = -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    probability = jax.nn.sigmoid(logits)

    def row_sum(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(pairs, x, 0.0), axis=1)

    sums = _Sums(
        loss=row_sum(loss),
        positive=row_sum(target),
        negative=row_sum(1 - target),
        positive_probability=row_sum(target * probability),
        negative_probability=row_sum((1 - target) * probability),
    )
    return sums, jnp.where(pairs, probability - target, 0.0)


def _tile_sums(scales: _Scales, image: _Side, text: _Side) -> tuple[_Sums, tuple[()]]:
    """The sums of a tile's rows; nothing of its columns."""
    return _tile(scales, image, text)[0], ()


def _tile_gradients(scales: _Scales, image: _Side, text: _Side) -> tuple[tuple[_Sums, jax.Array, jax.Array], jax.Array]:
    """The same with gradients: by the rows' embeddings and by their bias, and by the columns' embeddings."""
    sums, by_logit = _tile(scales, image, text)
    by_image, by_text = embedding_gradients(by_logit, image[0], text[0])
    return (sums, by_image, jnp.sum(by_logit, axis=1)), by_text


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, labels: tuple[Labels, Labels]
) -> tuple[jax.Array, Metrics]:
    """The loss and its metrics without the matrix; gradients by embeddings, scale and bias only."""
    empty = (_Sums.empty, lambda _: ())
    sums, _ = sweep(_tile_sums, scales, (image, labels[0]), (text, labels[1]), empty=empty, merge=_add)
    return sums.loss_and_metrics(_num_images(labels))


def _forward(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, labels: tuple[Labels, Labels]
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """Computes the gradients in the same pass; they are as small as the embeddings."""

    def empty_rows(rows: int) -> tuple[_Sums, jax.Array, jax.Array]:
        return _Sums.empty(rows), jnp.zeros((rows, image.shape[1])), jnp.zeros(rows)

    (sums, by_image, by_bias), by_text = sweep(
        _tile_gradients,
        scales,
        (image, labels[0]),
        (text, labels[1]),
        empty=(empty_rows, lambda rows: jnp.zeros((rows, text.shape[1]))),
        merge=_add,
    )
    images = _num_images(labels)
    by_scale = jnp.sum(image * by_image) / images
    factor = scales[0] / images
    gradients = (factor * by_image, factor * by_text, (by_scale, jnp.sum(by_bias) / images))
    return sums.loss_and_metrics(images), gradients


def _backward(sweep: Sweep, gradients: Any, cotangents: tuple[jax.Array, Metrics]) -> tuple[Any, ...]:
    return *jax.tree.map(lambda gradient: cotangents[0] * gradient, gradients), None


_tiled.defvjp(_forward, _backward)
