"""Variants of an experiment: trained with the same seeds, and compared."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from mmjax.checkpoints.location import list_steps
from mmjax.commands.common.trainings import Training, exit_on_sigterm
from mmjax.config_file import load_config
from mmjax.core.config import ConfigError, choose
from mmjax.core.locks import find_owner
from mmjax.evals.common.metric_names import check_metric
from mmjax.experiment import Experiment
from mmjax.models.config import take_resolved
from mmjax.runs.console import duration
from mmjax.runs.folder import LOCK, differences, read_config
from mmjax.runs.metrics_file import read_metrics

CONFIDENCE = 0.95
DEFAULT_METRICS = ("rsum", "acc@1", "macro", "group_score")
"""The last parts of the metrics that are compared if none is named: one of each evaluator."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One experiment of a comparison: a config file with its arguments, and overrides."""

    name: str
    spec: str
    overrides: tuple[tuple[str, str], ...] = ()

    def experiment(self, *further: tuple[str, str]) -> Experiment:
        """The checked experiment, with further overrides."""
        return Experiment.from_dict(load_config(self.spec, (*self.overrides, *further)))


def make_variants(
    spec: str, overrides: Sequence[tuple[str, str]], *, augment: Sequence[str], variants: Sequence[str]
) -> list[Variant]:
    """One variant for each augmentation (the config's own if none is named), then those of ``variants``.

    Args:
        spec: A config file with its arguments.
        overrides: Pairs of key and value that hold for all variants.
        augment: Values of the config file's argument ``augment``.
        variants: ``NAME:KEY=VALUE;…``: overrides of one variant.
    """
    path, _, arguments = spec.partition(":")
    common = tuple(overrides)
    result = [
        Variant(name=name, spec=f"{path}:{','.join(filter(None, (arguments, f'augment={name}')))}", overrides=common)
        for name in augment
    ] or [Variant(name="baseline", spec=spec, overrides=common)]
    for text in variants:
        name, colon, assignments = text.partition(":")
        pairs = [assignment.partition("=") for assignment in assignments.split(";") if assignment]
        if not colon or not pairs or any(not equals for _, equals, _ in pairs):
            raise ConfigError(f"--variant={text!r}: expected NAME:KEY=VALUE[;KEY=VALUE]")
        own = tuple((key.strip(), value.strip()) for key, _, value in pairs)
        result.append(Variant(name=name.strip(), spec=result[0].spec, overrides=(*common, *own)))
    for variant in result:
        if not variant.name or "/" in variant.name or variant.name.startswith("."):
            raise ConfigError(f"--variant={variant.name!r}: is no name of a folder; use another one before the colon")
    if len({variant.name for variant in result}) < len(result):
        raise ConfigError(f"--variant: two variants share a name ({', '.join(v.name for v in result)})")
    return result


def check(variants: Sequence[Variant], *, seeds: Sequence[int], metrics: Sequence[str]) -> None:
    """Raises ConfigError if a variant is no experiment or cannot give a metric: before any has trained."""
    for variant in variants:
        config = variant.experiment(("seed", str(seeds[-1]))).eval
        for metric in metrics:
            check_metric(metric, tasks=config.final_tasks, splits=config.final_splits, path="--metrics")


