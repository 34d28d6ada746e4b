"""Time reading, decoding, transforms and whole batches.

Prints examples a second for ever more of the work, where the time goes, and whether training would wait.
"""

from __future__ import annotations

import argparse

from mmjax.commands.common import data_source, options
from mmjax.core.config import Ge, Gt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    data_source.add_source(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the config's, or 64")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="time for each number (default: 5)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the config's)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the config's, or one a core")
    parser.add_argument("--autotune", action="store_true", help="find the best workers and threads first")
    parser.add_argument("--step-ms", type=float, metavar="MS", help="duration of a training step")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the throughput of a source."""
    options.check_ranges(args, seconds=Gt(0), step_ms=Gt(0), batch_size=Ge(1), workers=Ge(0), threads=Ge(1))
    experiment = data_source.load_experiment(args)
    from mmjax.commands.common.split_inspector import SplitInspector
    from mmjax.data import autotune
    from mmjax.data.inspecting import throughput

    split = SplitInspector(experiment, args.split, batch_size=args.batch_size)
    workers = split.workers if args.workers is None else args.workers
    threads = split.threads if args.threads is None else args.threads
    cores = options.available_cores()
    if args.autotune:
        workers, threads = autotune.tune(split.batches, cores=cores)
    summary = throughput.measure(
        split.source, split.batches, evaluation=split.eval_transforms, training=split.train_transforms,
        geometry=split.crop_transforms,
        tokenizer=split.tokenizer, batch_size=split.batch_size, workers=workers, threads=threads, cores=cores,
        seconds=args.seconds,
    )  # fmt: skip
    options.print_result(summary, lambda summary: throughput.text(summary, step_ms=args.step_ms), as_json=args.json)
    return 0
