"""Evaluate a checkpoint.

Runs evaluators on a checkpoint of a run folder and prints their metrics. Several processes share the work.
"""

from __future__ import annotations

import argparse

from mmjax.commands.common import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_checkpoint(parser)
    parser.add_argument("--split", metavar="A,B", help="the splits to evaluate on (default: eval.final_splits)")
    parser.add_argument("--tasks", metavar="A,B", help="the evaluators to run (default: eval.final_tasks)")
    options.add_json(parser)
    options.add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the metrics; of several processes the first does."""
    workdir, step = options.local_workdir(args), options.checkpoint_step(args)
    tasks, splits = options.split_csv(args.tasks), options.split_csv(args.split)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.parallel import collectives, distributed
    from mmjax.train import evaluation

    with distributed.join(**options.processes(args)):
        metrics = evaluation.evaluate_run(workdir, checkpoint=step, tasks=tasks or None, splits=splits)
        first = collectives.is_main_process()
    if not first:
        return 0
    if args.json:
        options.print_json(metrics, indent=None)
    else:
        width = max(map(len, metrics))
        for name, value in metrics.items():
            print(f"{name:{width}}  {value:.4g}")
    return 0
