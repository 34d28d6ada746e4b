"""Captioning beside contrast (CoCa), or alone (CapPa, prefix language models)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, ConfigError, Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.tower_tokens import TowerTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """CLIP's loss and the cross-entropy of each caption's words, given its image (Yu et al. 2022, arXiv:2205.01917).

    With the decoder's probabilities ``p``, a caption ``y`` of ``n_y`` tokens up to and with its end, and the weight
    ``w = Σ_k min(w_k, v_k)`` of what image and caption have in common over all originals k::

        loss = contrastive_weight · contrastive + caption_weight · Σ_y w_y Σ_t ce(y_t) / Σ_y w_y n_y
        ce(y_t) = -(1 - ε) log p(y_t | image, y_<t) - ε/V Σ_v log p(v | image, y_<t)

    Each caption is compared with the image of its own example, in every modality. A pair that is one original, or the
    same mix of several (MixGen), has the weight 1; a caption of a mixed image the weight of its original in it; hard
    negatives and padding have 0. With ``mixed="leave_out"`` every row of several originals has 0. Views of
    augmentations count likewise, if they are made before pooling: later ones have no image tokens, and add the
    contrastive loss alone. Where a view blends the tokens of several texts there is no text to predict: weight 0.

    The defaults are open_clip's for CoCa. Its loss is a mean over tokens, as here; big_vision's for CapPa is a mean
    over captions of means over tokens (``mean="caption"``), and smooths with ε/(V - 1) on the other words alone.

    A decoder with ``mask_token`` predicts a random ``parallel_fraction`` of the captions from mask tokens (CapPa:
    Tschannen et al. 2023, arXiv:2306.07915, with 0.75). With ``contrastive_weight=0`` nothing trains the text tower,
    unless the decoder reads its tokens.

    Args:
        caption_weight, contrastive_weight: Factors on the two losses.
        label_smoothing: ε.
        mean: Over what the caption loss is a mean.
        parallel_fraction: The probability that a caption is predicted in parallel.
        mixed: What rows of several originals count.
    """

    caption_weight: Annotated[float, Ge(0)] = 2.0
    contrastive_weight: Annotated[float, Ge(0)] = 1.0
    label_smoothing: Annotated[float, Between(0, 1)] = 0.0
    mean: Literal["token", "caption"] = "token"
    parallel_fraction: Annotated[float, Between(0, 1)] = 0.0
    mixed: Literal["weigh", "leave_out"] = "weigh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.caption_weight and not self.contrastive_weight:
            raise ConfigError("objective.caption_weight=0: nothing is left to train; raise it or contrastive_weight")

    @property
    def modules(self) -> tuple[str, ...]:
        """The decoder."""
        return ("decoder",)

    def check_model(self, model: Any, *, augment: Collection[str]) -> None:
        """Raises where captions in parallel have no mask token, or where captions lose words."""
        if "token_dropout" in augment:
            raise ConfigError(
                "augment.token_dropout: the decoder would learn captions with words missing; leave it out with "
                "objective.name='caption'"
            )
        if self.parallel_fraction and not model.decoder.mask_token:
            raise ConfigError(
                f"objective.parallel_fraction={self.parallel_fraction}: needs model.decoder.mask_token=True (and "
                "model.decoder.inputs='ids')"
            )

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
        sources = {"image_source": image_source, "text_source": text_source}
        total, metrics = jnp.zeros((), jnp.float32), Metrics()
        if self.contrastive_weight:
            contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
            metrics["contrastive_loss"] = contrast
            total = total + self.contrastive_weight * contrast
        if tokens is not None:
            caption, measured = self.caption_loss(tokens, **sources)
            metrics |= {"caption_loss": caption, **measured}
            total = total + self.caption_weight * caption
        return total, metrics

    def caption_loss(
        self, tokens: TowerTokens, *, image_source: Provenance, text_source: Provenance
    ) -> tuple[jax.Array, Metrics]:
        """The caption loss f32[], and the fraction of words that are the most probable."""
        weight = self._weights(tokens, image_source, text_source)  # [examples, modalities, texts]
        parallel = None
        if self.parallel_fraction:
            drawn = jax.random.bernoulli(tokens.key, self.parallel_fraction, tokens.ids.shape[:1])
            parallel = tokens.texts_by_example(drawn)
        rows = {
            "image": tokens.images_by_example(tokens.image),
            "text": tokens.texts_by_example(tokens.text),
            "ids": tokens.texts_by_example(tokens.ids),
            "valid": tokens.texts_by_example(tokens.valid),
            "parallel": parallel,
        }
        loss, correct, count = tokens.map(self._run, rows)
        if self.mean == "caption":
            each = loss / jnp.maximum(count, 1)
            value = jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight, where=count > 0), 1e-6)
        else:
            value = jnp.sum(weight * loss) / jnp.maximum(jnp.sum(weight * count), 1e-6)
        accuracy = jnp.sum(weight * correct) / jnp.maximum(jnp.sum(weight * count), 1e-6)
        return value, {"caption_accuracy": accuracy}

    def _run(self, model: Any, rows: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each image's each text: summed losses, correct words and words, all f32[examples, modalities, texts]."""
        decoder = model.decoder
        examples, modalities = rows["image"].shape[:2]
        texts = rows["ids"].shape[1]

        def pair(x: jax.Array, axis: int) -> jax.Array:
            x = jnp.expand_dims(x, axis)
            x = jnp.broadcast_to(x, (examples, modalities, texts, *x.shape[3:]))
            return x.reshape(-1, *x.shape[3:])

        text, ids, valid = (pair(rows[name], 1) for name in ("text", "ids", "valid"))
        parallel = None if rows["parallel"] is None else pair(rows["parallel"], 1)
        hidden = decoder(pair(rows["image"], 2), text, ids, parallel=parallel)
        labels, counted = ids[:, decoder.first :], valid[:, decoder.first :].astype(jnp.float32)

        def losses(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = decoder.logits(hidden)
            own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
            total = jax.nn.logsumexp(logits, axis=-1)
            smooth = self.label_smoothing
            loss = total - (1 - smooth) * own
            loss = loss - smooth * jnp.mean(logits, axis=-1) if smooth else loss
            return loss, jax.lax.stop_gradient(own >= jnp.max(logits, axis=-1)).astype(jnp.float32)

        # The logits are large and cheap: they are computed again in the backward pass.
        each, correct = (losses if decoder.remat == "none" else jax.checkpoint(losses))(hidden)
        sums = (jnp.sum(x * counted, axis=1) for x in (each, correct, jnp.ones_like(counted)))
        summed, right, count = (x.reshape(examples, modalities, texts) for x in sums)
        return summed, right, count

    def _weights(self, tokens: TowerTokens, image: Provenance, text: Provenance) -> jax.Array:
        """f32[examples, modalities, texts]: what each image and its text have in common."""
        image, text = jax.lax.stop_gradient((image, text))
        if self.targets == "identity":
            image, text = image.identity(), text.identity()
        image_ids, image_weight = (tokens.images_by_example(x)[:, :, None] for x in (image.ids, image.weight))
        text_ids, text_weight = (tokens.texts_by_example(x)[:, None] for x in (text.ids, text.weight))
        weight = jnp.zeros(1, jnp.float32)
        for k in range(image.ids.shape[1]):
            for j in range(text.ids.shape[1]):
                same = (image_ids[..., k] == text_ids[..., j]) & (image_ids[..., k] >= 0)
                weight = weight + jnp.where(same, jnp.minimum(image_weight[..., k], text_weight[..., j]), 0.0)
        image_mixed, text_mixed = (jnp.sum(w > 0, axis=-1) > 1 for w in (image_weight, text_weight))
        if self.mixed == "leave_out":
            weight = jnp.where(image_mixed | text_mixed, 0.0, weight)
        return jnp.where(text_mixed & tokens.blended, 0.0, weight)
