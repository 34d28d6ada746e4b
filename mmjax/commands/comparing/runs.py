"""The runs of a comparison: every recipe with every size of the data and every seed, several at a time."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmjax.checkpoints.location import list_steps
from mmjax.commands.common.trainings import Training, exit_on_sigterm
from mmjax.commands.comparing.devices import divide_accelerators
from mmjax.commands.comparing.recipes import NONE, Recipe, check_plugins
from mmjax.core.config import ConfigError
from mmjax.core.locks import find_owner
from mmjax.evals.common.metric_names import check_metric
from mmjax.evals.common.suite import find_suite, prefixes
from mmjax.experiment import EvalConfig, Experiment
from mmjax.models.config import take_resolved
from mmjax.runs.console import duration
from mmjax.runs.folder import LOCK, differences, read_config

FINAL = "final/weights_of_step"
"""The key of ``metrics.jsonl`` that only the line of a run's last measurement has."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One recipe with one seed, on a fraction of its training data (None: whatever the recipe has)."""

    recipe: Recipe
    seed: int
    fraction: float | None = None

    def folder(self, workdir: Path) -> Path:
        """Its run folder."""
        part = () if self.fraction in (None, 1.0) else (f"fraction{self.fraction:g}",)
        return workdir.joinpath(self.recipe.name, *part, f"seed{self.seed}")

    @property
    def overrides(self) -> tuple[tuple[str, str], ...]:
        """All that it changes of the config file."""
        size = () if self.fraction is None else (("data.fraction", repr(self.fraction)),)
        return (*self.recipe.common, *self.recipe.own, *size, ("seed", str(self.seed)))

    def experiment(self) -> Experiment:
        """The checked experiment."""
        return dataclasses.replace(self.recipe, common=self.overrides, own=()).experiment()

    def __str__(self) -> str:
        size = "" if self.fraction is None else f" fraction {self.fraction:g}"
        return f"{self.recipe.name}{size} seed {self.seed}"


def list_runs(
    recipes: Sequence[Recipe], *, seeds: Sequence[int], fractions: Sequence[float | None] = (None,)
) -> list[ComparedRun]:
    """All runs, seeds first, so that a comparison that is stopped early has whole pairs."""
    return [
        ComparedRun(recipe=recipe, seed=seed, fraction=fraction)
        for seed in seeds
        for fraction in fractions
        for recipe in recipes
    ]


def check(runs: Iterable[ComparedRun], *, metrics: Sequence[str]) -> None:
    """Raises ConfigError if a run is no experiment or cannot give a metric: before any has trained."""
    suites: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
    for run in runs:
        experiment = run.experiment()
        check_plugins(experiment)
        config = experiment.eval
        if not (config.final_tasks or config.suite):
            raise ConfigError(
                f"recipe {run.recipe.name!r}: eval.final_tasks=(): its runs would measure nothing to compare; name a "
                "validation split and evaluators (of configs/files.py: the argument val=PATH)"
            )
        key = (config.suite, config.root)
        if metrics and key not in suites:
            suites[key] = _list_benchmarks(config) if config.suite else []
        for metric in metrics:
            check_metric(
                metric, tasks=config.final_tasks, splits=config.final_splits, suite=suites[key], path="--metrics"
            )


def _list_benchmarks(config: EvalConfig) -> list[tuple[str, str]]:
    """What stands before the metrics of each benchmark of the suite, and its evaluator."""
    data_sets = find_suite(config.suite, config.root, {}, keys=("eval.suite", "eval.root"))
    names = prefixes((data_set.name, data_set.task) for data_set in data_sets)
    # An evaluator's means over all its data sets carry its own name.
    return [*((name, task) for (_, task), name in names.items()), *{(task, task): None for _, task in names}]


