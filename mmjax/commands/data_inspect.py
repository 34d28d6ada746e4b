"""Show what a source holds, and draw what the model sees of it.

Prints fields, pictures, captions against the context length, what is unreadable, and the proportions of a mixture.
With --sheet draws rows of real training batches, after all transforms. Without --config, as a ViT-B-32 would train on
it with no transforms but random crops. With --captions reports on the captions alone: lengths, vocabulary, repeats, and
what transforms, false captions or mmjax generate made of them, beside the source's own; or captions of any captioner
(--captions=FILE) with BLEU, ROUGE-L and CIDEr.
"""

from __future__ import annotations

import argparse
import sys

from mmjax.commands.common import data_source, options
from mmjax.core.config import ConfigError, Ge
from mmjax.generate.languages import check_installed

MAX_SHEET_BATCH = 1024  # rows made for a contact sheet, which shows a few of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    data_source.add_source(parser)
    parser.add_argument(
        "--examples", default="2000", metavar="N", help="examples to read, evenly spaced, or 'all' (default: 2000)"
    )
    parser.add_argument(
        "--captions", nargs="?", const=True, metavar="FILE",
        help="report on the captions alone, kind by kind; with FILE, a table of key or id and caption, also on these, "
        "with the source's captions as references",
    )  # fmt: skip
    parser.add_argument("--model", metavar="SPEC", help="with --captions: a run folder or weights, for CLIPScores")
    parser.add_argument(
        "--languages", action="store_true", help="with --captions: also their languages, by the extra languages"
    )
    parser.add_argument("--sheet", metavar="FILE", help="draw a contact sheet to this file (.png)")
    parser.add_argument("--rows", type=int, default=24, metavar="N", help="images on the sheet (default: 24)")
    parser.add_argument("--threads", type=int, metavar="N", help="reading threads (default: one a core)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the survey of a source and draws its contact sheet."""
    if args.examples != "all" and not (args.examples.isdigit() and int(args.examples)):
        raise ConfigError(f"--examples={args.examples}: expected a number, at least 1, or 'all'")
    options.check_ranges(args, rows=Ge(1), threads=Ge(1))
    if args.model and not args.captions:
        raise ConfigError(f"--model={args.model}: scores captions; give --captions too, or leave it out")
    if args.languages and not args.captions:
        raise ConfigError("--languages: of captions; give --captions too, or leave it out")
    if args.languages:
        check_installed("--languages")
    if args.sheet and args.captions:
        raise ConfigError(f"--sheet={args.sheet}: --captions draws nothing; leave one of them out")
    experiment = data_source.load_experiment(args)
    from mmjax.commands.common.split_inspector import SplitInspector
    from mmjax.data.inspecting import contact_sheet, survey
    from mmjax.data.preparing.plan import evenly_spaced

    split = SplitInspector(experiment, args.split, max_batch_size=MAX_SHEET_BATCH)
    size = len(split.source)
    numbers = range(size) if args.examples == "all" else evenly_spaced(size, int(args.examples))
    if args.captions:
        from mmjax.commands.common.caption_quality import inspect_captions
        from mmjax.evals.captions.quality import format_quality

        options.print_result(inspect_captions(args, split, list(numbers)), format_quality, as_json=args.json)
        return 0
    threads = args.threads or options.available_cores()
    summary = survey.survey(split.source, tokenizer=split.tokenizer, numbers=numbers, threads=threads)
    options.print_result(summary, survey.text, as_json=args.json)
    if args.sheet:
        sheet = contact_sheet.draw(
            contact_sheet.sample_cells(split.batches, split.tokenizer.decode, count=args.rows),
            title=f"{args.config or args.path or args.source}, {args.split}",
            subtitle=f"Transforms: {', '.join(split.train_transforms.names) or 'none'}",
        )
        contact_sheet.save(sheet, args.sheet)
        print(f"drew {args.sheet}", file=sys.stderr)
    return 0
