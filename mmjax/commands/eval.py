"""Evaluate a checkpoint.

Runs evaluators on a checkpoint of a run folder and prints their metrics. Several processes share the work.
"""

from __future__ import annotations

import argparse
import json

from mmjax.commands.common import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_checkpoint(parser)
    parser.add_argument("--split", metavar="NAME", help="the split to evaluate on (default: eval.final_split)")
    parser.add_argument("--tasks", metavar="A,B", help="the evaluators to run (default: eval.final_tasks)")
    options.add_json(parser)
    options.add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the metrics; of several processes the first does."""
    workdir, step, tasks = options.local_workdir(args), options.checkpoint_step(args), options.split_csv(args.tasks)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.parallel import collectives, distributed
    from mmjax.train import evaluation

    with distributed.join(**options.processes(args)):
        metrics = evaluation.evaluate_run(workdir, checkpoint=step, tasks=tasks or None, split=args.split)
        first = collectives.is_main_process()
    if not first:
        return 0
    if args.json:
        print(json.dumps(metrics))
    else:
        width = max(map(len, metrics))
        for name, value in metrics.items():
            print(f"{name:{width}}  {value:.4g}")
    return 0