def train_all(runs: Sequence[ComparedRun], *, jobs: int, workdir: Path) -> None:
    """Trains every run, ``jobs`` at a time, each on its own cores and accelerators.

    Finished runs are left alone and stopped ones resumed.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 <= jobs <= max(len(cores), 1):
        raise ConfigError(f"--jobs={jobs}: must be from 1 to the number of cores, {max(len(cores), 1)}")
    accelerators = divide_accelerators(jobs)
    total = len(runs)
    for run in runs:
        if owner := find_owner((folder := run.folder(workdir)) / LOCK):
            raise ConfigError(
                f"--workdir={workdir}: process {owner} still trains {folder}, perhaps for a command that has ended; "
                "wait for it, or stop it"
            )
    waiting = [run for run in runs if not is_finished(run, workdir=workdir)]
    if len(waiting) < total:
        logger.info(f"{total - len(waiting)} of {total} runs are finished already")
    if waiting and len({(run.recipe.name, run.fraction) for run in runs}) == 1:
        name = runs[0].recipe.name
        others = "none,A,B" if name == NONE else f"{NONE},{name}"
        logger.warning(f"the recipe {name} has nothing to be compared with; write, for example, --recipes={others}")
    if waiting:
        one = waiting[0].folder(workdir).with_suffix(".log")
        logger.info(f"training {len(waiting)} runs, {jobs} at a time; each has its log beside its folder, as {one}")
    running: dict[int, tuple[Training, ComparedRun, float]] = {}
    seconds: list[float] = []
    shown: set[str] = set()
    with exit_on_sigterm():
        try:
            while waiting or running:
                for slot in range(jobs):
                    if slot not in running and waiting:
                        run = waiting.pop(0)
                        own_cores = set(cores[slot::jobs])
                        training = _start(run, cores=own_cores, environ=accelerators[slot], workdir=workdir)
                        running[slot] = training, run, time.monotonic()
                time.sleep(0.2)
                for slot, (training, run, began) in list(running.items()):
                    if (status := training.poll()) is None:
                        continue
                    del running[slot]
                    if status:
                        raise ConfigError(f"{run} failed; the end of {training.log}: {training.last_line()}")
                    seconds.append(time.monotonic() - began)
                    for advice in training.advice():
                        if advice not in shown:  # mostly all runs of a recipe have the same
                            shown.add(advice)
                            logger.info(f"recipe {run.recipe.name}: {advice}")
                    left = len(waiting) + len(running)
                    eta = f"  ETA {duration(sum(seconds) / len(seconds) * left / jobs)}" if left else ""
                    logger.info(f"{total - left}/{total}  {run}  {duration(seconds[-1])}{eta}")
        finally:
            if running:
                logger.info(f"stopping {len(running)} of the runs; run the same command again to resume")
            Training.stop(training for training, *_ in running.values())


def is_finished(run: ComparedRun, *, workdir: Path) -> bool:
    """Whether the run has been trained to its end; reads a few small files.

    Raises:
        ConfigError: if it has, but with other settings.
    """
    folder = run.folder(workdir)
    if not (folder / "report.html").exists() or not (folder / "config.json").exists():
        return False
    stored, configured = Experiment.from_dict(read_config(folder)), run.experiment()
    if list_steps(folder, configured.checkpoint.directory)[-1:] != [configured.steps]:
        return False
    configured = dataclasses.replace(configured, model=take_resolved(configured.model, stored.model))
    if changes := differences(stored.to_dict(), configured.to_dict()):
        raise ConfigError(
            f"--workdir={workdir}: {folder} was trained with other settings ({'; '.join(changes)}); use another folder"
        )
    return True


def _start(run: ComparedRun, *, cores: set[int], environ: dict[str, str], workdir: Path) -> Training:
    folder = run.folder(workdir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{key}={value}" for key, value in run.overrides]
    arguments = [f"--config={run.recipe.spec}", f"--workdir={folder}", *overrides]
    return Training(arguments, log=folder.with_suffix(".log"), cores=cores, environ=environ)
