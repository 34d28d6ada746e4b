"""Make or choose training data with other models, by a recipe.

Reads any source, lets the recipe's models caption, rewrite, edit, score and filter, and writes records to DIR, which
data.source.name=generated reads for training. The same command again continues after a kill, and the records have the
same bytes as without one. Splits for tests are refused. --dry-run prints the stages, the models and how many requests
they will get.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.commands.common import data_source, options
from mmjax.core.config import ConfigError, Ge

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGS]",
        help="a recipe's file, or the name of a shipped one, as alia:backend=hf; --config.KEY=VALUE overrides any key",
    )  # fmt: skip
    parser.add_argument(
        "--input",
        metavar="PATH",
        help="the data: a file, folder, glob, {0..9} or a::b; or a source without files, scenes",
    )
    parser.add_argument("--source", metavar="NAME", help="how it is read (default: auto, which looks at the input)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="a further option of the source; repeatable"
    )
    parser.add_argument(
        "--split", default="train", metavar="A,B", help="one or several splits (default: train); none for tests"
    )
    parser.add_argument("--output", metavar="DIR", help="the folder of records")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each split")
    parser.add_argument(
        "--engine", default="local", metavar="NAME", help="where shards are made: local or ray (default: local)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Makes what is missing; status 1: no record is kept."""
    options.check_ranges(args, limit=Ge(1))
    if args.output is None and not args.dry_run:
        raise ConfigError("--output is missing: name a folder for the records, or give --dry-run")
    from mmjax.config_file import load_config
    from mmjax.core import plugins
    from mmjax.data.preparing.progress import Counter
    from mmjax.generate import summary
    from mmjax.generate.inputs import Inputs
    from mmjax.generate.job import Job, check_inputs
    from mmjax.generate.recipe import make_recipe

    recipe = make_recipe(load_config(args.config, args.overrides, folder="generate"))
    engine = plugins.load_class("mmjax.generate.engines", "run", args.engine, path="--engine")
    args.overrides, args.path = [], args.input
    if args.source is None and args.input in plugins.names("mmjax.data.sources") and not Path(args.input).exists():
        args.source, args.path = args.input, None
    section = data_source.with_absolute_path(data_source.source_section(args))
    splits = options.split_csv(args.split)
    inputs = Inputs(section, splits=splits, limit=args.limit)
    check_inputs(recipe, inputs)
    if args.dry_run:
        options.print_result(summary.forecast(recipe, len(inputs)), summary.forecast_text, as_json=args.json)
        return 0
    asked = {"source": section, "split": list(splits), "limit": args.limit}
    job = Job(recipe, inputs, Path(args.output).expanduser(), asked)

    @contextlib.contextmanager
    def count(text: str, total: int, already: int) -> Iterator[Any]:
        logger.info(text)
        with Counter(total, unit="examples", already=already) as counter:
            yield counter

    job.run(engine, count=count)
    result = summary.summarize(job)
    options.print_result(result, summary.text, as_json=args.json)
    return 0 if result["kept"] else 1
