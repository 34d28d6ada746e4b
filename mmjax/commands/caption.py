"""Write captions for pictures with a trained model that has a decoder.

Writes FILE (.parquet, .csv or .jsonl) with one row for each caption: the example's index in the source, its id and key,
the caption's number, the caption, and its log_probability under the model. The data is a folder, a table, an archive or
any other source; without --path, --source and --config it is that of the run. The same command again continues after a
kill, with the same captions. Several processes share the work. Unreadable examples are left out and listed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from mmjax.commands.common import embedding_flags, options, output_file

_DECODING = ("method", "max_length", "min_length", "beams", "length_penalty", "temperature", "top_k", "top_p")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    embedding_flags.add_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write: .parquet, .csv or .jsonl")
    parser.add_argument(
        "--method",
        default="greedy",
        choices=("greedy", "beam", "sample"),
        help="how words are chosen",
    )
    parser.add_argument("--count", type=int, default=1, metavar="N", help="captions of each picture (default: 1)")
    parser.add_argument("--beams", type=int, metavar="N", help="beginnings that --method=beam keeps (default: 4)")
    parser.add_argument(
        "--length-penalty", type=float, metavar="X", help="beam: scores are log p / length^X (default: 1)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="sample: divides the logits (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample: among the K most probable words")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample: among the fewest words of probability P")
    parser.add_argument("--min-length", type=int, metavar="N", help="tokens of a caption at least (default: 0)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a caption at most (default: all)")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="how each caption begins, such as 'Question:'")
    parser.add_argument("--seed", type=int, default=0, help="of draws (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Captions what has none yet; status 1: too many examples were left out."""
    out = Path(args.output)
    ending = output_file.parse_ending(out)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmjax.commands.common.embedding import open_job, report, write_shards, write_unreadable
    from mmjax.core.atomic import write_atomically
    from mmjax.inference.embedding import caption_table
    from mmjax.inference.scoring import format_table
    from mmjax.inference.shards import ShardFolder
    from mmjax.parallel import collectives, distributed

    record, listed = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.unreadable.jsonl")
    decoding = {name: value for name in _DECODING if (value := getattr(args, name)) is not None}
    with distributed.join(**options.processes(args)):
        job = open_job(args, ("images",))
        captioner = job.model.captioner(count=args.count, prompt=args.prompt, **decoding)
        plan = {**job.plan, **decoding, "count": args.count, "prompt": args.prompt, "seed": args.seed}
        # Beside the file, because it may be large, and hidden, because it goes when the file is there.
        folder = ShardFolder(
            out.with_name(f".{out.name}.shards"), plan_name="plan.json", plan=plan, informative=("model",),
            kinds=("captions",), shards=job.shards,
        )  # fmt: skip
        summary = output_file.finished(out, record, plan, informative=("model",))
        if summary is None:

            def run_images(batch: Any, first: int) -> Any:
                numbers = np.arange(first, first + job.model.batch_sizes[-1], dtype=np.int32)
                return captioner(job.model.params, *job.model.place((batch, numbers)), seed=args.seed)

            write_shards(
                job,
                folder,
                lambda shard: {("captions", ".parquet"): caption_table(shard, captioner.decode)},
                run_images=run_images,
            )
        if not collectives.is_main_process():
            return 0
        if summary is None:
            tables = [pq.read_table(folder.table_path("captions", number)) for number in range(job.shards)]
            with folder.write_errors():
                table = pa.concat_tables([each.replace_schema_metadata(None) for each in tables])
                summary = {"out": str(out), "examples": len(table) // args.count, "captions": len(table)}
                summary["unreadable"] = write_unreadable(listed, job.source, folder.unreadable())
                write_atomically(record, json.dumps({"plan": plan, "summary": summary}, indent=1) + "\n")
                write_atomically(out, format_table(table, ending), sync=True)
        shutil.rmtree(folder.path, ignore_errors=True)
    text = f"{out}: {summary['captions']:,} captions of {summary['examples']:,} examples"
    return report(args, summary, text, listed=listed)
