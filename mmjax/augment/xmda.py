"""XmDA: tokens of one side replaced by aligned tokens of the other, with consistent predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax.augment.common import alignment as align
from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Similarity, Tap, Terms, TokenMask, TowerInfo, View
from mmjax.augment.common.divergences import jensen_shannon
from mmjax.augment.common.schedules import Fraction, Strength
from mmjax.core.config import ConfigError, Ge, Gt
from mmjax.core.numerics import masked_mean
from mmjax.core.sphere import unit
from mmjax.core.types import Metrics, Provenance

Side = Literal["image", "text"]

_EXACT = jax.lax.Precision.HIGHEST


class Augmentation(base.Base):
    """Replaces tokens of one side by aligned ones of the other: cross-modality mix-up, for dual encoders.

    From sign language translation (Ye et al. 2023, arXiv:2305.11096). x are a pair's own tokens at the tap and y those
    of the other side. A learned linear map W brings y to the own width, and the alignment A gives each own token
    those of the other that belong to it. With ``m ~ Bernoulli(keep)`` for each token, and P and Q the softmax of the
    clean and the mixed pairs' logits, the scale with stopped gradient::

        E = m x + (1 - m) A (W y)
        consistency · JS(P ‖ Q),           mean of image queries and of text queries
        feature · (1 - cos(x, A (W y))),   mean over replaced tokens

    Own tokens that can be replaced are patches, or words; class token, registers, first position, end token and
    padding stay, and patches are aligned to words only. An image of a further modality goes with the same caption. No
    gradient flows through A. Two alignments are by similarity ``cos(x_t, W y_s)``, in the own width::

        attention:  softmax_s (cos / temperature)
        transport:  Sinkhorn's plan for evenly spread masses at cost 1 - cos, each row normalized (as in CMOT,
                    Zhou et al. 2023, arXiv:2305.14635): no word is left out

    ``assign="hard"`` keeps the largest weight of a row alone. The third, ``ctc``, is by order and is the paper's, for
    images that are sequences, as of signs. Patches in their order are the frames of a linear recognizer of the whole
    vocabulary, trained by the term ``recognition · CTC``, and A is the likeliest path that spells the caption. A frame
    of no word takes the word of the nearest frame that has one, the earlier of two. This costs
    f32[N, T, vocabulary], and a caption must not have more words than there are frames.

    ``gate`` is the probability that a step has the mixed terms at all; with ``recognized_below`` it has them also
    whenever the CTC loss, in nats a caption, is smaller.

    The mixed pair is only compared and is never a task. Its images hold tokens of their own captions, so the two can
    be matched without any meaning, and an InfoNCE loss would fall even on pairs of noise. The divergence does not
    reward this: it is smallest if the mix changes nothing.

    The released code compares gloss ids with one minus the ratio, which at its ratio of 0.6 mixes nothing; its
    aligner spaces anchors evenly instead of finding the best path; its divergence counts padding, and its feature
    term takes exponentials of embeddings for probabilities. It mixes if the CTC loss is under 5, or else with
    probability 5/11, and has such a gate on the recognizer's error rate too; its weights are 1 of CTC, 3 of the task
    and of the mixed pair's, and 15 times that of the divergence. STEMM (Fang et al. 2022, arXiv:2203.10426) swaps
    whole words, by a given alignment.

    Args:
        weight: the factor on all terms.
        tap: where tokens are replaced.
        sides: whose tokens are replaced.
        keep: the probability that a token stays.
        alignment: how A is computed.
        assign: take the largest weight of A alone (``hard``), or all.
        temperature: of ``attention`` and ``transport``.
        iterations: of Sinkhorn's algorithm.
        consistency: the factor on the divergence of predictions.
        gradient: ``mixed`` stops that of the clean predictions and own tokens in these terms; ``both`` does not.
        feature: the factor on the distance of features.
        recognition: the factor on the CTC loss.
        gate: the probability that a step has the mixed terms.
        recognized_below: the CTC loss below which a step has them in any case; None: never.
        learning_rate: of the Adam of W and the recognizer.
        clip_norm: the limit of the norm of their gradient.
    """

    def __init__(
        self,
        *,
        towers: TowerInfo,
        rngs: nnx.Rngs,
        weight: Strength = 0.1,
        tap: Tap = "tokens@0",
        sides: Literal["image", "text", "both"] = "image",
        keep: Fraction = 0.6,
        alignment: Literal["attention", "transport", "ctc"] = "attention",
        assign: Literal["hard", "soft"] = "hard",
        temperature: Annotated[float, Gt(0)] = 0.1,
        iterations: Annotated[int, Ge(1)] = 10,
        consistency: Strength = 15.0,
        gradient: Literal["both", "mixed"] = "both",
        feature: Strength = 0.0,
        recognition: Strength = 1.0,
        gate: Fraction = 1.0,
        recognized_below: Annotated[float, Gt(0)] | None = None,
        learning_rate: Strength = 1e-4,
        clip_norm: Annotated[float, Gt(0)] = 1.0,
    ):
        super().__init__(weight=weight)
        towers.check_tap(tap, kinds=("tokens",), path="augment.xmda.tap")
        if alignment == "ctc" and sides != "image":
            raise ConfigError(
                f"augment.xmda.sides={sides!r}: alignment='ctc' spells captions along images; use sides='image', or "
                "alignment='attention' or 'transport'"
            )
        if recognized_below is not None and alignment != "ctc":
            raise ConfigError(
                f"augment.xmda.recognized_below={recognized_below}: only alignment='ctc' recognizes; leave it out"
            )
        if recognized_below is not None and gate == 1.0:
            raise ConfigError(
                f"augment.xmda.recognized_below={recognized_below}: changes nothing at gate=1; set augment.xmda.gate "
                "below 1"
            )
        self.tap, self.keep, self.alignment, self.assign = tap, keep, alignment, assign
        self.temperature, self.iterations = temperature, iterations
        self.consistency, self.gradient, self.feature, self.recognition = consistency, gradient, feature, recognition
        self.gate, self.recognized_below = gate, recognized_below
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        self.sides: tuple[Side, ...] = ("image", "text") if sides == "both" else (sides,)
        image, text = towers.widths(tap)
        self.into_image = nnx.Linear(text, image, rngs=rngs) if "image" in self.sides else None
        self.into_text = nnx.Linear(image, text, rngs=rngs) if "text" in self.sides else None
        self.blank = towers.vocab_size
        self.recognizer = nnx.Linear(image, towers.vocab_size + 1, rngs=rngs) if alignment == "ctc" else None

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view for each side whose tokens are replaced."""
        pairs = clean.pairs()
        assert pairs.token_mask is not None
        keys = jax.random.split(key, 3)
        valid = pairs.image_source.valid & pairs.text_source.valid
        patches, token_mask = pairs.image[:, pairs.num_prefix_tokens :], pairs.token_mask
        is_frame = pairs.image_valid[:, pairs.num_prefix_tokens :]
        terms: Terms = {}
        metrics: Metrics = {}
        is_open = jax.random.uniform(keys[0]) < schedules.value_at(self.gate, step)
        position = None
        if self.recognizer is not None:
            logits = self.recognizer(patches.astype(jnp.float32))
            position, loss = recognize(logits, token_mask, valid, blank=self.blank, frames=pairs.image_mask)
            terms["recognition"] = schedules.value_at(self.recognition, step) * loss
            metrics["ctc"] = loss
            if self.recognized_below is not None:
                is_open |= loss < self.recognized_below
        gate = is_open.astype(jnp.float32)
        views = []
        for side, side_key in zip(self.sides, keys[1:], strict=False):
            if side == "image":
                own, other, into = patches, pairs.text, self.into_image
                own_content, other_content = is_frame, token_mask.content
            else:
                own, other, into = pairs.text, patches, self.into_text
                own_content, other_content = token_mask.content, is_frame
            assert into is not None
            projected = into(other.astype(jnp.float32))
            weights = self._align(own, projected, own_content, other_content, position)
            usable = valid & jnp.any(other_content, axis=1)
            if position is not None:
                usable &= position[:, 0] >= 0
            # A sum of one token and of zeros is that token, bit by bit, where products are not rounded.
            assigned = align.make_hard(weights) if self.assign == "hard" else weights
            aligned = jnp.einsum("bts,bsd->btd", assigned, projected, precision=_EXACT).astype(own.dtype)
            replaceable = own_content & usable[:, None]
            replaced = replaceable & (
                jax.random.uniform(side_key, own.shape[:2]) >= schedules.value_at(self.keep, step)
            )
            mixed = jnp.where(replaced[..., None], aligned, own)
            if side == "image":
                mixed = jnp.concatenate([pairs.image[:, : pairs.num_prefix_tokens], mixed], axis=1)
                view = View(image=mixed, image_source=_scale_weight(pairs.image_source, gate))
            else:
                view = View(text=mixed, text_source=_scale_weight(pairs.text_source, gate), ids=token_mask.ids)
            views.append(dataclasses.replace(view, role="consistency", name=side))
            compared = jax.lax.stop_gradient(own) if self.gradient == "mixed" else own
            cosine = jnp.sum(unit(compared) * unit(aligned), axis=-1)
            terms[f"{side}_feature"] = schedules.value_at(self.feature, step) * gate * masked_mean(1 - cosine, replaced)
            metrics |= {
                f"{side}_mixed_fraction": masked_mean(replaced.astype(jnp.float32), replaceable),
                f"{side}_agreement": masked_mean(jax.lax.stop_gradient(cosine), replaceable),
            }
            if position is None:
                metrics[f"{side}_entropy"] = masked_mean(align.entropy(weights), replaceable)
        return Augmented(views=views, terms=terms, metrics={"gate": gate, **metrics})

    def compare(
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """The divergence of the mixed pairs' predictions from the clean ones'; a bias cancels in a softmax."""
        pairs = clean.pairs()
        valid = pairs.image_source.valid & pairs.text_source.valid
        similarity = jax.lax.stop_gradient(similarity)
        clean_logits = similarity.logits(pairs.image, pairs.text)
        if self.gradient == "mixed":
            clean_logits = jax.lax.stop_gradient(clean_logits)
        terms: Terms = {}
        metrics: Metrics = {}
        for side, view in zip(self.sides, views, strict=True):
            if side == "image":
                mixed, source = similarity.logits(view.image, pairs.text), view.image_source
            else:
                mixed, source = similarity.logits(pairs.image, view.text), view.text_source
            by_image = jensen_shannon(mixed, clean_logits, where=valid)
            by_text = jensen_shannon(mixed.T, clean_logits.T, where=valid)
            each = 0.5 * (by_image + by_text) * jnp.sum(source.weight, axis=1)
            metrics[f"{side}_js"] = masked_mean(each, valid)
            terms[f"{side}_consistency"] = schedules.value_at(self.consistency, step) * metrics[f"{side}_js"]
        return terms, metrics

    def _align(
        self,
        own: jax.Array,  # [B, T, D]
        other: jax.Array,  # f32[B, S, D]
        own_content: jax.Array,  # bool[B, T]
        other_content: jax.Array,  # bool[B, S]
        position: jax.Array | None,  # i32[B, T]
    ) -> jax.Array:
        """f32[B, T, S]: how much of each of the other tokens belongs to an own one."""
        if position is not None:
            return jax.nn.one_hot(position, other.shape[1], dtype=jnp.float32)
        similarity = align.cosine_similarities(own, other)
        if self.alignment == "attention":
            return align.attention_weights(similarity, other_content, temperature=self.temperature)
        return align.transport_weights(
            similarity, own_content, other_content, temperature=self.temperature, iterations=self.iterations
        )


def recognize(
    logits: jax.Array,  # f32[B, T, K] of frames
    token_mask: TokenMask,
    valid: jax.Array,  # bool[B]
    *,
    blank: int,
    frames: jax.Array | None = None,  # bool[B, T]: padding is at the end; None: there is none
) -> tuple[jax.Array, jax.Array]:
    """The text position that each frame belongs to, i32[B, T], and the mean CTC loss of captions in nats, f32[].

    Captions without words, or with more than the frames can spell, have positions of -1 and no loss.
    """
    # Words are adjacent, and the first position is none of them.
    labels, is_word = token_mask.ids[:, 1:], token_mask.content[:, 1:]
    path, feasible = align.ctc_path(jax.nn.log_softmax(logits, axis=-1), labels, is_word, blank=blank, frames=frames)
    padding = jnp.zeros(logits.shape[:2]) if frames is None else 1.0 - frames.astype(jnp.float32)
    spelled = valid & feasible
    with jax.numpy_dtype_promotion("standard"):  # optax adds integers to floats
        each = optax.ctc_loss(logits, padding, labels, 1.0 - is_word.astype(jnp.float32), blank_id=blank)
    position = jnp.where(spelled[:, None], 1 + align.ctc_positions(path), -1)
    return position, masked_mean(each, spelled)


def _scale_weight(source: Provenance, gate: jax.Array) -> Provenance:
    """Rows that have no loss of their own where the gate is 0."""
    return dataclasses.replace(source, weight=gate * source.weight)
