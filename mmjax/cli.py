"""The ``mmjax`` command: one short function for each subcommand. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax import __version__
from mmjax.config import ConfigError, nearest

CACHE = "~/.cache/mmjax/compiled"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0 is success, 1 a run that failed, 2 a command or setting that cannot be used."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        overrides = _overrides(rest, options)
        return options.run(options, overrides)
    except ConfigError as error:
        print(f"mmjax {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away, as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def train(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains to the end, or from the last checkpoint of the folder on."""
    print(f"mmjax {__version__}: {options.config} in {options.workdir}", flush=True)
    _prepare_jax()
    from mmjax.train import experiment, loop

    settings = experiment.Experiment.of(experiment.read(options.config, overrides))
    try:
        loop.train(settings, workdir=options.workdir, overrides=[f"{k}={v}" for k, v in overrides])
    except loop.Diverged as error:
        print(f"mmjax train: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Measures a checkpoint of a run folder."""
    _prepare_jax()
    from mmjax.train import evaluate as evaluation

    metrics = evaluation.of_run(
        options.workdir, which=_which(options.step), tasks=_words(options.tasks), split=options.split
    )
    if options.json:
        print(json.dumps(metrics))
    else:
        width = max(map(len, metrics))
        for name, value in metrics.items():
            print(f"{name:{width}}  {value:.4g}")
    return 0


def inspect(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Says what a checkpoint holds, down to a fingerprint of its parameters."""
    _prepare_jax()
    from mmjax.train import inspection

    facts = inspection.describe(options.workdir, which=_which(options.step))
    print(json.dumps(facts, indent=2) if options.json else inspection.table(facts))
    return 0


def bench_step(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Times the compiled training step of one or several augmentations in one process."""
    _prepare_jax()
    from mmjax.train import bench, experiment

    sections = experiment.read(options.config, overrides)
    rows = bench.steps(sections, augmentations=_words(options.augment), repeats=options.repeats)
    print(json.dumps(rows, indent=2) if options.json else bench.table(rows))
    return 0


def compare(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains variants over paired seeds and prints what their differences are worth."""
    _prepare_jax()
    from mmjax.train import compare as comparison

    if options.seeds < 1:
        raise ConfigError(f"--seeds={options.seeds}: must be at least 1; 2 or more give a spread")
    made = comparison.variants(options.config, overrides, augment=_words(options.augment) or (), extra=options.variant)
    seeds, workdir = range(options.first_seed, options.first_seed + options.seeds), Path(options.workdir)
    comparison.run(made, seeds=seeds, jobs=options.jobs, workdir=workdir)
    metrics = _words(options.metrics) or ()
    rows = comparison.results(made, seeds=seeds, workdir=workdir, metrics=metrics)
    print(json.dumps(rows, indent=2) if options.json else comparison.table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmjax", description="Trains and evaluates CLIP-like image-text models.")
    parser.add_argument("--version", action="version", version=f"mmjax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = _command(
        commands, "train", train, "train a model, or go on with a run that was stopped",
        "Trains the experiment of a config file. The same command again goes on from the last checkpoint in DIR. "
        "SIGTERM or Ctrl-C saves first.",
    )  # fmt: skip
    _add_config(command)
    command.add_argument("--workdir", required=True, metavar="DIR", help="the run folder; made if it is not there")

    command = _command(
        commands, "eval", evaluate, "measure a checkpoint",
        "Runs evaluators on a checkpoint of a run folder and prints their metrics.",
    )  # fmt: skip
    _add_checkpoint(command)
    command.add_argument("--split", metavar="NAME", help="the split to measure on (default: eval.final_split)")
    command.add_argument("--tasks", metavar="A,B", help="the evaluators to run (default: eval.final_tasks)")

    command = _command(
        commands, "inspect", inspect, "say what a checkpoint holds",
        "Prints a checkpoint's step, its parameters by module, their bytes, and one SHA-256 over all of them.",
    )  # fmt: skip
    _add_checkpoint(command)

    command = _command(
        commands, "compare", compare, "train variants over paired seeds and compare them",
        "Trains each variant with the same seeds, several runs at a time with their own cores, and prints mean, spread "
        "and paired differences with 95 % intervals. The same command again goes on where it was stopped.",
    )  # fmt: skip
    _add_config(command)
    command.add_argument("--workdir", required=True, metavar="DIR", help="the folder of all runs")
    command.add_argument("--augment", metavar="A,B+C", help="augmentations, a variant each; the first is the baseline")
    command.add_argument(
        "--variant", action="append", default=[], metavar="NAME:KEY=VALUE;…", help="a variant by overrides; repeatable"
    )
    command.add_argument("--seeds", type=int, default=8, metavar="N", help="seeds for each variant (default: 8)")
    command.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    command.add_argument(
        "--metrics", default="test/rsum,test/pairwise/replace_shape,test/pairwise/replace_relation", metavar="A,B",
        help="the final metrics to compare (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("bench", help="measure speed and memory", description="Measures speed and memory.")
    command.set_defaults(command="bench")
    benches = command.add_subparsers(dest="bench", metavar="WHAT", required=True)
    command = _command(
        benches, "step", bench_step, "time the compiled training step",
        "Prints step time, examples a second, FLOPs, and memory of the compiled step, with the ratio to the first row.",
    )  # fmt: skip
    command.set_defaults(command="bench step")
    _add_config(command)
    command.add_argument(
        "--augment", metavar="A,B+C", help="augmentations to compare, one row each (default: the config's)"
    )
    command.add_argument("--repeats", type=int, default=10, metavar="N", help="timed steps of each row (default: 10)")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=description)
    command.set_defaults(run=run)
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", required=True, metavar="FILE[:ARGS]",
        help="a config file with its arguments; --config.KEY=VALUE overrides any key, as --config.batch_size=128",
    )  # fmt: skip
    command.set_defaults(overridable=True)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", required=True, metavar="DIR", help="a run folder")
    command.add_argument("--step", default="last", metavar="N", help="a checkpoint's step, 'last' (default) or 'best'")
    command.add_argument("--json", action="store_true", help="print JSON")


def _overrides(words: Sequence[str], options: argparse.Namespace) -> list[tuple[str, str]]:
    found = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not (word.startswith("--config.") and getattr(options, "overridable", False)):
            flags = [f"--{name}" for name in vars(options) if name not in ("run", "command", "bench", "overridable")]
            raise ConfigError(f"{word}: no such option; {nearest(word.partition('=')[0], flags)}")
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{word}: has no value; write {word}=VALUE")
            value = rest.pop(0)
        found.append((key, value))
    return found


def _which(step: str) -> Any:
    if step in ("last", "best"):
        return step
    if not step.isdigit():
        raise ConfigError(f"--step={step}: expected a number, 'last' or 'best'")
    return int(step)


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(text.split(","))


def _prepare_jax() -> None:
    """Keeps compiled programs between runs: most of a small run's start-up is compilation."""
    import logging

    import jax

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of settings that we chose on purpose
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
