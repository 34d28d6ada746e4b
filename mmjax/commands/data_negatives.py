"""Write hard negatives of any source's captions to a table, which data.negatives.path reads.

A row is a false version of one caption: key, kind, caption, negative, valid (set it to false to leave a row out) and
method. Of the methods, rules exchanges a color, material, size, action or state for another; swap exchanges two noun
phrases, nouns, adjectives, adverbs or verb phrases; units finds the entities and relations of captions and makes a
false version of each; triples finds facts about what captions name, and makes them false. Other models are asked by
mlm, which masks a word and fills in another; entity, which replaces names; and llm, which has captions edited by a
language model. swap, units and mlm need TextBlob. The same command again continues after a kill, and the file has the
same bytes as without one.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
from pathlib import Path

from mmjax.commands.common import data_source, negative_makers, options, output_file
from mmjax.core.config import Between, ConfigError, Ge

_SHARD = 4096  # examples between two saves
_BATCH = 64  # examples that models get at once, and between two saves of theirs four times as many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    data_source.add_source(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write: .parquet, .csv or .jsonl")
    negative_makers.add_arguments(parser)
    parser.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="FRACTION",
        help="the status is 1 where more than this fraction was left out (default: 0.01)",
    )  # fmt: skip
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes what is not written yet; status 1: too many examples were left out."""
    options.check_ranges(args, max_unreadable=Between(0, 1), seed=Ge(0))
    out = Path(args.output)
    ending = output_file.parse_ending(out)
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmjax.commands.common.embedding import report, write_unreadable
    from mmjax.core.atomic import write_atomically
    from mmjax.data.negatives import generate
    from mmjax.data.preparing.progress import Counter
    from mmjax.data.sample import Unreadable
    from mmjax.generate.negatives.makers import CaptionedExample
    from mmjax.inference.scoring import format_table
    from mmjax.inference.shards import UNREADABLE, ShardFolder

    source, section = data_source.open_source(args)
    size = len(source)
    if not size:
        raise ConfigError("no data: the source is empty")
    maker, identity = negative_makers.make_maker(args, source)
    section = data_source.with_absolute_path(section)
    plan = {"source": section, "split": args.split, "examples": size, "method": args.method, "seed": args.seed}
    plan |= identity
    shard = _SHARD if args.method in (*generate.KINDS, "triples") else 4 * _BATCH
    record, listed = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.unreadable.jsonl")
    summary = output_file.finished(out, record, plan)
    # Beside the file, because it may be large, and hidden, because it goes when the file is there.
    folder = ShardFolder(
        out.with_name(f".{out.name}.shards"), plan_name="plan.json", plan=plan, kinds=("negatives",),
        shards=-(-size // shard),
    )  # fmt: skip
    if summary is None:
        with folder.locked():
            missing = folder.missing()
            reader = generate.CaptionReader(source)
            done = size - sum(len(range(size)[n * shard : (n + 1) * shard]) for n in missing)
            with Counter(size, unit="examples", already=done) as counter:
                for number in missing:
                    rows, unreadable, captions = [], [], 0
                    places = range(size)[number * shard : (number + 1) * shard]
                    for first in range(0, len(places), _BATCH):
                        examples = []
                        for place in places[first : first + _BATCH]:
                            try:
                                examples.append(CaptionedExample(place, *reader.read(place)))
                            except Unreadable as error:
                                unreadable.append([error.key, error.reason, error.detail])
                        rows += maker.rows(examples)
                        captions += sum(len(example.captions) for example in examples)
                        counter(done := done + len(places[first : first + _BATCH]))
                    failures, maker.failures = dict(maker.failures), collections.Counter()
                    counts = {"captions": captions, "failures": failures}
                    metadata = {UNREADABLE: json.dumps(unreadable).encode(), b"counts": json.dumps(counts).encode()}
                    table = pa.Table.from_pylist(rows, generate.SCHEMA).replace_schema_metadata(metadata)
                    folder.write(number, {("negatives", ".parquet"): table})
            tables = [pq.read_table(folder.table_path("negatives", number)) for number in range(folder.shards)]
            counts_of = [json.loads(table.schema.metadata[b"counts"]) for table in tables]
            captions = sum(counts["captions"] for counts in counts_of)
            failures = sum((collections.Counter(counts["failures"]) for counts in counts_of), collections.Counter())
            table = generate.without_repeats(pa.concat_tables([t.replace_schema_metadata(None) for t in tables]))
            unreadable = folder.unreadable()
            summary = {"output": str(out), "negatives": len(table), "examples": size - len(unreadable)}
            summary |= {"captions": captions, "kinds": generate.count_kinds(table)}
            summary |= {"failures": dict(failures.most_common())} if failures else {}
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
    failed = "".join(f"\n  failed: {count:,} ({reason})" for reason, count in summary.get("failures", {}).items())
    return report(args, summary, text + yields + failed, listed=listed)
