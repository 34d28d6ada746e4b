"""Contrast, matching and masked words: what models with a fusion encoder are trained for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, ConfigError, Ge
from mmjax.core.files import read_names
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.answers import answer_labels
from mmjax.objectives.common.base import CARRIED, State, TextGroups
from mmjax.objectives.common.masked_words import mask_words, word_losses
from mmjax.objectives.common.matching import Mixed, draw_pairs, draw_positives
from mmjax.objectives.common.momentum_queue import SIDES, distilled_loss, empty_queue, push, queued_columns
from mmjax.objectives.common.row_softmax import class_loss
from mmjax.objectives.common.targets import Labels, make_targets, similarity
from mmjax.objectives.common.tower_tokens import MomentumFeatures, TowerTokens

Sources = tuple[Provenance, Provenance]
"""Of images and of texts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """ALBEF's three losses over a model with a section ``model.fusion`` (Li et al. 2021, arXiv:2107.07651).

    ::

        loss = contrastive_weight · L_itc + matching_weight · L_itm + words_weight · L_mlm
        L_itc = ½ mean_i [-Σ_j y_ij log softmax_j L_ij] + ½ mean_j [-Σ_i y_ij log softmax_i L_ij]
        L_itm = mean_p [-log softmax(match_p)_(label_p)]
        L_mlm = mean_w [-(1 - a) log p_w - a Σ_v q_v log p_v]

    Pairs p are each row's own partner, and a false text for each image and a false image for each text, drawn by
    ``e^L`` among the rows that share no source (``matching.draw_pairs``). Words w are those that ``mask_words`` hides;
    they are predicted from the other words and the image.

    Without ``momentum`` L_itc is ``contrastive``. With it the columns are embeddings of a moving average of the model,
    of this batch and of the ``queue_size`` rows before it, and the average's own predictions are soft targets:
    ``y = (1 - a) S / Σ S + a softmax L^m``, and q those of words. a is ``distillation``, reached from 0 over
    ``distillation_warmup_steps``. Queue and average are part of the training state.

    Views of an augmentation are compared within the batch, and as wholes if they are made before pooling; blends of
    word vectors have no words to predict.

    The paper has one positive a row; the code for fine-tuning has all rows of one image, as here. ALBEF's code draws
    negatives among the rows of one GPU; here they are drawn among the batch, whatever the number of devices. The 1e-4
    that its fine-tuning adds to the logits before it draws changes nothing. For the other options see ``Base``.

    Args:
        contrastive_weight: Of L_itc.
        matching_weight: Of L_itm.
        words_weight: Of L_mlm.
        words_rate: How many of the words are hidden.
        negatives: Whether false partners are drawn by ``e^L``, or all alike, as ViLT's are (arXiv:2102.03334).
        mixed: In matching, rows of several sources are positives of all of them, or take no part (``leave_out``).
        momentum: Decay of the moving average; None: there is none.
        queue_size: Rows of each queue.
        distillation: The largest a.
        distillation_warmup_steps: Steps until a is reached.
        answers: Texts are questions, and this lists their answers (or a JSON file does): the cross-entropy of an
            example's own, the field that ``data.groups`` names, is added, as in ViLT's fine-tuning for VQA (there a
            binary one with soft scores). Others are left out. With ``distillation`` the average's answers are soft
            targets too, as in ALBEF's fine-tuning for NLVR2 and SNLI-VE. With ``model.fusion.images=2`` a text is about
            both pictures of its example.
        answers_weight: Of that term.
    """

    contrastive_weight: Annotated[float, Ge(0)] = 1.0
    matching_weight: Annotated[float, Ge(0)] = 1.0
    words_weight: Annotated[float, Ge(0)] = 1.0
    words_rate: Annotated[float, Between(0.01, 0.99)] = 0.15
    mixed: Mixed = "positive"
    negatives: Literal["similar", "random"] = "similar"
    momentum: Annotated[float, Between(0, 1)] | None = None
    queue_size: Annotated[int, Ge(0)] = 0
    distillation: Annotated[float, Between(0, 1)] = 0.0
    distillation_warmup_steps: Annotated[int, Ge(0)] = 0
    answers: tuple[str, ...] | str = ()
    answers_weight: Annotated[float, Ge(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "answers", read_names(self.answers, key="objective.answers"))
        for name in ("queue_size", "distillation"):
            if self.momentum is None and getattr(self, name):
                raise ConfigError(
                    f"objective.{name}={getattr(self, name)}: comes from a moving average of the model; set "
                    f"objective.momentum, e.g. 0.995, or objective.{name}=0"
                )

    @property
    def modules(self) -> tuple[str, ...]:
        """The fusion encoder, if there is anything for it to do."""
        return ("fusion",) if self.matching_weight or self.words_weight or self.answers else ()

    @property
    def text_groups(self) -> TextGroups | None:
        """That of each example, if questions are answered: its answer."""
        return "example" if self.answers else None

    @property
    def momentum_decay(self) -> float | None:
        """Of the moving average."""
        return self.momentum

    def check_model(self, model: Any, *, augment: Collection[str]) -> None:
        """Raises unless the encoder has the heads that are trained."""
        if "fusion" not in self.modules:
            return
        fusion = model.fusion
        if self.words_weight and fusion.word_head == "none":
            raise ConfigError(
                f"objective.words_weight={self.words_weight}: model.fusion.word_head='none' has no head for words; use "
                "'tied', or set objective.words_weight=0"
            )
        if len(self.answers) not in (0, fusion.answers):
            raise ConfigError(
                f"objective.answers: has {len(self.answers)} answers, and the model's head {fusion.answers}; set "
                f"model.fusion.answers={len(self.answers)}"
            )

    def init_state(self) -> State:
        """Empty queues, and the number of steps."""
        if self.momentum is None:
            return {}
        queue = empty_queue(self.queue_size, self.embed_dim) if self.queue_size and self.embed_dim else {}
        return queue | {"updates": jnp.zeros((), jnp.int32)}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The queues with the rows of this step."""
        if not state:
            return state
        new = state | {"updates": state["updates"] + 1}
        for side in SIDES if f"{SIDES[0]}_queue" in state else ():
            new = push(new, side, *metrics[CARRIED][side])
        return new

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
        tokens: TowerTokens | None = None,
        momentum: MomentumFeatures | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[], its terms and accuracies; for the arguments see ``Base``."""
        sources = image_source, text_source
        if momentum is None:
            contrast, metrics = super().__call__(
                image, text, image_source=image_source, text_source=text_source, scale=scale, bias=bias
            )
        else:
            state = state or self.init_state()
            contrast, metrics = self.contrast_with_momentum(image, text, sources, momentum, scale=scale, state=state)
            metrics[CARRIED] = {"image": (momentum.image, image_source), "text": (momentum.text, text_source)}
        metrics["contrastive_loss"] = contrast
        loss = self.contrastive_weight * contrast
        if tokens is None:
            return loss, metrics
        by_pair, by_image, by_word = jax.random.split(tokens.key, 3)
        if self.matching_weight:
            columns = (text, image) if momentum is None else (momentum.text, momentum.image)
            logits = [self._partner_logits(*side, scale=scale) for side in zip((image, text), columns, strict=True)]
            value, accuracy = self._match(by_pair, (logits[0], logits[1]), sources, tokens)
            loss = loss + self.matching_weight * value
            metrics |= {"matching_loss": value, "matching_accuracy": accuracy}
        if self.words_weight and not tokens.blended:
            value, accuracy = self._predict_words((by_image, by_word), sources, tokens, momentum, state)
            loss = loss + self.words_weight * value
            metrics |= {"words_loss": value, "words_accuracy": accuracy}
        if self.answers:
            value, accuracy = self._answer(by_image, sources, tokens, momentum, state)
            loss = loss + self.answers_weight * value
            metrics |= {"answers_loss": value, "answers_accuracy": accuracy}
        return loss, metrics

    def contrast_with_momentum(
        self,
        image: jax.Array,
        text: jax.Array,
        sources: Sources,
        momentum: MomentumFeatures,
        *,
        scale: jax.Array,
        state: State,
    ) -> tuple[jax.Array, Metrics]:
        """L_itc against the moving average's embeddings; subclasses add their terms."""
        images, texts = self.columns(state, sources, momentum)
        soft_weight = self._soft_weight(state)
        to_text, image_accuracy = distilled_loss(
            image, momentum.image, texts[0], self.targets_of(sources[0], texts[1]), scale=scale, soft_weight=soft_weight
        )
        to_image, text_accuracy = distilled_loss(
            text, momentum.text, images[0], self.targets_of(sources[1], images[1]), scale=scale, soft_weight=soft_weight
        )
        metrics = {
            "image_to_text_accuracy": image_accuracy,
            "text_to_image_accuracy": text_accuracy,
            "distillation": jnp.asarray(soft_weight, jnp.float32),
        }
        return 0.5 * (to_text + to_image), metrics

    def _partner_logits(self, rows: jax.Array, columns: jax.Array, *, scale: jax.Array) -> jax.Array:
        """L f32[N, M], by which the false partners of rows are drawn among columns."""
        if self.negatives == "random":
            return jnp.zeros((len(rows), len(columns)), jnp.float32)
        return scale * similarity(rows, columns)

    def columns(self, state: State, sources: Sources, momentum: MomentumFeatures) -> list[tuple[jax.Array, Provenance]]:
        """Images and texts to compare with: the moving average's embeddings, of this batch and then of the queue."""
        rows = (momentum.image, momentum.text)
        return [queued_columns(state, *side) for side in zip(SIDES, rows, sources, strict=True)]

    def targets_of(self, rows: Provenance, columns: Provenance) -> tuple[jax.Array, jax.Array]:
        """Targets and the pairs that take part."""
        return make_targets(self.make_labels(rows), self.make_labels(columns))

    def _soft_weight(self, state: State | None) -> jax.Array | float:
        if not self.distillation_warmup_steps or not state:
            return self.distillation
        done = state["updates"].astype(jnp.float32) / self.distillation_warmup_steps
        return self.distillation * jnp.minimum(done, 1.0)

    def _labeled(self, sources: Sources) -> list[tuple[Provenance, Labels]]:
        return [(source, self.make_labels(source)) for source in sources]

    def _match(
        self, key: jax.Array, logits: tuple[jax.Array, jax.Array], sources: Sources, tokens: TowerTokens
    ) -> tuple[jax.Array, jax.Array]:
        """L_itm and the fraction of pairs that is judged right."""
        pairs = draw_pairs(key, logits, *self._labeled(sources), mixed=self.mixed)
        scores, labels, valid = [], [], []
        for count in dict.fromkeys(len(pair.valid) for pair in pairs):
            same = [pair for pair in pairs if len(pair.valid) == count]
            # Stacked on a second axis, so that no row leaves its device.
            image, text, ok = (jnp.stack([getattr(p, k) for p in same], 1).ravel() for k in ("image", "text", "valid"))
            rows = tokens.image[image], tokens.text[text], tokens.ids[text]
            scores.append(tokens.map(lambda model, rows: model.fusion.match(*rows), rows))
            labels.append(jnp.tile(jnp.array([p.matches for p in same], jnp.int32), count))
            valid.append(ok)
        return class_loss(*map(jnp.concatenate, (scores, labels, valid)))

    def _answer(
        self,
        key: jax.Array,
        sources: Sources,
        tokens: TowerTokens,
        momentum: MomentumFeatures | None,
        state: State | None,
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of the answers, and the fraction that is right."""
        if sources[1].group is None:
            raise ConfigError("objective.answers: examples have no answers; set data.groups=('answer',), their field")
        of_pairs = tokens.model.fusion.config.images == 2
        # Both pictures of an example are made of the same sources; the first ones stand for the examples.
        of_images = jax.tree.map(lambda x: x[: tokens.examples], sources[0]) if of_pairs else sources[0]
        image, has_image = draw_positives(key, *reversed(self._labeled((of_images, sources[1]))))
        labels, is_listed = answer_labels(sources[1].group, tuple(self.answers))

        def logits_of(tokens: TowerTokens) -> jax.Array:
            images = tokens.images_by_example(tokens.image) if of_pairs else tokens.image
            rows = images[image], tokens.text, tokens.ids
            return tokens.map(lambda model, rows: model.fusion.answer(*rows), rows)

        soft = jax.nn.softmax(logits_of(momentum.tokens)) if momentum is not None and self.distillation else None
        valid = has_image & is_listed
        return class_loss(logits_of(tokens), labels, valid, soft=soft, soft_weight=self._soft_weight(state))

    def _predict_words(
        self,
        keys: tuple[jax.Array, jax.Array],
        sources: Sources,
        tokens: TowerTokens,
        momentum: MomentumFeatures | None,
        state: State | None,
    ) -> tuple[jax.Array, jax.Array]:
        """L_mlm and the fraction of hidden words that is predicted right."""
        encoder = tokens.model.fusion
        image, has_image = draw_positives(keys[0], *reversed(self._labeled(sources)))
        texts = mask_words(
            keys[1], tokens.ids, eos_id=encoder.eos_id, vocab_size=encoder.vocab_size, rate=self.words_rate
        )
        chosen = texts.chosen & has_image[:, None]
        inputs = (texts.ids, texts.masked, tokens.ids)
        soft, soft_weight = None, self._soft_weight(state)
        if momentum is not None and self.distillation:
            predicted = momentum.tokens.map(_word_logits, (*inputs, momentum.tokens.image[image]))
            soft = jax.lax.stop_gradient(jax.nn.softmax(predicted))
        weight = jnp.broadcast_to(jnp.asarray(soft_weight, jnp.float32), chosen.shape[:1])

        def losses(model: Any, rows: Any) -> tuple[jax.Array, jax.Array]:
            inputs, chosen, soft, weight = rows
            return word_losses(_word_logits(model, inputs), inputs[2], chosen, soft, weight[:, None])

        losses_of_texts, right = tokens.map(losses, ((*inputs, tokens.image[image]), chosen, soft, weight))
        count = jnp.maximum(jnp.sum(chosen, dtype=jnp.float32), 1.0)
        return jnp.sum(losses_of_texts) / count, jnp.sum(right) / count


def _word_logits(model: Any, inputs: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """f32[M, L, V] of texts with hidden words: ids, where the mask stands, the ids before, and the image's tokens."""
    hidden, masked, ids, image = inputs
    embedded = model.text.embed(hidden, masked=masked, mask_vector=model.fusion.mask_embed[...])
    text = model.text.run(embedded, ids, with_sequence=True).sequence
    return model.fusion.word_logits(model.fusion(image, text, ids), model.text.token_embed.embedding[...])
