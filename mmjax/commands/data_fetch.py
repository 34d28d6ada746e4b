"""Fetch an open data set and build it: emoji, real pictures with names that people wrote.

Gets packages at fixed versions through the npm client (164 MB for all styles), or takes them from --packages, and
writes pictures and tables that every other command reads. Prints the licenses, and writes them beside the data. The
same command continues after a kill.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmjax.commands.common import options
from mmjax.core.config import Between

DATA_SETS = ("emoji",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("data_set", choices=DATA_SETS, metavar="NAME", help="emoji")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder of the data set")
    parser.add_argument(
        "--packages", metavar="DIR",
        help="a folder of packages (.tgz, as npm pack writes them); what is missing is fetched into it, and stays",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", default="openmoji", metavar="STYLE", help="the style that training never sees (default: openmoji)"
    )
    parser.add_argument(
        "--styles", default="google,twitter,openmoji,fluent_flat,fluent_3d", metavar="A,B",
        help="the styles to use (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--size", type=int, default=64, metavar="N", help="pixels of a side (default: 64)")
    parser.add_argument(
        "--locales", default="de,zh,fr,ja", metavar="A,B", help="further languages of names (default: %(default)s)"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the data set and prints its summary."""
    options.check_ranges(args, size=Between(8, 512))
    from mmjax.data.fetching import emoji

    output = Path(args.output)
    summary = emoji.fetch(
        output,
        held_out=args.held_out,
        styles=options.split_csv(args.styles),
        size=args.size,
        locales=options.split_csv(args.locales or None),
        package_folder=Path(args.packages) if args.packages else None,
        workers=options.available_cores(),
    )
    options.print_result(summary, lambda summary: emoji.text(summary, output), as_json=args.json)
    return 0
