"""Some modalities of an example are left out in training, so that a gated tower learns to do without them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.augment.common.base import TowerInfo
from mmjax.augment.common.batch_change import BatchChange
from mmjax.augment.common.schedules import Fraction, value_at
from mmjax.core.config import ConfigError
from mmjax.core.types import Batch, Metrics


class Augmentation(BatchChange):
    """Drops each modality of each example with probability p, but never the last one (ModDrop, arXiv:1501.00102).

    The tower's gates (``mmjax.models.vision.gates``) give what was dropped no weight. With u_m uniform in [0, 1) and P
    the modalities that an example has, those in K stay::

        K = {m ∈ P: u_m ≥ p  or  u_m = max_{k ∈ P} u_k}

    So a subset K of n modalities has probability ``(1 - p)^|K| p^(n - |K|)``, and a single one ``p^n / n`` besides; p =
    1 leaves one of each example. Neverova et al. 2014 drop modalities independently, as here, but may drop all of them.
    AMF (Yang et al. 2020, doi:10.1145/3394171.3413538) is tested without modalities; whether it was trained so is not
    known to us.

    It needs ``model.vision_cfg.fusion="gated"``. Draws depend on the seed and the step alone: they are the same on any
    number of devices and after a resume. Evaluation sees all modalities, and ``missing_modalities`` each subset.

    Args:
        drop_rate: p.
    """

    def __init__(self, *, towers: TowerInfo, drop_rate: Fraction = 0.3):
        if not towers.gated:
            raise ConfigError(
                "augment.modality_dropout: the image tower has no gates that could leave a modality out; set "
                "model.vision_cfg.fusion='gated' with two or more data.modalities"
            )
        self.drop_rate = drop_rate

    def change(self, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Batch, Metrics]:
        """The batch with fewer modalities present, and the fraction ``kept`` of those that were."""
        rows = batch.image_source.ids.shape[0]
        present = jnp.ones((rows, len(batch.images)), bool) if batch.present is None else batch.present
        kept = keep_some(key, present, value_at(self.drop_rate, step))
        fraction = jnp.sum(kept, dtype=jnp.float32) / jnp.maximum(jnp.sum(present, dtype=jnp.float32), 1)
        return dataclasses.replace(batch, present=kept), {"kept": fraction}


def keep_some(key: jax.Array, present: jax.Array, drop_rate: jax.Array) -> jax.Array:
    """bool[N, M]: of each row's ``present`` modalities those that stay, at least one of them."""
    u = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
    return present & ((u >= drop_rate) | (u == jnp.max(u, axis=1, keepdims=True)))
