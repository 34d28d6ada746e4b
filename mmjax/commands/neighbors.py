"""Find the nearest neighbors of all embedded examples.

Reads the embeddings that mmjax embed wrote, of pictures or of captions (an example's first one), and writes for each
example the others with the largest cosines. data.clusters.path makes batches of them. The search is exact, and uses all
devices; the file is the same on any.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmjax.commands.common import options
from mmjax.core.config import ConfigError, Ge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--in", dest="embeddings", required=True, metavar="DIR", help="what mmjax embed wrote")
    parser.add_argument("--output", required=True, metavar="FILE", help="the table to write: .parquet")
    parser.add_argument(
        "--kind",
        default="image",
        choices=("image", "text"),
        help="of the embeddings that are compared (default: image)",
    )
    parser.add_argument(
        "--count", type=int, default=64, metavar="N",
        help="neighbors of an example: four times data.clusters.size is plenty (default: 64)",
    )  # fmt: skip
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the table."""
    options.check_ranges(args, count=Ge(1))
    out = Path(args.output)
    if out.suffix != ".parquet":
        raise ConfigError(f"--output={out}: expected a file that ends in .parquet")
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    import numpy as np

    from mmjax.core.atomic import write_atomically
    from mmjax.data.clusters.table import make_table
    from mmjax.data.preparing.progress import Counter
    from mmjax.inference.embedding_store import open_store
    from mmjax.inference.neighbors import find_neighbors
    from mmjax.inference.scoring import format_table

    store = open_store(args.embeddings, kind="images" if args.kind == "image" else "texts")
    indices, rows = np.unique(store.indices, return_index=True)  # of several captions the first
    if len(rows) < 2:
        raise ConfigError(f"--in={args.embeddings}: has {len(rows)} examples; neighbors need two or more")
    with Counter(len(rows), unit="examples") as counter:
        neighbors = find_neighbors(store.embeddings[rows], args.count, progress=counter)
    table = make_table([store.paths[row] for row in rows.tolist()], indices, neighbors, examples=store.plan.examples)
    try:
        write_atomically(out, format_table(table, "parquet"), sync=True)
    except OSError as error:
        raise ConfigError(f"--output={out}: cannot be written ({error.strerror or error})") from None
    count = neighbors.shape[1]
    summary = {"output": str(out), "examples": len(rows), "neighbors": count}
    text = f"{out}: {count} neighbors of each of {len(rows):,} examples"
    options.print_result(summary, lambda _: text, as_json=args.json)
    return 0
