"""Visual question answering: the answer that the model's head scores highest, and what that owes to the image."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats import classes
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder

_ANNOTATORS = 3
"""Of ten people so many must agree that an answer counts fully."""


class Evaluator(Base):
    """Accuracy over examples with a question for a caption, and an ``answer`` or the ``answers`` of several people.

    Several answers count as in VQA v2 (Goyal et al. 2017, arXiv:1612.00837): ``min(1, n / 3)`` with n the people who
    gave the answer, averaged over all choices of one person less. One answer counts if it is the same.

    ``accuracy`` is the mean, ``accuracy_KIND`` that of a ``kind`` of questions, if examples name it.
    ``accuracy_other_image`` asks each question of the next example's picture: what the question alone is good for to
    this model. ``unlisted`` is the fraction of the questions of which no answer is in the list.

    It needs a model with ``model.fusion.answers``.
    """

    needs_head: ClassVar[str | None] = "answer"

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        answers: str | tuple[str, ...] = (),
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: The split to measure on.
            source: Options for ``open_source``.
            answers: The answers in the order of the model's head, ``objective.answers`` of its training, or a file;
                left out: the source's ``class_names``.
        """
        self.split = open_split(open_source, split, source)
        listed = classes.names(answers, key="answers") if answers else self.split.source.class_names
        self.answers = list(listed or [])

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        _, items, indices, _ = embedder.read(self.split.source, key=self.split.key)
        questions = [item["captions"][0] for item in items]
        given_answers = [_answers_of(item, row) for row, item in enumerate(items)]
        numbers = np.arange(len(items))
        result, rights = {}, {}
        for name, images in (("accuracy", indices), ("accuracy_other_image", np.roll(indices, -1))):
            logits = embedder.match(self.split.source, images, questions, numbers, head="answer")
            if logits.shape[1] != len(self.answers):
                raise ConfigError(
                    f"answers: lists {len(self.answers)}, and the model has {logits.shape[1]}; set "
                    "eval.options.vqa.answers to objective.answers of its training"
                )
            chosen = [self.answers[i] for i in logits.argmax(axis=1)]
            rights[name] = np.array([_score(c, own) for c, own in zip(chosen, given_answers, strict=True)])
            result[name] = float(rights[name].mean())
        kinds = np.array([str(item.get("kind", "")) for item in items])
        for kind in sorted(set(kinds) - {""}):
            result[f"accuracy_{kind}"] = float(rights["accuracy"][kinds == kind].mean())
        known = set(self.answers)
        return result | {"unlisted": float(np.mean([known.isdisjoint(own) for own in given_answers]))}


def _answers_of(item: dict[str, Any], row: int) -> list[str]:
    own = item.get("answers") or ([item["answer"]] if "answer" in item else [])
    if not own:
        raise ValueError(f"example {row} has no answer; vqa needs the field 'answer' or 'answers'")
    return [str(answer) for answer in own]


def _score(chosen: str, answers: list[str]) -> float:
    if len(answers) == 1:
        return float(chosen == answers[0])
    same = [answer == chosen for answer in answers]
    return float(np.mean([min(1.0, (sum(same) - one) / _ANNOTATORS) for one in same]))
