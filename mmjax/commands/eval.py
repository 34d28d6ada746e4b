"""Evaluate a model: a run's checkpoint, or anybody's CLIP, on a run's data, your own, or published benchmarks.

Without --path and --suite the data is that of the run. Of a folder of benchmarks (--root) the suite's data sets are
measured that are there; one that cannot be measured is reported, and the others go on. With --output the results go to
a file of JSON lines, and what is in it is not measured again. Several processes share the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmjax.commands.common import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", metavar="DIR", help="a run folder")
    model.add_argument("--model", metavar="SPEC", help="or a run folder, a folder or file of weights, or a hub name")
    parser.add_argument("--step", default="last", metavar="N", help="of --workdir: a step, 'last' (default) or 'best'")
    data = parser.add_argument_group("data")
    data.add_argument("--split", metavar="A,B", help="the splits (default: eval.final_splits; of --path: test)")
    data.add_argument("--tasks", metavar="A,B", help="the evaluators (default: eval.final_tasks; of --path: that fit)")
    data.add_argument("--path", metavar="PATH", help="other data: a file, folder, glob, {0..9} or a::b")
    data.add_argument("--source", metavar="NAME", help="the source that reads it (default: auto, which looks at PATH)")
    data.add_argument(
        "--suite",
        metavar="A,B",
        help="published benchmarks by their evaluators, or all; EVALUATOR:DATA_SET is one of them",
    )
    data.add_argument("--root", metavar="DIR", help="the folder in which the benchmarks lie")
    data.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="EVALUATOR.KEY=VALUE is an evaluator's option, KEY=VALUE one of the source of --path; repeatable",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: eval.batch_size, or 64")
    output = parser.add_argument_group("results")
    output.add_argument("--output", metavar="FILE", help="results as JSON lines, which are added; read at a restart")
    output.add_argument("--against", metavar="FILE", help="results to show differences to")
    output.add_argument("--published", action="store_true", help="show published results beside, marked as such")
    output.add_argument("--all-metrics", action="store_true", help="show all metrics of a suite or --path")
    output.add_argument("--markdown", action="store_true", help="print Markdown")
    options.add_json(output)
    options.add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the metrics; of several processes the first does. Status 1: a data set could not be measured."""
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.commands.common import evaluating
    from mmjax.evals.common.results import name_results, read_results, summarize
    from mmjax.parallel import collectives, distributed

    evaluating.check_flags(args)
    against = summarize(read_results(Path(args.against), flag="--against")) if args.against else []
    with distributed.join(**options.processes(args)):
        results, failed = evaluating.measure(args)
        results = summarize(results)
        first = collectives.is_main_process()
    if not first:
        return int(failed > 0)
    if args.json:
        values: Any = [result.value for result in results]
        options.print_json(dict(zip(name_results(results), values, strict=True)), indent=None)
    elif results:
        evaluating.print_table(args, results, against)
    return int(failed > 0)
