"""Score how well captions fit their pictures, with a trained model.

Writes the cosine of each picture and its captions to FILE, by id and key; data.source.selection and the section gate
read it. --keep=0.3 marks the best 30 % in a column, which another --keep changes without scoring again. The same
command again continues after a kill, and the file has the same bytes as without one. Without --path, --source and
--config the data is that of the run. Several processes share the work. Unreadable examples are left out and listed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from mmjax.commands.common import embedding_flags, options, output_file
from mmjax.core.config import Between, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    embedding_flags.add_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write: .parquet, .csv or .jsonl")
    parser.add_argument(
        "--reduce", default="max", choices=("max", "mean", "each"),
        help="of several captions: the best, the mean, or a column for each, score_0, score_1, … (default: max)",
    )  # fmt: skip
    parser.add_argument(
        "--field", metavar="NAME", help="score the texts of this field of the examples, such as synthetic captions, in "
        "a column NAME_score",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=float, metavar="FRACTION", help="mark exactly this fraction, the best, in a column 'keep'"
    )
    parser.add_argument("--minimum", type=float, metavar="SCORE", help="mark those that score at least this instead")
    parser.add_argument(
        "--compat", choices=("datacomp",), help="with --keep: as many as DataComp's code keeps, one more and its ties"
    )


def run(args: argparse.Namespace) -> int:
    """Scores what is not scored yet; status 1: too many examples were left out."""
    marks = _marks(args)
    out = Path(args.output)
    ending = output_file.parse_ending(out)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    import pyarrow.parquet as pq

    from mmjax.commands.common.embedding import open_job, report, write_shards, write_unreadable
    from mmjax.core.atomic import write_atomically
    from mmjax.inference.scoring import FieldAsCaptions, format_table, mark_kept, read_table, reduce_scores, score_table
    from mmjax.inference.shards import ShardFolder
    from mmjax.parallel import collectives, distributed

    record, listed = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.unreadable.jsonl")
    with distributed.join(**options.processes(args)):
        job = open_job(args, ("images", "texts"))
        plan, name = {**job.plan, "reduce": args.reduce}, "score"
        if args.field:
            job = dataclasses.replace(job, source=FieldAsCaptions(job.source, args.field))
            plan, name = plan | {"field": args.field}, f"{args.field}_score"
        # Beside the file, because it may be large, and hidden, because it goes when the file is there.
        folder = ShardFolder(
            out.with_name(f".{out.name}.shards"), plan_name="plan.json", plan=plan, informative=("model",),
            kinds=("scores",), shards=job.shards,
        )  # fmt: skip
        summary = output_file.finished(out, record, plan, informative=("model",))
        if summary is None:
            write_shards(job, folder, lambda shard: {("scores", ".parquet"): score_table(shard)})
        if not collectives.is_main_process():
            return 0
        if summary is None:
            tables = [pq.read_table(folder.table_path("scores", number)) for number in range(job.shards)]
            with folder.write_errors():
                table = reduce_scores(tables, args.reduce, name=name)
                summary = {"out": str(out), "examples": len(table), "columns": table.column_names[2:]}
                summary["unreadable"] = write_unreadable(listed, job.source, folder.unreadable())
                if marks:
                    table, summary["kept"] = mark_kept(table, name=name, **marks)
                summary["marks"] = marks
                write_atomically(record, json.dumps({"plan": plan, "summary": summary}, indent=1) + "\n")
                write_atomically(out, format_table(table, ending), sync=True)
        elif summary.get("marks", {}) != marks:
            table = read_table(out.read_bytes(), ending, name=name)
            table = table.drop_columns([name for name in table.column_names if name == "keep"])
            summary = {key: value for key, value in summary.items() if key != "kept"} | {"marks": marks}
            if marks:
                table, summary["kept"] = mark_kept(table, name=name, **marks)
            with folder.write_errors():  # the record last: after a kill between the two this happens once more
                write_atomically(out, format_table(table, ending), sync=True)
                write_atomically(record, json.dumps({"plan": plan, "summary": summary}, indent=1) + "\n")
        shutil.rmtree(folder.path, ignore_errors=True)
    text = f"{out}: {', '.join(summary['columns'])} of {summary['examples']:,} examples"
    if kept := summary.get("kept"):
        text += f", {kept['kept']:,} of them kept"
        text += "" if kept["threshold"] is None else f", from {kept['threshold']:.4f} on"
    return report(args, summary, text, listed=listed)


def _marks(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that mark the examples to keep, as ``mark_kept`` takes them; empty: none is marked."""
    options.check_ranges(args, keep=Between(0, 1), minimum=Between(-1, 1))
    if args.keep is not None and args.minimum is not None:
        raise ConfigError(f"--minimum={args.minimum:g}: --keep={args.keep:g} decides the same; leave one of them out")
    if args.compat and args.keep is None:
        raise ConfigError(f"--compat={args.compat}: says how many --keep keeps; give --keep=FRACTION, or leave it out")
    marks = {"top": args.keep, "minimum": args.minimum, "compat": args.compat}
    marks = {name: value for name, value in marks.items() if value is not None}
    if marks and args.reduce == "each":
        raise ConfigError("--reduce=each: several scores an example do not say which to keep; use max or mean")
    return marks
