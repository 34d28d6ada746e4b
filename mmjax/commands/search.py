"""Find the pictures that are nearest to a text or a picture.

Searches the embeddings that mmjax embed wrote. Prints rank, cosine, id and path of the nearest pictures; equal ones are
in the order of the data. --sheet also draws them on one self-contained page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmjax.commands.common import options
from mmjax.core.config import ConfigError, Ge

if TYPE_CHECKING:
    import numpy as np

    from mmjax.inference.model import Model
    from mmjax.inference.search import Match


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("query", nargs="?", metavar="TEXT", help="what the pictures show")
    parser.add_argument("--image", metavar="FILE", help="or a picture that they are like")
    parser.add_argument("--in", dest="embeddings", required=True, metavar="DIR", help="what mmjax embed wrote")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many (default: 10)")
    parser.add_argument("--sheet", metavar="FILE", help="draw them on a page (.html)")
    parser.add_argument("--model", metavar="SPEC", help="where the model is now (default: where it was)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the nearest pictures."""
    options.check_ranges(args, top=Ge(1))
    if (args.query is None) == (args.image is None):
        raise ConfigError("give a text to search for, or --image=FILE, one of the two")
    if args.query is not None and not args.query.strip():
        raise ConfigError("the text to search for is empty")
    if args.sheet is not None and not args.sheet.endswith(".html"):
        raise ConfigError(f"--sheet={args.sheet}: is a page; name a file that ends in .html")
    from mmjax.commands.common.jax_setup import keep_compiled_programs, use_cpu

    use_cpu()  # one query is not worth an accelerator
    keep_compiled_programs()
    from mmjax.commands.common.searching import open_searched

    model, spec, searcher = open_searched(args.model, args.embeddings)
    assert searcher is not None
    matches = searcher.find(_embed(model, args.query, args.image), count=args.top)
    if args.json:
        options.print_json([{"rank": m.rank, "cosine": m.cosine, "id": m.id, "path": m.path} for m in matches])
    else:
        options.print_result(matches, format_table, as_json=False)
    if args.sheet:
        from mmjax.inference.sheet import write_sheet
        from mmjax.inference.thumbnails import make_thumbnail

        highlights = [("model", spec), ("searched", f"{len(searcher):,} pictures of {args.embeddings}")]
        picture = None if args.image is None else make_thumbnail(Path(args.image).read_bytes())
        try:
            write_sheet(
                Path(args.sheet), searcher.show(matches), title=args.query or args.image, highlights=highlights,
                query_picture=picture,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"--sheet={args.sheet}: cannot be written ({error.strerror or error})") from None
        print(f"drew {args.sheet}", file=sys.stderr)
    return 0


def _embed(model: Model, query: str | None, image: str | None) -> np.ndarray:
    from mmjax.data.sample import Unreadable

    if image is None:
        return model.encode_text([query or ""])[0]
    try:
        return model.encode_image([image])[0]
    except Unreadable as error:
        raise ConfigError(f"--image={error}") from None


def format_table(matches: Sequence[Match]) -> str:
    """A line for each picture."""
    rows = [("rank", "cosine", "id", "path")]
    rows += [(str(m.rank), f"{m.cosine:.4f}", str(m.id), " ".join(m.path.split("\n"))) for m in matches]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*map(str.rjust, row[:3], widths), row[3]]) for row in rows)
