"""Score how well captions fit their pictures, with a trained model.

Writes the cosine of each picture and its captions to FILE, by id and key; data.source.selection reads it. The same
command again continues after a kill, and the file has the same bytes as without one. Without --path, --source and
--config the data is that of the run. Several processes share the work. Unreadable examples are left out and listed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from mmjax.commands.common import embedding_flags, options, output_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    embedding_flags.add_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write: .parquet, .csv or .jsonl")
    parser.add_argument(
        "--reduce", default="max", choices=("max", "mean", "each"),
        help="of several captions: the best, the mean, or a column for each, score_0, score_1, … (default: max)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Scores what is not scored yet; status 1: too many examples were left out."""
    out = Path(args.out)
    ending = output_file.parse_ending(out, flag="--out")
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    import pyarrow.parquet as pq

    from mmjax.commands.common.embedding import open_job, report, write_shards, write_unreadable
    from mmjax.core.atomic import write_atomically
    from mmjax.inference.scoring import format_table, reduce_scores, score_table
    from mmjax.inference.shards import ShardFolder
    from mmjax.parallel import collectives, distributed

    record, listed = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.unreadable.jsonl")
    with distributed.join(**options.processes(args)):
        job = open_job(args, ("images", "texts"))
        plan = {**job.plan, "reduce": args.reduce}
        # Beside the file, because it may be large, and hidden, because it goes when the file is there.
        folder = ShardFolder(
            out.with_name(f".{out.name}.shards"), plan_name="plan.json", plan=plan, informative=("model",),
            kinds=("scores",), shards=job.shards,
        )  # fmt: skip
        summary = output_file.finished(out, record, plan, flag="--out", informative=("model",))
        if summary is None:
            write_shards(job, folder, lambda shard: {("scores", ".parquet"): score_table(shard)})
        if not collectives.is_main_process():
            return 0
        if summary is None:
            tables = [pq.read_table(folder.table_path("scores", number)) for number in range(job.shards)]
            with folder.write_errors():
                table = reduce_scores(tables, args.reduce)
                summary = {"out": str(out), "examples": len(table), "columns": table.column_names[2:]}
                summary["unreadable"] = write_unreadable(listed, job.source, folder.unreadable())
                write_atomically(record, json.dumps({"plan": plan, "summary": summary}, indent=1) + "\n")
                write_atomically(out, format_table(table, ending), sync=True)
        shutil.rmtree(folder.path, ignore_errors=True)
    text = f"{out}: {', '.join(summary['columns'])} of {summary['examples']:,} examples"
    return report(args, summary, text, listed=listed)
