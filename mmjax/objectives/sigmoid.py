"""The pairwise sigmoid objective over provenance targets: SigLIP's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.objectives.targets import Labelling, check_partners, labelled, partners, similarity, source_mass
from mmjax.types import Metrics, Provenance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Independent binary cross-entropy of every pair (Zhai et al. 2023, arXiv:2303.15343; soft targets).

    With logits ``L = scale · z_image z_textᵀ + bias`` and targets ``S`` (``source_mass``, used as it is)::

        loss = -1/n Σ_ij [S_ij log σ(L_ij) + (1 - S_ij) log σ(-L_ij)]

    The sum runs over pairs without padding, n is the number of images that are not padding. ``mask_partners`` leaves
    out the pairs that share an original without being positives under ``targets="identity"``.
    """

    targets: Labelling = "provenance"
    mask_partners: bool = False

    def __post_init__(self) -> None:
        check_partners(self.mask_partners, self.targets)

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
        target = source_mass(labelled(image_source, self.targets), labelled(text_source, self.targets))
        logits = scale * similarity(image, text) + bias
        pairs = image_source.valid[:, None] & text_source.valid[None, :]
        if self.mask_partners:
            pairs &= ~partners(image_source, text_source, target)
        loss = -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
        images = jnp.maximum(jnp.sum(image_source.valid, dtype=jnp.float32), 1.0)
        probability = jax.nn.sigmoid(logits)
        positive = jnp.where(pairs, target, 0.0)
        negative = jnp.where(pairs, 1 - target, 0.0)
        metrics = {
            "positive_probability": jnp.sum(positive * probability) / jnp.maximum(jnp.sum(positive), 1.0),
            "negative_probability": jnp.sum(negative * probability) / jnp.maximum(jnp.sum(negative), 1.0),
        }
        return jnp.sum(jnp.where(pairs, loss, 0.0)) / images, metrics
