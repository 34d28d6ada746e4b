"""Train variants over paired seeds and compare them.

Trains each variant with the same seeds, several runs at a time with their own cores, and prints mean, spread and
paired differences with 95 % intervals. The same command again continues where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmjax.commands.common import options
from mmjax.core.config import ConfigError, Ge, choose

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One experiment of a comparison: a config file with its arguments, and overrides."""

    name: str
    spec: str
    overrides: tuple[tuple[str, str], ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of all runs")
    parser.add_argument("--augment", metavar="A,B+C", help="augmentations, a variant each; the first is the baseline")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:KEY=VALUE;…", help="a variant by overrides; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="seeds for each variant (default: 8)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--metrics", default="test/rsum,test/pairwise/replace_shape,test/pairwise/replace_relation", metavar="A,B",
        help="the final metrics to compare (default: %(default)s)",
    )  # fmt: skip
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Trains all variants, then prints the comparison."""
    options.check_ranges(args, seeds=Ge(1, "2 or more give a spread"))
    workdir = options.local_workdir(args)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    variants = make_variants(
        args.config, args.overrides, augment=options.split_csv(args.augment), variants=args.variant
    )
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    train_all(variants, seeds=seeds, jobs=args.jobs, workdir=workdir)
    rows = compare(variants, seeds=seeds, workdir=workdir, metrics=options.split_csv(args.metrics))
    print(json.dumps(rows, indent=2) if args.json else format_markdown(rows))
    return 0


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
    from mmjax.experiment import Experiment, load_config

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
    if len({variant.name for variant in result}) < len(result):
        raise ConfigError(f"--variant: two variants share a name ({', '.join(v.name for v in result)})")
    for variant in result:  # a mistake in the last variant must not wait until the others have trained
        Experiment.from_dict(load_config(variant.spec, variant.overrides))
    return result


def train_all(variants: Sequence[Variant], *, seeds: Sequence[int], jobs: int, workdir: Path) -> None:
    """Trains every variant with every seed, ``jobs`` at a time, each on its own cores.

    Finished runs are left alone and stopped ones resumed.
    """
    from mmjax.runs.console import duration

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 <= jobs <= max(len(cores), 1):
        raise ConfigError(f"--jobs={jobs}: must be from 1 to the number of cores, {max(len(cores), 1)}")
    cores_of_slot = [set(cores[i::jobs]) for i in range(jobs)]
    # Seeds first, so that a comparison that is stopped early has whole pairs.
    waiting = [(variant, seed) for seed in seeds for variant in variants]
    running: dict[int, tuple[subprocess.Popen, Variant, int, float]] = {}
    total, done = len(waiting), 0
    try:
        while waiting or running:
            for slot in range(jobs):
                if slot not in running and waiting:
                    variant, seed = waiting.pop(0)
                    process = _start(variant, seed, cores=cores_of_slot[slot], workdir=workdir)
                    running[slot] = process, variant, seed, time.monotonic()
            time.sleep(0.2)
            for slot, (process, variant, seed, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                done += 1
                log = run_folder(workdir, variant, seed).with_suffix(".log")
                if process.returncode:
                    raise ConfigError(f"{variant.name} with seed {seed} failed; the end of {log}: {_last_line(log)}")
                print(f"{done}/{total}  {variant.name} seed {seed}  {duration(time.monotonic() - began)}", flush=True)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()


def compare(
    variants: Sequence[Variant], *, seeds: Sequence[int], workdir: Path, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """For each variant and metric: mean, standard deviation, and the paired difference to the first variant."""
    import numpy as np

    known = _final_metrics(workdir, variants[0], seeds[0])
    for metric in metrics:
        choose(metric, known, path="--metrics")
    values = {
        variant.name: np.array([[_final_metrics(workdir, variant, seed)[m] for m in metrics] for seed in seeds])
        for variant in variants
    }
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
    import numpy as np
    from scipy import stats

    n = len(values)
    sd = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / np.sqrt(n) if n > 1 else float("nan")
    return {"n": n, "mean": float(np.mean(values)), "sd": sd, "half_width": float(half)}


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compare`` as a Markdown table."""
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
    """The run folder of one variant and seed."""
    return workdir / variant.name / f"seed{seed}"


def _start(variant: Variant, seed: int, *, cores: set[int], workdir: Path) -> subprocess.Popen:
    folder = run_folder(workdir, variant, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{key}={value}" for key, value in (*variant.overrides, ("seed", str(seed)))]
    with open(folder.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmjax", "train", f"--config={variant.spec}", f"--workdir={folder}", *overrides],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if cores:
        os.sched_setaffinity(process.pid, cores)
    return process


def _final_metrics(workdir: Path, variant: Variant, seed: int) -> dict[str, float]:
    from mmjax.runs.metrics_file import read_metrics

    folder = run_folder(workdir, variant, seed)
    finished = [line for line in read_metrics(folder) if "final/weights_of_step" in line]
    if not finished:
        raise ConfigError(f"{folder}: holds no finished run")
    return finished[-1]


def _last_line(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])
