"""Turn any source into a TFDS data set of ArrayRecord shards.

Writes DIR/NAME/VERSION in the layout of TensorFlow Datasets; reading it needs no TensorFlow. The same command again
after a kill writes what is missing; with another --split it adds that to the data set. Unreadable examples are left
out and listed in unreadable.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from mmjax.commands.common import data_source, options
from mmjax.core.config import Between, Ge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    data_source.add_source(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder of data sets")
    parser.add_argument("--name", metavar="NAME", help="name of the data set (default: the source's)")
    parser.add_argument("--version", default="1.0.0", metavar="X.Y.Z", help="version of the data set (default: 1.0.0)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shards", type=int, metavar="N", help="number of files")
    size.add_argument(
        "--shard-mib", type=int, default=256, metavar="N", help="or their approximate largest size (default: 256)"
    )
    parser.add_argument(
        "--image-size", type=int, default=0, metavar="N",
        help="shrink pictures until their shorter side is N pixels; none is enlarged (default: as they are)",
    )  # fmt: skip
    parser.add_argument(
        "--format", default="keep", metavar="F",
        help="jpeg, png or webp (default: keep, each its own; an unchanged picture keeps its bytes)",
    )  # fmt: skip
    parser.add_argument("--quality", type=int, default=90, metavar="N", help="quality of JPEG and WebP (default: 90)")
    parser.add_argument("--drop", metavar="A,B", help="fields that are not stored")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="FRACTION",
        help="the status is 1 where more than this fraction was left out (default: 0.01)",
    )  # fmt: skip
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prepares one split; status 1: too many examples were left out."""
    options.check_ranges(
        args, max_unreadable=Between(0, 1), shards=Ge(1), shard_mib=Ge(1), limit=Ge(1), workers=Ge(1)
    )  # fmt: skip
    from mmjax.data.preparing import prepare
    from mmjax.data.preparing.reencoding import Reencoding
    from mmjax.data.preparing.split_folder import SplitFolder

    source, section = data_source.open_source(args)
    summary = prepare.prepare(
        source,
        SplitFolder(args.output, name=args.name or section["name"], version=args.version, split=args.split),
        asked={"source": section},
        reencoding=Reencoding(image_size=args.image_size, format=args.format, quality=args.quality),
        shards=args.shards,
        shard_mib=args.shard_mib,
        limit=args.limit,
        drop=options.split_csv(args.drop),
        workers=args.workers or options.available_cores(),
    )
    if args.json:
        options.print_json(dataclasses.asdict(summary), indent=None)
    else:
        print(prepare.text(summary))
    if summary.unreadable_fraction > args.max_unreadable:
        print(
            f"mmjax data prepare: {summary.unreadable_fraction:.2%} of the examples were left out, more than "
            f"--max-unreadable={args.max_unreadable:g}; see {summary.folder}/unreadable.jsonl",
            file=sys.stderr,
        )
        return 1
    return 0
