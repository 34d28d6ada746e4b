"""The captions whose own image moved most between recipes: ranks of the same queries, with pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.commands.comparing.runs import ComparedRun
from mmjax.core.config import ConfigError
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source
from mmjax.evals.retrieval import evenly_spaced
from mmjax.experiment import Experiment
from mmjax.inference.loading import load
from mmjax.inference.thumbnails import make_thumbnail
from mmjax.train import data as train_data

MOST_IMAGES = 1000
"""Images that are ranked, evenly spaced over the split: enough to see what changed."""

SHOWN = 4  # of the images that are nearest to a caption

logger = logging.getLogger(__name__)


class RankedRun(NamedTuple):
    """What one run makes of the captions, each the first of its image."""

    ranks: np.ndarray  # i64[n], from 1: images of others that score as high as the best own one count as above it
    nearest: np.ndarray  # i64[n, SHOWN]: rows of the images with the highest cosines


def find_changes(recipes: Mapping[str, Sequence[ComparedRun]], *, workdir: Path, count: int) -> dict[str, Any]:
    """The ``count`` captions with the largest changes against the first recipe, half up and half down.

    Args:
        recipes: The finished runs of each recipe, in the order of the seeds.
        workdir: The folder of the comparison.
        count: Of captions.

    Returns:
        ``split``, ``images`` (how many were ranked), ``seeds`` (whose ranks they are) and ``entries``; no entries if
        nothing of it can be ranked.
    """
    first = next(iter(recipes.values()))
    experiment = first[0].experiment()
    split = experiment.eval.final_splits[0] if experiment.eval.final_splits else ""
    seeds = [run.seed for run in first]
    nothing = {"split": split, "images": 0, "seeds": seeds, "entries": []}
    if not count or "retrieval" not in experiment.eval.final_tasks:
        return nothing
    try:
        examples = _read_examples(train_data.open_eval_source(experiment, split), experiment)
        own = find_own(examples)
        ranked = {
            name: [_rank_run(run, examples, own, workdir=workdir) for run in runs] for name, runs in recipes.items()
        }
    except (ConfigError, ValueError) as error:
        logger.warning(f"no examples of retrieval in the report: {error}")
        return nothing
    chosen = choose_changes({n: np.stack([r.ranks for r in runs]) for n, runs in ranked.items()}, count=count)
    baseline = next(iter(recipes))
    return {
        "split": split,
        "images": len(examples),
        "seeds": seeds,
        "entries": [
            {
                "caption": examples[row]["captions"][0],
                "recipe": name,
                "image": _thumbnail(examples[row], experiment),
                "ranks": {other: [int(run.ranks[row]) for run in runs] for other, runs in ranked.items()},
                "retrieved": {
                    other: [
                        [_thumbnail(examples[i], experiment), bool(own[row, i])] for i in ranked[other][0].nearest[row]
                    ]
                    for other in (baseline, name)
                },
            }
            for name, row in chosen
        ],
    }


def choose_changes(ranks: Mapping[str, np.ndarray], *, count: int) -> list[tuple[str, int]]:
    """Recipe and row of the largest changes of the mean log rank, from the most improved to the most worsened.

    Args:
        ranks: i64[seeds, n] of each recipe, the first of which is the baseline.
        count: At most so many, of different rows; half of them improved where there are as many.
    """
    baseline, *others = ranks
    changes = [
        (float(change), name, row)
        for name in others
        for row, change in enumerate(np.mean(np.log(ranks[name]) - np.log(ranks[baseline]), axis=0))
    ]
    chosen: dict[int, tuple[float, str]] = {}
    for sign, most in ((1, (count + 1) // 2), (-1, count)):
        for change, name, row in sorted(changes, key=lambda entry: sign * entry[0]):
            if len(chosen) >= most or sign * change >= 0:
                break
            chosen.setdefault(row, (change, name))
    return [(name, row) for row, (_, name) in sorted(chosen.items(), key=lambda item: item[1][0])]


def rank_captions(images: np.ndarray, texts: np.ndarray, own: np.ndarray) -> RankedRun:
    """The rank of each caption's best own image among all.

    Args:
        images: f32[n, E], unit rows.
        texts: f32[m, E], unit rows.
        own: bool[m, n]: whether the image is one of the caption's.
    """
    scores = texts @ images.T
    best = np.max(np.where(own, scores, -np.inf), axis=1)
    above = np.sum((scores >= best[:, None]) & ~own, axis=1)
    return RankedRun(above + 1, np.argsort(-scores, axis=1, kind="stable")[:, :SHOWN])


def find_own(examples: Sequence[Example]) -> np.ndarray:
    """bool[n, n]: whether the first caption of the one example is right for the other's image."""
    own = np.zeros((len(examples), len(examples)), bool)
    rows: dict[Any, list[int]] = {}
    for row, example in enumerate(examples):
        for name in {example["id"], *example["captions"]}:
            rows.setdefault(name, []).append(row)
    for row, example in enumerate(examples):
        own[row, rows[example["id"]]] = own[row, rows[example["captions"][0]]] = True
    return own


def _read_examples(source: Source, experiment: Experiment) -> list[Example]:
    modality = experiment.data.modalities[0]
    examples = []
    for index in evenly_spaced(np.arange(len(source)), MOST_IMAGES).tolist():
        try:
            example = source.read(index)
        except Unreadable:
            continue
        if example["captions"] and example.get(modality) is not None:
            examples.append(example)
    if len(examples) < 2:
        raise ValueError("fewer than two examples of the split can be read")
    return examples


def _rank_run(run: ComparedRun, examples: Sequence[Example], own: np.ndarray, *, workdir: Path) -> RankedRun:
    experiment = run.experiment()
    model = load(f"{run.folder(workdir)}@{experiment.eval.weights}", batch_size=experiment.eval.batch_size)
    # A tower of several modalities takes those that an example has.
    names = model.modalities
    there = [{name: example[name] for name in names if example.get(name) is not None} for example in examples]
    images = model.encode_image([one if len(names) > 1 else one[model.modality] for one in there])
    texts = model.encode_text([example["captions"][0] for example in examples])
    return rank_captions(images, texts, own)


def _thumbnail(example: Example, experiment: Experiment) -> list[Any]:
    return list(make_thumbnail(example[experiment.data.modalities[0]]))
