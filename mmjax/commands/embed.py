"""Embed pictures and captions with a trained model.

Writes the embeddings of a folder, a table, an archive or any other source to DIR, in shards. The same command again
continues after a kill, and the files have the same bytes as without one. Without --path, --source and --config the data
is that of the run. Several processes share the work. Unreadable examples are left out and listed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from mmjax.commands.common import embedding_flags, options

KINDS: dict[str, tuple[Literal["images", "texts"], ...]] = {
    "image": ("images",),
    "text": ("texts",),
    "both": ("images", "texts"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    embedding_flags.add_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--kind", default="image", choices=tuple(KINDS), help="what is embedded (default: image)")
    parser.add_argument(
        "--format", default="parquet", choices=("parquet", "npy"),
        help="of the embeddings; the tables beside npy are parquet (default: parquet)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the embeddings in files")


def run(args: argparse.Namespace) -> int:
    """Embeds what is not embedded yet; status 1: too many examples were left out."""
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.commands.common.embedding import open_job, report, write_shards, write_unreadable
    from mmjax.inference.embedding import ShardEmbeddings, embedding_table
    from mmjax.inference.embedding_store import PLAN
    from mmjax.inference.shards import Content, ShardFolder
    from mmjax.parallel import collectives, distributed

    out = Path(args.output)
    with distributed.join(**options.processes(args)):
        job = open_job(args, KINDS[args.kind])
        plan = {**job.plan, "kinds": job.kinds, "format": args.format, "dtype": args.dtype}
        folder = ShardFolder(
            out, plan_name=PLAN, plan=plan, informative=("model",), kinds=job.kinds, shards=job.shards,
            suffixes=(".parquet", ".npy") if args.format == "npy" else (".parquet",),
        )  # fmt: skip

        def make_files(shard: ShardEmbeddings) -> dict[tuple[str, str], Content]:
            files: dict[tuple[str, str], Content] = {}
            for kind in job.kinds:
                with_embeddings = args.format == "parquet"
                table, embeddings = embedding_table(kind, shard, dtype=args.dtype, with_embeddings=with_embeddings)
                files[kind, ".parquet"] = table
                if args.format == "npy":
                    files[kind, ".npy"] = embeddings
            return files

        write_shards(job, folder, make_files)
        if not collectives.is_main_process():
            return 0
        unreadable = write_unreadable(out / "unreadable.jsonl", job.source, folder.unreadable())
    rows: dict[str, int] = {kind: folder.rows(kind) for kind in job.kinds}
    embedded = job.plan["examples"] - len(folder.unreadable())
    summary: dict[str, Any] = {
        "out": str(out),
        "examples": embedded,
        **rows,
        "dimension": plan["dimension"],
        "shards": job.shards,
    }
    summary["unreadable"] = unreadable
    counts = " and ".join(f"{count:,} {kind}" for kind, count in rows.items())
    text = f"{out}: {counts} in {plan['dimension']} dimensions, {job.shards} shards"
    return report(args, summary, text, listed=out / "unreadable.jsonl")
