"""The ``mmjax`` command: one short function for each subcommand. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax import __version__, flags
from mmjax.core.config import ConfigError
from mmjax.runs import console

STOPPED_STATUS = "MMJAX_STOPPED_STATUS"
CACHE = "~/.cache/mmjax/compiled"
LARGEST_SHEET_BATCH = 1024  # of rows, of which a contact sheet shows a few


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0: success, 1: it failed, 2: a command or setting cannot be used, 130: Ctrl-C."""
    parser = flags.parser(COMMANDS)
    options, rest = parser.parse_known_args(argv)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    console.log_to_stderr()
    try:
        overrides = flags.overrides(rest, options)
        flags.check(options)
        return options.run(options, overrides)
    except ConfigError as error:
        print(f"mmjax {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmjax {options.command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def train(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains to the end, or from the last checkpoint of the folder on."""
    from mmjax.runs.timing import Clock

    clock = Clock()  # imports and the wait for other processes are a part of what a start costs
    profile = flags.profiled(options.profile)
    _prepare_jax()
    from mmjax import experiment
    from mmjax.checkpoints import orbax_errors
    from mmjax.data.sample import DataError
    from mmjax.parallel import collectives, distributed
    from mmjax.runs import unreadable_examples
    from mmjax.train import guard, loop

    try:
        with distributed.join(
            **flags.processes(options), shared_errors=(guard.Diverged, unreadable_examples.TooManyUnreadable)
        ):
            if collectives.is_main_process():
                print(f"mmjax {__version__}: {options.config} in {options.workdir}", flush=True)
            settings = experiment.Experiment.from_dict(experiment.load_config(options.config, overrides))
            outcome = loop.train(
                settings,
                workdir=options.workdir,
                overrides=[f"{k}={v}" for k, v in overrides],
                profile=profile,
                clock=clock,
            )
    except (guard.Diverged, DataError, orbax_errors.NotSaved) as error:
        print(f"mmjax train: {error}", file=sys.stderr)
        return 1
    return 0 if outcome.finished else _stopped_status()


def evaluate(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Measures a checkpoint of a run folder; of several processes, which share the work, one says what was found."""
    _prepare_jax()
    from mmjax.parallel import collectives, distributed
    from mmjax.train import evaluation as evaluation

    which, tasks = flags.which(options.step), flags.words(options.tasks)
    with distributed.join(**flags.processes(options)):
        metrics = evaluation.of_run(options.workdir, which=which, tasks=tasks, split=options.split)
        first = collectives.is_main_process()
    if not first:
        return 0
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

    facts = inspection.describe(options.workdir, which=flags.which(options.step))
    print(json.dumps(facts, indent=2) if options.json else inspection.table(facts))
    return 0


def compile_step(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Compiles the training step for a TPU slice that is not there; status 1: it would not fit."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs, so it takes no accelerator from what does
    jax.config.update("jax_enable_compilation_cache", False)  # programs for slices that are not there cannot be kept
    from mmjax import experiment
    from mmjax.planning import plan, plan_text
    from mmjax.program import topology as slices

    settings = experiment.Experiment.from_dict(experiment.load_config(options.config, overrides))
    topology = slices.topology(options.topology)
    make = plan.fit_batch if options.fit == "batch" else plan.of
    made = make(settings, topology)
    print(json.dumps(made, indent=2) if options.json else plan_text.text(made))
    return 0 if made["fits"] else 1


def bench_step(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Times the compiled training step of one or several augmentations in one process."""
    _prepare_jax()
    from mmjax import experiment
    from mmjax.train import bench

    sections = experiment.load_config(options.config, overrides)
    rows = bench.steps(sections, augmentations=flags.words(options.augment), repeats=options.repeats)
    print(json.dumps(rows, indent=2) if options.json else bench.table(rows))
    return 0


def compare(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains variants over paired seeds and prints what their differences are worth."""
    _prepare_jax()
    from mmjax.train import compare as comparison

    if options.seeds < 1:
        raise ConfigError(f"--seeds={options.seeds}: must be at least 1; 2 or more give a spread")
    made = comparison.variants(
        options.config, overrides, augment=flags.words(options.augment) or (), extra=options.variant
    )
    seeds, workdir = range(options.first_seed, options.first_seed + options.seeds), Path(options.workdir)
    comparison.run(made, seeds=seeds, jobs=options.jobs, workdir=workdir)
    metrics = flags.words(options.metrics) or ()
    rows = comparison.results(made, seeds=seeds, workdir=workdir, metrics=metrics)
    print(json.dumps(rows, indent=2) if options.json else comparison.table(rows))
    return 0


def data_prepare(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Turns a source into a TFDS data set of ArrayRecord shards."""
    from mmjax.data.preparing import prepare
    from mmjax.data.preparing.prepared import Folder
    from mmjax.data.preparing.reencoding import Reencoding

    if not 0 <= options.max_unreadable <= 1:
        raise ConfigError(f"--max-unreadable={options.max_unreadable}: a share; set it between 0 and 1")
    source, section = _source(options, overrides)
    summary = prepare.prepare(
        source,
        Folder(options.output, name=options.name or section["name"], version=options.version, split=options.split),
        asked={"source": section},
        reencoding=Reencoding(image_size=options.image_size, format=options.format, quality=options.quality),
        shards=options.shards,
        shard_mib=options.shard_mib,
        limit=options.limit,
        drop=flags.words(options.drop) or (),
        workers=_cores() if options.workers is None else options.workers,
        note=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(json.dumps(dataclasses.asdict(summary)) if options.json else prepare.text(summary))
    if summary.skipped_share > options.max_unreadable:
        print(
            f"mmjax data prepare: {summary.skipped_share:.2%} of the examples were left out, more than "
            f"--max-unreadable={options.max_unreadable:g}; see {summary.folder}/unreadable.jsonl",
            file=sys.stderr,
        )
        return 1
    return 0


def data_inspect(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Says what a source holds, and draws what the model sees of it."""
    from mmjax.data.inspecting import contact_sheet, survey
    from mmjax.data.preparing.planning import spread

    if options.examples != "all" and not (options.examples.isdigit() and int(options.examples)):
        raise ConfigError(f"--examples={options.examples}: expected a number, at least 1, or 'all'")
    if options.rows < 1:
        raise ConfigError(f"--rows={options.rows}: must be at least 1")
    view = _view(options, overrides, most=LARGEST_SHEET_BATCH)
    size = len(view.source)
    numbers = range(size) if options.examples == "all" else spread(size, int(options.examples))
    facts = survey.survey(view.source, tokenizer=view.tokenizer, numbers=numbers, threads=options.threads or _cores())
    print(json.dumps(facts, indent=2) if options.json else survey.text(facts))
    if options.sheet:
        sheet = contact_sheet.draw(
            contact_sheet.chosen(view.batches, view.tokenizer.decode, count=options.rows),
            title=f"{options.config or options.path or options.source}, {options.split}",
            subtitle=f"Transforms: {', '.join(view.training.names) or 'none'}",
        )
        contact_sheet.save(sheet, options.sheet)
        print(f"drew {options.sheet}", file=sys.stderr)
    return 0


def data_bench(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Times reading, decoding, transforms and whole batches."""
    from mmjax.data import autotune
    from mmjax.data.inspecting import throughput

    for name in ("seconds", "step_ms"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')}={value:g}: must be more than 0")
    view = _view(options, overrides, batch_size=options.batch_size)
    workers = view.workers if options.workers is None else options.workers
    threads = view.threads if options.threads is None else options.threads
    if workers < 0 or threads < 1:
        raise ConfigError(f"--workers={workers} --threads={threads}: must be at least 0 and 1")
    if options.autotune:
        workers, threads = autotune.tune(
            view.batches, cores=_cores(), note=lambda text: print(text, file=sys.stderr, flush=True)
        )
    facts = throughput.measure(
        view.source, view.batches, evaluation=view.evaluation, training=view.training, geometry=view.geometry,
        tokenizer=view.tokenizer, batch_size=view.batch_size, workers=workers, threads=threads, cores=_cores(),
        seconds=options.seconds,
    )  # fmt: skip
    print(json.dumps(facts, indent=2) if options.json else throughput.text(facts, step_ms=options.step_ms))
    return 0


def _source(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[Any, dict[str, Any]]:
    """The source that ``--config`` or ``--source`` names, and the section that says which it is."""
    if options.config:
        data = _experiment(options, overrides).data
        from mmjax.train import assemble, data_view

        return assemble.open_source(data, options.split), data_view.section(data, options.split)
    from mmjax.data.open_source import open_source

    section = flags.source(options, overrides)
    modalities = flags.words(options.modalities) or ("image",)
    return open_source(section, split=options.split, modalities=modalities, path="--source"), section


def _view(options: argparse.Namespace, overrides: list[tuple[str, str]], **sizes: int | None) -> Any:
    batch_size = sizes.get("batch_size")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size={batch_size}: must be at least 1")
    experiment = _experiment(options, overrides)
    from mmjax.train import data_view

    return data_view.View(experiment, options.split, **sizes)


def _experiment(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> Any:
    """The experiment of ``--config``, or a usual one on ``--source``; without accelerators."""
    import jax

    # Data needs none, and one that a training run uses has no memory left for us.
    jax.config.update("jax_platforms", "cpu")
    from mmjax import experiment

    if options.config:
        for name in ("path", "option", "modalities"):
            if getattr(options, name):
                raise ConfigError(f"--{name}: goes with --source; override the config with --config.data.source.KEY")
        return experiment.Experiment.from_dict(experiment.load_config(options.config, overrides))
    data = {"source": flags.source(options, overrides), "modalities": flags.words(options.modalities) or ("image",)}
    return experiment.Experiment.from_dict({"steps": 1, "batch_size": 64, "model": "ViT-B-32", "data": data})


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _stopped_status() -> int:
    """The exit status of a run that was asked to stop: 0, or what tells a launcher to start it again."""
    text = os.environ.get(STOPPED_STATUS, "0")
    if not (text.isascii() and text.isdigit() and int(text) < 128):
        raise ConfigError(f"{STOPPED_STATUS}={text}: must be from 0 to 127")
    return int(text)


def _prepare_jax() -> None:
    """Keeps compiled programs between runs: most of a small run's start-up is compilation."""
    import logging

    import jax

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of settings that we chose on purpose
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


COMMANDS: dict[str, flags.Run] = {
    "train": train,
    "eval": evaluate,
    "inspect": inspect,
    "compare": compare,
    "compile": compile_step,
    "bench step": bench_step,
    "data prepare": data_prepare,
    "data inspect": data_inspect,
    "data bench": data_bench,
}
