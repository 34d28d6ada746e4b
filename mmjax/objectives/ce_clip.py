"""CE-CLIP: hard negatives ranked below their captions by adaptive thresholds, and contrasted among texts."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError, Ge
from mmjax.core.groups import group_number
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.base import State, TextGroups
from mmjax.objectives.common.pair_sums import Side, sum_pairs
from mmjax.objectives.common.row_softmax import row_softmax, weighted_mean
from mmjax.objectives.common.targets import Labels, is_negative, make_targets, own_negatives, similarity
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """NegCLIP's loss, a ranking of an image's texts, and a contrast of texts (Zhang et al. 2024, arXiv:2306.08832).

    With logits ``L`` without bias, ``p_i`` the mean logit of image i and its captions, ``q_j`` that of caption j and
    its images, ``H_i`` the hard negatives (text rows of zero weight) of image i, and ``H`` all of them::

        loss = negclip + rank_weight · cmr + intra_weight · imc
        cmr  = mean_(i, j ∈ H_i) max(0, Th_k(j) + L_ij - p_i)
        imc  = mean_(j ∈ captions) -log [e^q_j / (e^q_j + Σ_(h ∈ H) e^(scale · text_j · text_h))]
        Th_k <- clip(mean_i p_i - mean_(i, j ∈ H_i of kind k) L_ij, 0, max_threshold), from 0

    Each of the ``kinds`` has a threshold of its own, and all other negatives share one. Thresholds are part of the
    training state: each step uses those of the step before it. They are in units of logits, so that 10 at a scale of
    100 is a cosine of 0.1. A batch without negatives of a kind leaves its threshold as it is.

    The released code has three forms of imc. That of its last version leaves out the positive and so pulls every
    caption towards the first negative of sample 0, and an earlier one has the label on a negative; only commit 7f4433a
    has the equation above, with the caption's own image as label. There thresholds start from 0 again in every epoch,
    kinds are the four places of a caption's negatives, and missing negatives count in the mean of cmr and in both
    normalizers; here they are padding.

    For the other options see ``Base``.

    Args:
        rank_weight: α of the paper.
        intra_weight: β of the paper.
        threshold: ``adaptive``, or ``fixed`` at ``max_threshold``.
        max_threshold: u of the paper.
        kinds: Of negatives, as the data names them; the paper's are relations, adjectives, nouns and verbs.
    """

    needs_negatives: ClassVar[bool] = True

    rank_weight: Annotated[float, Ge(0)] = 0.2
    intra_weight: Annotated[float, Ge(0)] = 0.3
    threshold: Literal["adaptive", "fixed"] = "adaptive"
    max_threshold: Annotated[float, Ge(0)] = 10.0
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kinds and self.threshold == "fixed":
            raise ConfigError(
                f"objective.kinds={self.kinds}: threshold='fixed' is one for all; leave it out, or use 'adaptive'"
            )

    @property
    def text_groups(self) -> TextGroups | None:
        """The kinds of negatives, if some have thresholds of their own."""
        return "kind" if self.kinds else None

    def init_state(self) -> State:
        """Thresholds of 0, unless they are fixed."""
        if self.threshold == "fixed":
            return {}
        return {"threshold": jnp.zeros(len(self._names), jnp.float32)}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The thresholds of the step's logits."""
        return {name: jnp.stack([metrics[threshold] for threshold in self._names]) for name in state}

    @property
    def _names(self) -> list[str]:
        """The metrics of the thresholds; the last one is that of all other kinds."""
        return [f"threshold/{kind}" for kind in (*self.kinds, "other")] if self.kinds else ["threshold"]

    def _kinds_of(self, text: Provenance) -> jax.Array:
        """i32[M]: each text's place in ``kinds``; their number for other kinds."""
        kinds = jnp.full(text.ids.shape[0], len(self.kinds), jnp.int32)
        if text.group is not None:
            for place, kind in enumerate(self.kinds):
                kinds = jnp.where(text.group == group_number(kind), place, kinds)
        return kinds

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
        state: State | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[], its terms and accuracies, and the next thresholds; for the arguments see ``Base``."""
        sources = {"image_source": image_source, "text_source": text_source}
        contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
        n, m = num_rows(image), num_rows(text)
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        fixed = jnp.full(len(self._names), self.max_threshold, jnp.float32)
        thresholds = (state or self.init_state()).get("threshold", fixed)

        sweep, scaled = self.make_sweep(n, m), scale * image
        by_image, by_caption = sum_pairs(sweep, _positives, None, (scaled, images), (text, texts))
        rows = (scaled, _mean(by_image)), (images, by_image[1] > 0)
        columns = text, (texts, self._kinds_of(text_source))
        by_kind, _ = sum_pairs(sweep, _ranking, thresholds, rows, columns)
        ranking, negative, count = (jnp.sum(x, axis=0) for x in by_kind)
        rank = jnp.sum(ranking) / jnp.maximum(jnp.sum(count), 1.0)

        hard = row_softmax(self.make_sweep(m, m), _to_negatives, (scale * text, texts), (text, texts))
        intra = weighted_mean(jax.nn.softplus(hard.normalizer - _mean(by_caption)), by_caption[1] > 0)

        if self.threshold == "adaptive":
            gap = weighted_mean(_mean(by_image), by_image[1] > 0) - negative / jnp.maximum(count, 1.0)
            adapted = jnp.where(count > 0, jnp.clip(gap, 0.0, self.max_threshold), thresholds)
            thresholds = jax.lax.stop_gradient(adapted)
        metrics |= {
            "contrastive_loss": contrast,
            "rank_loss": rank,
            "intra_loss": intra,
            **{name: thresholds[place] for place, name in enumerate(self._names)},
        }
        return contrast + self.rank_weight * rank + self.intra_weight * intra, metrics


def _mean(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of sums of logits and of targets; 0 without a target."""
    total, mass = sums
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1.0), 0.0)


def _positives(_shared: None, image: Side, text: Side) -> tuple[Any, Any]:
    """Σ S L and Σ S of images and of texts."""
    target, _ = make_targets(image[1], text[1])
    weighted = target * similarity(image[0], text[0])
    return tuple((jnp.sum(weighted, axis), jnp.sum(target, axis)) for axis in (1, 0))  # type: ignore[return-value]


def _ranking(thresholds: Any, image: Side, text: Side) -> tuple[Any, tuple[()]]:
    """Of each image's own negatives by kind, f32[N, K]: sums of the hinges and of the logits, and their number."""
    (rows, positive), (labels, has_positive) = image
    texts, kinds = text[1]
    own = own_negatives(labels, texts) & has_positive[:, None]
    logits = similarity(rows, text[0])
    hinge = jnp.maximum(thresholds[kinds] + logits - positive[:, None], 0.0)

    def sum_by_kind(x: jax.Array) -> jax.Array:
        each = [jnp.sum(jnp.where(own & (kinds == kind), x, 0.0), axis=1) for kind in range(thresholds.shape[0])]
        return jnp.stack(each, axis=1)

    return tuple(map(sum_by_kind, (hinge, logits, jnp.ones_like(logits)))), ()


def _to_negatives(caption: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """No targets: the normalizer of every caption has the hard negatives of all."""
    among = (caption.valid & ~is_negative(caption))[:, None] & is_negative(text)[None, :]
    return jnp.zeros(among.shape, jnp.float32), among
