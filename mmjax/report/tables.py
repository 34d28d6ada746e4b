"""Rows of the report's result tables: retrieval over time, the other tasks beside chance, and goodput."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from mmjax.report.chart import number
from mmjax.runs.goodput import LABELS, format_seconds

RECALLS = [f"{direction}_R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
MAX_ROWS = 12

Record = dict[str, float]


class RetrievalRow(NamedTuple):
    """A row of the retrieval table; ``style`` is "best", "chance" or empty."""

    style: str
    name: str
    step: str
    recalls: Sequence[float | None]
    rsum: float


class RetrievalTable(NamedTuple):
    """Recalls of every split, and a sentence about the sizes of the splits."""

    rows: list[RetrievalRow]
    sizes: str


class Score(NamedTuple):
    """A fraction beside what random scores and a control, such as a model that does not see the image, would get."""

    name: str
    value: float
    chance: float | None = None
    control: float | None = None


class Task(NamedTuple):
    """The scores of one evaluator at its last step; ``control`` is the short name of theirs, empty without any."""

    title: str
    step: int
    scores: list[Score]
    remark: str
    control: str = ""

    @property
    def has_chance(self) -> bool:
        """Whether any score has one."""
        return any(score.chance is not None for score in self.scores)


class GoodputTable(NamedTuple):
    """Activities as (name, time, fraction of the total), a sentence about the starts, and the goodput."""

    rows: list[tuple[str, str, float]]
    remark: str
    goodput: float


def by_prefix(records: list[Record], metric: str) -> dict[str, list[tuple[int, Record]]]:
    """For each prefix P that has ``P/metric``: its steps and their metrics without the prefix, in order."""
    result: dict[str, dict[int, Record]] = {}
    for record in records:
        for prefix in sorted({key[: -len(metric) - 1] for key in record if key.endswith(f"/{metric}")}):
            start = prefix + "/"
            metrics = {
                k[len(start) :]: v for k, v in record.items() if k.startswith(start) and "/" not in k[len(start) :]
            }
            result.setdefault(prefix, {})[int(record["step"])] = metrics
    return {prefix: sorted(steps.items()) for prefix, steps in result.items()}


def percent(value: float) -> str:
    """Formats 0.1234 as 12.3, without the sign, and NaN and infinity by name."""
    return f"{100 * value:.1f}" if math.isfinite(value) else number(value)


def bar_width(value: float) -> str:
    """The percentage of a bar that a fraction fills."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}" if math.isfinite(value) else "0.0"


def retrieval(records: list[Record]) -> RetrievalTable:
    """Recalls in both directions by split and step, the best step of each split marked, and chance below."""
    rows, sizes = [], []
    for prefix, steps in by_prefix(records, "rsum").items():
        # A step whose rsum is not a number is never the best.
        best = max(steps, key=lambda item: item[1]["rsum"] if math.isfinite(item[1]["rsum"]) else -math.inf)[0]
        for step, metrics in _thin(steps, best):
            style = "best" if step == best and len(steps) > 1 else ""
            rows.append(
                RetrievalRow(style, prefix, f"{step:,}", [metrics.get(name) for name in RECALLS], metrics["rsum"])
            )
        last = steps[-1][1]
        chance = _chance(last)
        if chance:
            rows.append(RetrievalRow("chance", "chance", "", chance, 100 * sum(chance)))
        if {"num_images", "num_captions"} <= last.keys():
            sizes.append(f"{prefix}: {last['num_images']:,.0f} images, {last['num_captions']:,.0f} captions")
            if repeated := last.get("num_repeated_captions"):
                sizes[-1] += f" (and {repeated:,.0f} repeated)"
    return RetrievalTable(rows, "; ".join(sizes) + "." if sizes else "")


def tasks(records: list[Record]) -> list[Task]:
    """The scores of all evaluators but retrieval, each with chance and what a control gets, where these are known."""
    result = []
    for title, metric, control, read in (
        ("Zero-shot classification", "acc@1", "", _zeroshot),
        ("True or false caption", "macro_blind", "blind", _pairwise),
        ("Winoground", "group_score", "", _winoground),
        ("Answers", "accuracy_other_image", "other image", _answers),
        ("Captions", "cider", "other image", _captions),
        ("Grounding", "mass_gain", "", _grounding),
        ("Labels of sequences", "label_error_rate", "other example", _labels),
    ):
        for prefix, steps in by_prefix(records, metric).items():
            step, metrics = steps[-1]
            # Keys are "split/task/metric", or "task/metric" where the task has a split of its own.
            split, _, task = prefix.rpartition("/")
            scores, remark = read(metrics)
            known = ("", "zeroshot", "pairwise", "winoground", "linear_probe", "captioning", "sequence_labels")
            details = [name for name in (split, task) if name not in known]
            kind = "Linear probe" if "num_train" in metrics else title
            shown = control if any(score.control is not None for score in scores) else ""
            result.append(Task(", ".join([kind, *details]), step, scores, remark, shown))
    return result


def goodput(records: list[Record]) -> GoodputTable | None:
    """The last goodput among the metrics, by activity; None if no record has it."""
    known = [r for r in records if "goodput" in r and r.get("goodput/total_seconds", 0.0) > 0]
    if not known:
        return None
    last = known[-1]
    total = last["goodput/total_seconds"]
    rows = []
    for activity, name in LABELS.items():
        seconds = last.get(f"goodput/{activity}_seconds", 0.0)
        if math.isfinite(seconds) and seconds > 0:
            rows.append((name, format_seconds(seconds), min(seconds / total, 1.0)))
    starts = last.get("goodput/starts", 1.0)
    remark = f"{format_seconds(total)} in {starts:,.0f} start{'' if starts == 1 else 's'}"
    if starts > 1:
        between = last.get("goodput/between_starts_seconds")
        remark += f"; {'unknown' if between is None else format_seconds(between)} between them, not counted"
    return GoodputTable(rows, remark + ".", last["goodput"])


