"""Visual question answering: the answer that the model's head scores highest, and what that owes to the image."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats import classes
from mmjax.evals.answers.normalization import vqa_accuracy
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import annotated_files, first_of
from mmjax.evals.common.pairs import count_unreadable


class Answered(NamedTuple):
    """The questions of a split, and how right a model's answers are."""

    items: list[dict[str, Any]]
    chosen: list[str]
    own: list[list[str]]  # what people answered
    scores: np.ndarray  # f64[n], from 0 to 1
    other_scores: np.ndarray  # f64[n], where each question is asked of another picture
    num_unreadable: int  # examples that are left out

    def by(self, field: str) -> dict[str, float]:
        """The mean score for each value of a field that examples have."""
        values = np.array([str(item.get(field, "")) for item in self.items])
        return {value: float(self.scores[values == value].mean()) for value in sorted(set(values) - {""})}

    def counts(self) -> dict[str, float]:
        """How many examples the scores are of, and how many are left out."""
        return {"num_examples": float(len(self.items)), "num_unreadable": float(self.num_unreadable)}


class Evaluator(Base):
    """Accuracy over examples with a question for a caption, and an ``answer`` or the ``answers`` of several people.

    Several answers count as in the official evaluation of VQA v2 (Goyal et al. 2017, arXiv:1612.00837), without
    articles, punctuation and the like: ``min(1, n / 3)`` with n the people who gave the answer, averaged over all
    choices of one person less (``mmjax.evals.answers.normalization``). One answer counts if it is the same.

    ``accuracy`` is the mean, ``accuracy_KIND`` that of a ``kind`` of questions, if examples name it.
    ``accuracy_other_image`` asks each question of the picture of the next example that has another: what the question
    alone is good for to this model. ``unlisted`` is the fraction of the questions of which no answer is in the list.
    Questions whose pictures cannot be read are left out, and ``num_unreadable`` counts them.

    It needs a model with ``model.fusion.answers``.
    """

    needs_head: ClassVar[str | None] = "answer"
    headline: ClassVar[Collection[str]] = ("accuracy", "accuracy_other_image", "num_unreadable")
    over_all: ClassVar[Collection[str]] = ("accuracy", "accuracy_other_image", "unlisted")

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
            answers: The answers in the order of the model's head, or a file; left out: ``objective.answers`` of the
                model's training, if they are those of the task, the source's ``class_names``, or those of the task.
        """
        self.split = open_split(open_source, split, source)
        self._answers = classes.names(answers, key="answers") if answers else ()
        self._answers_file = answers if isinstance(answers, str) else ""

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """VQA v2 below ``root``: ``vqa/v2_OpenEnded_mscoco_val2014_questions.json``, annotations and ``coco/val2014``.

        The answers, in the order of the model's head, are ``vqa/answers.json`` if it is there, or the model's own.
        """
        questions = root / "vqa/v2_OpenEnded_mscoco_val2014_questions.json"
        annotations = root / "vqa/v2_mscoco_val2014_annotations.json"
        listed = first_of(root, ("vqa/answers.json", "vqa/answer_list.json"))
        more = {"answers": str(listed)} if listed else {}
        source = {"annotations": str(annotations)}
        images = first_of(root, ("coco/val2014", "vqa/val2014"))
        path = questions if questions.exists() and annotations.exists() else None
        options = annotated_files("questions", path, images, expected="coco/val2014", **source)
        return {"vqa": {"split": "val", **more, **options}} if options else {}

    def answers(self, embedder: BoundEmbedder) -> list[str]:
        """The answers in the order of the model's head."""
        if self._answers:
            return list(self._answers)
        own = embedder.answers if set(self.needs_answers) <= set(embedder.answers) else ()
        return list(own or self.split.source.class_names or self.needs_answers)

    def ask(self, embedder: BoundEmbedder) -> Answered:
        """All questions, of their own pictures and of others."""
        _, items, indices, _ = embedder.read(self.split.source, key=self.split.key)
        questions = [item["captions"][0] for item in items]
        own = [self._answers_of(item, row) for row, item in enumerate(items)]
        names, answers = self.answers(embedder), []
        for images in (indices, indices[_next_other([item["id"] for item in items])]):
            logits = embedder.match(
                self.split.source, images, questions, np.arange(len(items)), head=self.needs_head or "answer"
            )
            if logits.shape[1] != len(names):
                file = f" ({self._answers_file})" if self._answers_file else ""
                raise ConfigError(
                    f"answers: lists {len(names)}{file}, and the model has {logits.shape[1]}; set "
                    f"eval.options.{self._name}.answers to objective.answers of its training"
                )
            answers.append([names[i] for i in logits.argmax(axis=1)])
        scores, other = (np.array([_score(c, o) for c, o in zip(chosen, own, strict=True)]) for chosen in answers)
        return Answered(items, answers[0], own, scores, other, count_unreadable(embedder, self.split))

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        asked = self.ask(embedder)
        result = accuracies(asked) | {f"accuracy_{kind}": value for kind, value in asked.by("kind").items()}
        known = set(self.answers(embedder))
        unlisted = float(np.mean([known.isdisjoint(own) for own in asked.own]))
        return result | {"unlisted": unlisted} | asked.counts()

    @property
    def _name(self) -> str:
        """The evaluator's, under which its options stand."""
        return type(self).__module__.rpartition(".")[2]

    def _answers_of(self, item: dict[str, Any], row: int) -> list[str]:
        own = item.get("answers") or ([item["answer"]] if "answer" in item else [])
        if not own:
            raise ConfigError(
                f"example {row} ({item.get('key', item['id'])}) has no answer; {self._name} needs the field 'answer' "
                "or 'answers': of VQA's questions name the file of the same split in the source's option annotations"
            )
        return [str(answer) for answer in own]


def accuracies(asked: Answered) -> dict[str, float]:
    """Of the questions with their own pictures, and with others."""
    return {
        "accuracy": float(asked.scores.mean()),
        "accuracy_other_image": float(asked.other_scores.mean()),
    }


def _next_other(ids: list[int]) -> np.ndarray:
    """i64[n]: for each row the next one of another picture, or itself if there is none."""
    count = len(ids)
    return np.array(
        [next((j % count for j in range(i + 1, i + count) if ids[j % count] != ids[i]), i) for i in range(count)]
    )


def _score(chosen: str, answers: list[str]) -> float:
    if len(answers) == 1:
        return float(chosen == answers[0])
    return vqa_accuracy(chosen, answers)