def train_all(variants: Sequence[Variant], *, seeds: Sequence[int], jobs: int, workdir: Path) -> None:
    """Trains every variant with every seed, ``jobs`` at a time, each on its own cores.

    Finished runs are left alone and stopped ones resumed.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 <= jobs <= max(len(cores), 1):
        raise ConfigError(f"--jobs={jobs}: must be from 1 to the number of cores, {max(len(cores), 1)}")
    # Seeds first, so that a comparison that is stopped early has whole pairs.
    waiting = [(variant, seed) for seed in seeds for variant in variants]
    total = len(waiting)
    for variant, seed in waiting:
        if owner := find_owner((folder := run_folder(workdir, variant, seed)) / LOCK):
            raise ConfigError(
                f"--workdir={workdir}: process {owner} still trains {folder}, perhaps for a command that has ended; "
                "wait for it, or stop it"
            )
    waiting = [pair for pair in waiting if not is_finished(*pair, workdir=workdir)]
    if len(waiting) < total:
        logger.info(f"{total - len(waiting)} of {total} runs are finished already")
    running: dict[int, tuple[Training, Variant, int, float]] = {}
    with exit_on_sigterm():
        try:
            while waiting or running:
                for slot in range(jobs):
                    if slot not in running and waiting:
                        variant, seed = waiting.pop(0)
                        training = _start(variant, seed, cores=set(cores[slot::jobs]), workdir=workdir)
                        running[slot] = training, variant, seed, time.monotonic()
                time.sleep(0.2)
                for slot, (training, variant, seed, began) in list(running.items()):
                    if (status := training.poll()) is None:
                        continue
                    del running[slot]
                    if status:
                        raise ConfigError(
                            f"{variant.name} with seed {seed} failed; the end of {training.log}: {training.last_line()}"
                        )
                    done = total - len(waiting) - len(running)
                    seconds = duration(time.monotonic() - began)
                    logger.info(f"{done}/{total}  {variant.name} seed {seed}  {seconds}")
        finally:
            if running:
                logger.info(f"stopping {len(running)} of the runs; run the same command again to resume")
            Training.stop(training for training, *_ in running.values())


def compare(
    variants: Sequence[Variant], *, seeds: Sequence[int], workdir: Path, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """For each variant and metric: mean, standard deviation, and the paired difference to the first variant."""
    final = {(v.name, seed): _final_metrics(workdir, v, seed) for v in variants for seed in seeds}
    shared = set.intersection(*(set(measured) for measured in final.values()))
    known = [name for name in final[variants[0].name, seeds[0]] if name in shared]
    metrics = metrics or [name for name in known if name.rpartition("/")[2] in DEFAULT_METRICS]
    for metric in metrics:
        choose(metric, known, path="--metrics")
    values = {v.name: np.array([[final[v.name, seed][m] for m in metrics] for seed in seeds]) for v in variants}
    rows = []
    for variant in variants:
        for i, metric in enumerate(metrics):
            own, baseline = values[variant.name][:, i], values[variants[0].name][:, i]
            row = {"variant": variant.name, "metric": metric, "values": own.tolist()} | mean_interval(own)
            if variant is not variants[0]:
                row["difference"] = mean_interval(own - baseline)
            rows.append(row)
    return rows


def mean_interval(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and the half-width of the mean's 95 % confidence interval (Student's t)."""
    n = len(values)
    sd = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / np.sqrt(n) if n > 1 else float("nan")
    return {"n": n, "mean": float(np.mean(values)), "sd": sd, "half_width": float(half)}


def run_folder(workdir: Path, variant: Variant, seed: int) -> Path:
    """The run folder of one variant and seed."""
    return workdir / variant.name / f"seed{seed}"


def is_finished(variant: Variant, seed: int, *, workdir: Path) -> bool:
    """Whether the run has been trained to its end; reads a few small files.

    Raises:
        ConfigError: if it has, but with other settings.
    """
    folder = run_folder(workdir, variant, seed)
    if not (folder / "report.html").exists() or not (folder / "config.json").exists():
        return False
    stored, configured = Experiment.from_dict(read_config(folder)), variant.experiment(("seed", str(seed)))
    if list_steps(folder, configured.checkpoint.directory)[-1:] != [configured.steps]:
        return False
    configured = dataclasses.replace(configured, model=take_resolved(configured.model, stored.model))
    if changes := differences(stored.to_dict(), configured.to_dict()):
        raise ConfigError(
            f"--workdir={workdir}: {folder} was trained with other settings ({'; '.join(changes)}); use another folder"
        )
    return True


def _start(variant: Variant, seed: int, *, cores: set[int], workdir: Path) -> Training:
    folder = run_folder(workdir, variant, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{key}={value}" for key, value in (*variant.overrides, ("seed", str(seed)))]
    arguments = [f"--config={variant.spec}", f"--workdir={folder}", *overrides]
    return Training(arguments, log=folder.with_suffix(".log"), cores=cores)


def _final_metrics(workdir: Path, variant: Variant, seed: int) -> dict[str, float]:
    folder = run_folder(workdir, variant, seed)
    finished = [line for line in read_metrics(folder) if "final/weights_of_step" in line]
    if not finished:
        raise ConfigError(f"{folder}: holds no finished run")
    return finished[-1]
