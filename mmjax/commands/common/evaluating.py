"""What ``mmjax eval`` measures: a model on the data that its flags name."""

from __future__ import annotations

import argparse
import logging
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.commands.common import data_source, options
from mmjax.commands.common.trained_model import TrainedModel, open_checkpoint, open_model
from mmjax.core import plugins
from mmjax.core.config import ConfigError, Ge, literal
from mmjax.core.printable import printable
from mmjax.data.open_source import open_source
from mmjax.data.preparing.progress import Counter
from mmjax.evals.common.metric_names import FOLDER
from mmjax.evals.common.result_tables import make_tables
from mmjax.evals.common.results import Result, ResultsFile, make_results
from mmjax.evals.common.suite import DataSet, check_options, check_same_everywhere, find_suite, one_line
from mmjax.evals.common.suite import measure as measure_all
from mmjax.experiment import EvalConfig, Experiment
from mmjax.parallel import collectives
from mmjax.runs import folder as run_folder
from mmjax.runs.start_weights import find_run

logger = logging.getLogger(__name__)


def check_flags(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that do not go together, before anything is loaded."""
    options.check_ranges(args, batch_size=Ge(1))
    if args.model is not None and args.step != "last":
        raise ConfigError(f"--step={args.step}: goes with --workdir; write --model={args.model}@{args.step}")
    named = args.path or args.source or args.tasks or args.split
    config = _config_of_run(args)
    args.with_own = args.suite is None and args.root is None and not named and bool(config.suite)
    if args.with_own or args.suite is not None or args.root is not None:
        args.suite, args.root = args.suite or ",".join(config.suite) or None, args.root or config.root
    if (args.suite is None) != (args.root is None):
        flag, other = ("--suite", "--root=DIR") if args.root is None else ("--root", "--suite=NAMES or --suite=all")
        raise ConfigError(f"{flag}={args.suite or args.root}: goes with {other}; give both")
    if args.suite is not None and named:
        raise ConfigError(f"--suite={args.suite}: goes without --path, --source, --tasks and --split; leave these out")
    if args.root is not None and not os.path.isdir(args.root):
        raise ConfigError(f"--root={args.root}: no such folder; name the one in which the benchmarks lie")
    for task in options.split_csv(args.tasks):
        plugins.check(FOLDER, task, path="--tasks")
    source_options, evaluator_options = split_options(args.option)
    check_options(evaluator_options, path="--option")
    if source_options and args.path is None and args.source is None:
        raise ConfigError(f"--option {source_options[0]}: is of a source; give --path, or write EVALUATOR.KEY=VALUE")


def measure(args: argparse.Namespace) -> tuple[list[Result], int]:
    """The results, and how many data sets could not be measured; results of the file are taken from there.

    Raises:
        ConfigError: if nothing could be measured.
    """
    _, evaluator_options = split_options(args.option)
    model = _open(args, evaluator_options)
    data_sets = _data_sets(args, model, evaluator_options)
    file = ResultsFile(Path(args.output)) if args.output else None
    if file and collectives.is_main_process():
        file.prepare()
    weights = model.fingerprint() if file else ""
    there = {number: file.find(data_set, weights=weights) for number, data_set in enumerate(data_sets)} if file else {}
    # Process 0 writes the file, and others may not see it; all must measure the same data sets.
    done = {number: there[number] for number in collectives.all_gather([n for n in there if there[n]])[0]}
    if done:
        logger.info("%d of %d data sets are in %s already", len(done), len(data_sets), args.output)
    missing = [number for number in range(len(data_sets)) if number not in done]
    if collectives.is_main_process():
        model.evaluation.embedder.host_batch.progress = lambda total, unit: Counter(total, unit=unit)
    outcomes = measure_all([data_sets[number] for number in missing], make=model.make_evaluator, embedder=model.bind)
    failed: list[str] = []
    for number, outcome in zip(missing, outcomes, strict=True):
        data_set = outcome.data_set
        if outcome.error is not None:
            failed.append(one_line(outcome.error))
            if len(data_sets) > 1:  # of one alone it is the error of the command
                logger.warning("%s could not be measured by %s: %s", data_set.name, data_set.task, failed[-1])
            continue
        if len(data_sets) > 1:
            place = f"{len(done) + len(failed) + 1}/{len(data_sets)}"
            logger.info("%s  %s (%s): %.1f s", place, data_set.name, data_set.task, outcome.seconds)
        done[number] = make_results(data_set, outcome.metrics, model=model.name, weights=weights)
        if file and collectives.is_main_process():
            file.add(done[number])
    if failed and len(failed) == len(data_sets):
        raise ConfigError(failed[0])
    return [result for _, results in sorted(done.items()) for result in results], len(failed)


def print_table(args: argparse.Namespace, results: Sequence[Result], against: Sequence[Result]) -> None:
    """Prints results as a table, or as Markdown."""
    every = args.all_metrics or (args.suite is None and args.path is None)
    tables = make_tables(results, against=against, published=args.published, every=every)
    texts = [table.markdown() if args.markdown else table.text() for table in tables if table.rows]
    print(printable("\n\n".join(texts), lines=True))


def split_options(flags: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words of ``--option`` that are for the source, and the options of evaluators."""
    source: list[str] = []
    evaluators: dict[str, dict[str, Any]] = {}
    for word in flags:
        key, equals, value = word.partition("=")
        task, dot, name = key.rpartition(".")
        if not dot:
            source.append(word)
            continue
        if not equals:
            raise ConfigError(f"--option {word}: has no value; write EVALUATOR.KEY=VALUE")
        plugins.check(FOLDER, task, path="--option")
        evaluators.setdefault(task, {})[name] = literal(value)
    return source, evaluators


def _config_of_run(args: argparse.Namespace) -> EvalConfig:
    """The section ``eval`` of the run that is measured; its defaults for weights of others."""
    workdir = find_run(args.model) if args.workdir is None else options.local_workdir(args)
    return EvalConfig() if workdir is None else Experiment.from_dict(run_folder.read_config(workdir)).eval


def _open(args: argparse.Namespace, evaluator_options: dict[str, dict[str, Any]]) -> TrainedModel:
    if args.workdir is None:
        return open_model(args.model, options=evaluator_options, batch_size=args.batch_size)
    workdir, step = options.local_workdir(args), options.checkpoint_step(args)
    return open_checkpoint(workdir, step=step, options=evaluator_options, batch_size=args.batch_size)


def _data_sets(
    args: argparse.Namespace, model: TrainedModel, evaluator_options: dict[str, dict[str, Any]]
) -> list[DataSet]:
    tasks, splits = options.split_csv(args.tasks), options.split_csv(args.split)
    if args.suite is not None:
        defaults = {} if model.experiment is None else model.experiment.eval.options
        embedder = model.evaluation.embedder
        data_sets = find_suite(
            args.suite.split(","),
            args.root,
            evaluator_options,
            defaults=defaults,
            heads=embedder.heads,
            answers=embedder.answers,
        )
        check_same_everywhere(data_sets, path=f"--root={args.root}")
        return [*(model.own_data_sets(None, ()) if args.with_own else ()), *data_sets]
    if args.path is None and args.source is None:
        return model.own_data_sets(tasks or None, splits)
    args.option, _ = split_options(args.option)
    section = data_source.with_absolute_path(data_source.source_section(args))
    data_sets = []
    for split in splits or ("test",):
        fitting = _fitting_tasks(section, split) if splits or not tasks else []
        stem = posixpath.splitext(posixpath.basename((args.path or section["name"]).rstrip("/")))[0]
        for task in tasks or fitting:
            own = {**evaluator_options.get(task, {}), "split": split, "source": section}
            data_sets.append(DataSet(f"{stem}/{split}" if task == "retrieval" else f"{stem}/{split}/{task}", task, own))
    return data_sets


def _fitting_tasks(section: dict[str, Any], split: str) -> list[str]:
    """The evaluators for which a source has what they need."""
    source = open_source(section, split=split, path="--source")
    if source.ignores_split:
        where = section.get("path", section["name"])
        logger.info("%s has no splits: all of its %s examples are measured as %r", where, f"{len(source):,}", split)
    tasks = ["zeroshot"] if source.class_names else ["retrieval"]
    return tasks + (["pairwise"] if source.first_readable().get("negatives") else [])
