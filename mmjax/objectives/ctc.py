"""Recognizing the labels of sequences beside contrast: connectionist temporal classification (CTC)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.config import ConfigError, Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.tower_tokens import TowerTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """CLIP's loss, and the CTC loss of each sequence's labels, such as glosses (Graves et al., ICML 2006).

    With the probability p(y | x) of all paths of frames that spell the labels y, ``n_y`` of them, and the weight
    ``w_rk`` of example k in row r::

        loss = contrastive_weight · contrastive + ctc_weight · Σ_rk w_rk (-log p(y_k | x_r)) / Σ_rk w_rk n_(y_k)

    So it is in nats a label. The clean rows are one example each. A view of an augmentation made before pooling has
    the same term: where it mixes sequences, each of its examples counts by its part, as in MixSpeech (Meng et al.
    2021, arXiv:2102.12664). Later views have no frames, and add the contrastive loss alone.

    An example has no CTC term without known labels, and if its frames cannot spell them: that takes a frame a label
    and one more between two that are equal. ``ctc_left_out`` is the fraction of those.

    It needs ``model.recognizer``, whose labels are looked for in the field ``data.labels`` of the examples.

    Args:
        ctc_weight, contrastive_weight: Factors on the two losses.
    """

    ctc_weight: Annotated[float, Ge(0)] = 1.0
    contrastive_weight: Annotated[float, Ge(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ctc_weight and not self.contrastive_weight:
            raise ConfigError("objective.ctc_weight=0: nothing is left to train; raise it or contrastive_weight")

    @property
    def modules(self) -> tuple[str, ...]:
        """The recognizer."""
        return ("recognizer",)

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
        tokens: TowerTokens | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[], its two terms, and accuracies; for the arguments see ``Base``."""
        total, metrics = jnp.zeros((), jnp.float32), Metrics()
        if self.contrastive_weight:
            sources = {"image_source": image_source, "text_source": text_source}
            contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
            metrics["contrastive_loss"] = contrast
            total = total + self.contrastive_weight * contrast
        if tokens is not None:
            value, left_out = self.ctc_loss(tokens, image_source)
            metrics |= {"ctc_loss": value, "ctc_left_out": left_out}
            total = total + self.ctc_weight * value
        return total, metrics

    def ctc_loss(self, tokens: TowerTokens, source: Provenance) -> tuple[jax.Array, jax.Array]:
        """The CTC loss in nats a label f32[], and the fraction of the rows' weight that has none."""
        assert tokens.image_valid is not None and tokens.labels is not None
        source = jax.lax.stop_gradient(source)
        if self.targets == "identity":
            source = source.identity()
        rows = {
            "image": tokens.image,
            "valid": tokens.image_valid,
            "labels": tokens.labels.find(source.ids),
            "weight": jnp.where(source.ids >= 0, source.weight, 0.0),
        }
        loss, count, weight = tokens.map(_row_losses, rows)
        whole = jnp.sum(rows["weight"])
        value = jnp.sum(weight * loss) / jnp.maximum(jnp.sum(weight * count), 1e-6)
        return value, 1 - jnp.sum(weight) / jnp.maximum(whole, 1e-6)


def _row_losses(model: Any, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each example in each row, f32[N, K]: its loss, the number of its labels, and its weight, 0 without a loss."""
    logits, labels = model.recognizer(rows["image"]), rows["labels"]
    frames, sources = jnp.sum(rows["valid"], axis=1), labels.shape[1]
    known = labels >= 0
    repeated = known[..., 1:] & (labels[..., 1:] == labels[..., :-1])
    count = jnp.sum(known, axis=-1)
    spelled = (count > 0) & (count + jnp.sum(repeated, axis=-1) <= frames[:, None])
    padding = 1.0 - rows["valid"].astype(jnp.float32)

    def loss(k: int) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):  # optax adds integers to floats
            return optax.ctc_loss(
                logits,
                padding,
                jnp.maximum(labels[:, k], 0),
                1.0 - known[:, k].astype(jnp.float32),
                blank_id=model.recognizer.blank,
            )

    each = jnp.stack([loss(k) for k in range(sources)], axis=1)
    # What cannot be spelled has a loss of 1e5, whose gradient is left out too.
    weight = jnp.where(spelled, rows["weight"], 0.0)
    return jnp.where(spelled, each, 0.0), count.astype(jnp.float32), weight