def _zeroshot(metrics: Record) -> tuple[list[Score], str]:
    classes = metrics.get("num_classes")
    scores = []
    for name in ("acc@1", "acc@5", "mean_per_class", "acc@1_seen", "acc@1_held_out", "acc@1_harmonic"):
        if name in metrics:
            chance = (5 if name == "acc@5" else 1) / classes if classes else None
            scores.append(Score(name.replace("_", " "), metrics[name], chance))
    return scores, f"{classes:,.0f} classes" if classes else ""


def _pairwise(metrics: Record) -> tuple[list[Score], str]:
    kinds = sorted(k for k in metrics if f"{k}_blind" in metrics and k not in ("macro", "micro"))
    chance = 1 / 3 if "macro_text" in metrics else 1 / 2  # in SugarCrepe++ two captions must beat the false one
    scores = [Score(k.replace("_", " "), metrics[k], chance, metrics[f"{k}_blind"]) for k in kinds]
    if "macro" in metrics:
        scores.append(Score("mean of kinds", metrics["macro"], chance, metrics["macro_blind"]))
    remark = f"{metrics['num_pairs']:,.0f} pairs. " if "num_pairs" in metrics else ""
    if "tie_rate" in metrics:
        remark += f"{percent(metrics['tie_rate'])} % ties, which count as lost. "
    return scores, remark + "Blind: the same captions scored without looking at the image."


def _winoground(metrics: Record) -> tuple[list[Score], str]:
    chances = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
    matches = [m for m in (re.fullmatch(r"(text|image|group)_score(?:_(.+))?", key) for key in metrics) if m]
    scores = []
    for match in sorted(matches, key=lambda m: (m[2] or "", list(chances).index(m[1]))):
        kind = f", {match[2].replace('_', ' ')}" if match[2] else ""
        scores.append(Score(f"{match[1]} score{kind}", metrics[match[0]], chances[match[1]]))
    return scores, f"{metrics['num_pairs']:,.0f} pairs" if "num_pairs" in metrics else ""


def _answers(metrics: Record) -> tuple[list[Score], str]:
    scores = [Score("accuracy", metrics.get("accuracy", math.nan), None, metrics["accuracy_other_image"])]
    scores += [Score("consistency", metrics["consistency"])] if "consistency" in metrics else []
    scores += _by_kind(metrics)
    remark = _examples(metrics, "questions")
    if unlisted := metrics.get("unlisted"):
        remark += f"{percent(unlisted)} % have answers that the model does not know. "
    return scores, remark + "Other image: the same questions, asked of the next example's picture."


def _captions(metrics: Record) -> tuple[list[Score], str]:
    scores = []
    if "attribute_accuracy" in metrics:
        other = metrics.get("attribute_accuracy_other_image")
        scores.append(Score("claims that are true", metrics["attribute_accuracy"], None, other))
        scores += _by_kind(metrics)
        scores += [Score("captions without a mistake", metrics["all_true"])] if "all_true" in metrics else []
    titles = {"cider": "CIDEr-D", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"}
    scores += [Score(title, metrics[name]) for name, title in titles.items() if name in metrics]
    remark = _examples(metrics, "pictures")
    if "attribute_accuracy_other_image" in metrics:
        remark += "Other image: the same captions, judged by the next example's picture."
    return scores, remark


def _grounding(metrics: Record) -> tuple[list[Score], str]:
    area = metrics.get("area_of_box")
    titles = {"mass_in_box": "map inside the box", "pointing": "maximum inside the box"}
    scores = [Score(title, metrics[name], area) for name, title in titles.items() if name in metrics]
    scores += [Score("right proposal", metrics["accuracy"])] if "accuracy" in metrics else []
    remark = "Chance: the share of the picture that the box covers."
    return [*scores, *_by_kind(metrics)], _examples(metrics, "phrases") + remark


def _labels(metrics: Record) -> tuple[list[Score], str]:
    other = metrics.get("label_error_rate_other_example")
    scores = [Score("label error rate", metrics["label_error_rate"], None, other)]
    for name in ("substitutions", "deletions", "insertions", "sequence_accuracy"):
        scores += [Score(name.replace("_", " "), metrics[name])] if name in metrics else []
    return scores, _examples(metrics, "sequences") + "The less, the better, but for the accuracy."


def _by_kind(metrics: Record) -> list[Score]:
    start, known = "accuracy_", "accuracy_other_image"
    return [Score(k.removeprefix(start), v) for k, v in sorted(metrics.items()) if k.startswith(start) and k != known]


def _examples(metrics: Record, noun: str) -> str:
    return f"{metrics['num_examples']:,.0f} {noun}. " if "num_examples" in metrics else ""


def _thin(steps: list[tuple[int, Record]], best: int) -> list[tuple[int, Record]]:
    every = -(-len(steps) // MAX_ROWS)
    last = len(steps) - 1
    return [item for i, item in enumerate(steps) if (last - i) % every == 0 or item[0] == best]


def _chance(metrics: Record) -> list[float]:
    """Expected recalls of random scores: an image has pairs / n captions of m, a caption pairs / m images of n."""
    n, m = metrics.get("num_images", 0.0), metrics.get("num_captions", 0.0)
    pairs = m + metrics.get("num_repeated_captions", 0.0)
    if n < 1 or m < 1:
        return []
    to_text = [1 - (1 - min(1.0, k / m)) ** (pairs / n) for k in (1, 5, 10)]
    return to_text + [1 - (1 - min(1.0, k / n)) ** (pairs / m) for k in (1, 5, 10)]
