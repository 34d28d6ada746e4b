"""The flags that ``mmjax embed`` and ``mmjax score`` share."""

from __future__ import annotations

import argparse

from mmjax.commands.common import data_source, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the model, the data and the work."""
    parser.add_argument("--model", required=True, metavar="SPEC", help="a run folder, or weights of others")
    data_source.add_source(parser, modalities=False)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="the size of batches (default: 64)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"),
        help="of matrix products (default: that of the run; float32 for weights of others)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-rows", type=int, default=8192, metavar="N",
        help="examples of a shard, which is what a kill loses at most (default: 8192)",
    )  # fmt: skip
    parser.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="FRACTION",
        help="the status is 1 where more than this fraction was left out (default: 0.01)",
    )  # fmt: skip
    options.add_json(parser)
    options.add_processes(parser)
