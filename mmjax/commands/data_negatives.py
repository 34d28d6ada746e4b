"""Write hard negatives of any source's captions to a table, which data.negatives.path reads.

A row is a false version of one caption: key, kind, caption, negative, valid (set it to false to leave a row out) and
method. --method=rules exchanges a color, material, size, action or state for another; --method=swap exchanges two noun
phrases, nouns, adjectives, adverbs or verb phrases (needs TextBlob); --method=units finds the entities and relations of
captions and makes a false version of each (needs TextBlob). The same command again continues after a kill, and the file
has the same bytes as without one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from mmjax.commands.common import data_source, options, output_file
from mmjax.core.config import Between, ConfigError, Ge, choose

_SHARD = 4096  # examples between two saves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    data_source.add_source(parser)
    parser.add_argument("--method", required=True, choices=("rules", "swap", "units"), help="how captions are changed")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write: .parquet, .csv or .jsonl")
    parser.add_argument("--kinds", metavar="A,B", help="kinds of changes (default: all of the method)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choices (default: 0)")
    parser.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="FRACTION",
        help="the status is 1 where more than this fraction was left out (default: 0.01)",
    )  # fmt: skip
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes what is not written yet; status 1: too many examples were left out."""
    options.check_ranges(args, max_unreadable=Between(0, 1), seed=Ge(0))
    out = Path(args.output)
    ending = output_file.parse_ending(out, flag="--output")
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmjax.commands.common.embedding import report, write_unreadable
    from mmjax.core.atomic import write_atomically
    from mmjax.data.negatives import generate
    from mmjax.data.preparing.progress import Counter
    from mmjax.data.sample import Unreadable
    from mmjax.inference.scoring import format_table
    from mmjax.inference.shards import UNREADABLE, ShardFolder

    known = generate.KINDS[args.method]
    kinds = [choose(kind, known, path="--kinds") for kind in options.split_csv(args.kinds) or known]
    generator = generate.Generator(args.method, kinds, seed=args.seed)
    source, section = data_source.open_source(args)
    size = len(source)
    if not size:
        raise ConfigError("no data: the source is empty")
    section = data_source.with_absolute_path(section)
    plan = {"source": section, "split": args.split, "examples": size, "method": args.method, "kinds": kinds}
    plan |= {"seed": args.seed, "revision": generate.revision(args.method)}
    record, listed = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.unreadable.jsonl")
    summary = output_file.finished(out, record, plan, flag="--output")
    # Beside the file, because it may be large, and hidden, because it goes when the file is there.
    folder = ShardFolder(
        out.with_name(f".{out.name}.shards"), plan_name="plan.json", plan=plan, kinds=("negatives",),
        shards=-(-size // _SHARD), flag="--output",
    )  # fmt: skip
    if summary is None:
        with folder.locked():
            missing = folder.missing()
            reader = generate.CaptionReader(source)
            done = size - sum(len(range(size)[n * _SHARD : (n + 1) * _SHARD]) for n in missing)
            with Counter(size, unit="examples", already=done) as counter:
                for number in missing:
                    rows, unreadable, captions = [], [], 0
                    for index in range(size)[number * _SHARD : (number + 1) * _SHARD]:
                        try:
                            key, texts = reader.read(index)
                            rows += generator.rows(key, texts)
                            captions += len(texts)
                        except Unreadable as error:
                            unreadable.append([error.key, error.reason, error.detail])
                        counter(done := done + 1)
                    metadata = {UNREADABLE: json.dumps(unreadable).encode(), b"captions": str(captions).encode()}
                    table = pa.Table.from_pylist(rows, generate.SCHEMA).replace_schema_metadata(metadata)
                    folder.write(number, {("negatives", ".parquet"): table})
            tables = [pq.read_table(folder.table_path("negatives", number)) for number in range(folder.shards)]
            captions = sum(int(table.schema.metadata[b"captions"]) for table in tables)
            table = generate.without_repeats(pa.concat_tables([t.replace_schema_metadata(None) for t in tables]))
            unreadable = folder.unreadable()
            summary = {"output": str(out), "negatives": len(table), "examples": size - len(unreadable)}
            summary |= {"captions": captions, "kinds": generate.count_kinds(table)}
            with folder.write_errors():
                summary["unreadable"] = write_unreadable(listed, source, unreadable)
                write_atomically(record, json.dumps({"plan": plan, "summary": summary}, indent=1) + "\n")
                write_atomically(out, format_table(table, ending), sync=True)
    shutil.rmtree(folder.path, ignore_errors=True)
    yields = "".join(
        f"\n  {kind}: {count:,} ({count / max(summary['captions'], 1):.1%} of captions)"
        for kind, count in summary["kinds"].items()
    )
    text = f"{out}: {summary['negatives']:,} negatives of {summary['captions']:,} captions"
    return report(args, summary, text + yields, listed=listed)
