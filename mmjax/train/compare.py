"""Variants of one experiment over paired seeds: trains them side by side and says what differences are worth."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mmjax import experiment
from mmjax.core.config import ConfigError, choose
from mmjax.runs.console import duration
from mmjax.runs.metrics_file import read_metrics

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One column of a comparison: a config file with its arguments, and overrides."""

    name: str
    spec: str
    overrides: tuple[tuple[str, str], ...] = ()


def variants(
    spec: str, overrides: Sequence[tuple[str, str]], *, augment: Sequence[str], extra: Sequence[str]
) -> list[Variant]:
    """One variant for each augmentation (the config's own if none is named), then those of ``NAME:KEY=VALUE;…``."""
    path, _, arguments = spec.partition(":")
    common = tuple(overrides)
    made = [
        Variant(name=name, spec=f"{path}:{','.join(filter(None, (arguments, f'augment={name}')))}", overrides=common)
        for name in augment
    ] or [Variant(name="baseline", spec=spec, overrides=common)]
    for text in extra:
        name, colon, settings = text.partition(":")
        pairs = [part.partition("=") for part in settings.split(";") if part]
        if not colon or not pairs or any(not equals for _, equals, _ in pairs):
            raise ConfigError(f"--variant={text!r}: expected NAME:KEY=VALUE[;KEY=VALUE]")
        made.append(
            Variant(
                name=name.strip(),
                spec=made[0].spec,
                overrides=(*common, *((key.strip(), value.strip()) for key, _, value in pairs)),
            )
        )
    if len({variant.name for variant in made}) < len(made):
        raise ConfigError(f"--variant: two variants share a name ({', '.join(v.name for v in made)})")
    for variant in made:  # a mistake in the last one should not come out after hours
        experiment.Experiment.from_dict(experiment.load_config(variant.spec, variant.overrides))
    return made


def run(made: Sequence[Variant], *, seeds: Sequence[int], jobs: int, workdir: Path) -> None:
    """Trains every variant with every seed, ``jobs`` at a time, each on its share of the cores.

    A run that is already finished is left alone and one that was stopped goes on, so the same command continues.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 <= jobs <= max(len(cores), 1):
        raise ConfigError(f"--jobs={jobs}: must be from 1 to the number of cores, {max(len(cores), 1)}")
    shares = [set(cores[i::jobs]) for i in range(jobs)]
    # Seeds first: a comparison that is stopped early has whole pairs.
    waiting = [(variant, seed) for seed in seeds for variant in made]
    running: dict[int, tuple[subprocess.Popen, Variant, int, float]] = {}
    total, done = len(waiting), 0
    try:
        while waiting or running:
            for slot in range(jobs):
                if slot not in running and waiting:
                    variant, seed = waiting.pop(0)
                    process = _start(variant, seed, cores=shares[slot], workdir=workdir)
                    running[slot] = process, variant, seed, time.monotonic()
            time.sleep(0.2)
            for slot, (process, variant, seed, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                done += 1
                log = run_folder(workdir, variant, seed).with_suffix(".log")
                if process.returncode:
                    raise ConfigError(f"{variant.name} with seed {seed} failed; the end of {log}: {_tail(log)}")
                print(f"{done}/{total}  {variant.name} seed {seed}  {duration(time.monotonic() - began)}", flush=True)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()


def results(
    made: Sequence[Variant], *, seeds: Sequence[int], workdir: Path, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """For each variant and metric: mean, standard deviation, and the paired difference to the first variant."""
    known = _final(workdir, made[0], seeds[0])
    for metric in metrics:
        choose(metric, known, path="--metrics")
    values = {
        variant.name: np.array([[_final(workdir, variant, seed)[m] for m in metrics] for seed in seeds])
        for variant in made
    }
    rows = []
    for variant in made:
        for i, metric in enumerate(metrics):
            mine, base = values[variant.name][:, i], values[made[0].name][:, i]
            row = {"variant": variant.name, "metric": metric, "values": mine.tolist()} | spread(mine)
            if variant is not made[0]:
                row["difference"] = spread(mine - base)
            rows.append(row)
    return rows


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and the half-width of the mean's 95 % confidence interval (Student's t)."""
    n = len(values)
    sd = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / np.sqrt(n) if n > 1 else float("nan")
    return {"n": n, "mean": float(np.mean(values)), "sd": sd, "half_width": float(half)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``results`` as a Markdown table."""
    lines = ["| variant | metric | n | mean ± sd | paired difference [95 % interval] |", "|---|---|---|---|---|"]
    for row in rows:
        difference = "baseline"
        if "difference" in row:
            d = row["difference"]
            low, high = d["mean"] - d["half_width"], d["mean"] + d["half_width"]
            difference = f"{d['mean']:+.4g} [{low:+.4g}, {high:+.4g}]"
        lines.append(
            f"| {row['variant']} | {row['metric']} | {row['n']} | {row['mean']:.4g} ± {row['sd']:.3g} | {difference} |"
        )
    return "\n".join(lines)


def run_folder(workdir: Path, variant: Variant, seed: int) -> Path:
    """Where one run of a comparison lives."""
    return workdir / variant.name / f"seed{seed}"


def _start(variant: Variant, seed: int, *, cores: set[int], workdir: Path) -> subprocess.Popen:
    folder = run_folder(workdir, variant, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [f"--config.{key}={value}" for key, value in (*variant.overrides, ("seed", str(seed)))]
    with open(folder.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmjax", "train", f"--config={variant.spec}", f"--workdir={folder}", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if cores:
        os.sched_setaffinity(process.pid, cores)
    return process


def _final(workdir: Path, variant: Variant, seed: int) -> dict[str, float]:
    folder = run_folder(workdir, variant, seed)
    finished = [line for line in read_metrics(folder) if "final/weights_of_step" in line]
    if not finished:
        raise ConfigError(f"{folder}: holds no finished run")
    return finished[-1]


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])
