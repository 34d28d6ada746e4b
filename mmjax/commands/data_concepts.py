"""Write a table of related concepts, for the transform culture_mixup.

Finds the nouns of a word list, or of a source's captions, in a local WordNet, and for each the words that are related
to it: synonyms, more general words up to two levels, and more special ones of those. A row has source, target and
distance. With tables of translations, such as mmjax data fetch emoji writes, targets are translations.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmjax.commands.common import data_source, options, output_file
from mmjax.core.config import ConfigError, Ge

if TYPE_CHECKING:
    from mmjax.data.concepts.wordnet import WordNet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    data_source.add_source(parser, modalities=False)
    parser.add_argument("--words", metavar="FILE", help="or the words themselves, one a line")
    parser.add_argument("--wordnet", required=True, metavar="DIR", help="WordNet's folder dict, with data.noun")
    parser.add_argument("--translations", metavar="A,B", help="tables with source and target, such as concepts/de.csv")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write: .parquet, .csv or .jsonl")
    parser.add_argument("--up", type=int, default=2, metavar="N", help="levels of more general words (default: 2)")
    parser.add_argument("--down", type=int, default=2, metavar="N", help="levels of more special ones (default: 2)")
    parser.add_argument("--senses", type=int, default=1, metavar="N", help="meanings of a word (default: 1)")
    parser.add_argument("--max-distance", type=int, default=2, metavar="N", help="edges to a target (default: 2)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the table."""
    options.check_ranges(args, up=Ge(0), down=Ge(0), senses=Ge(1), max_distance=Ge(0))
    out = Path(args.output)
    ending = output_file.parse_ending(out)
    has_source = bool(args.config or args.source or args.path)
    if has_source == (args.words is not None):
        raise ConfigError("--words: give a list of words, or a source with captions (--path), one of the two")
    import pyarrow as pa

    from mmjax.core.atomic import write_atomically
    from mmjax.data.concepts import related
    from mmjax.data.concepts.wordnet import WordNet
    from mmjax.inference.scoring import format_table

    paths = options.split_csv(args.translations)
    translations = related.read_translations(paths, option="--translations") if paths else None
    wordnet = WordNet(args.wordnet)
    nouns, unknown = _find_words(args, wordnet) if args.words is None else _read_words(args.words, wordnet)
    rows = list(
        related.make_rows(
            wordnet, nouns, translations,
            max_distance=args.max_distance, up=args.up, down=args.down, senses=args.senses,
        )
    )  # fmt: skip
    if not rows:
        raise ConfigError(
            f"--wordnet={args.wordnet}: has nothing related to the {len(nouns) + unknown} words within the limits"
        )
    schema = pa.schema([("source", pa.string()), ("target", pa.string()), ("distance", pa.int64())])
    try:
        write_atomically(out, format_table(pa.Table.from_pylist(rows, schema), ending), sync=True)
    except OSError as error:
        raise ConfigError(f"--output={out}: cannot be written ({error.strerror or error})") from None
    sources = len({row["source"] for row in rows})
    summary = {
        "output": str(out),
        "rows": len(rows),
        "concepts": len(nouns),
        "with_targets": sources,
        "unknown": unknown,
    }
    more = f"; {unknown:,} words are not in WordNet" if unknown else ""
    text = f"{out}: {len(rows):,} targets of {sources:,} of {len(nouns):,} concepts{more}"
    options.print_result(summary, lambda _: text, as_json=args.json)
    return 0


def _read_words(path: str, wordnet: WordNet) -> tuple[list[str], int]:
    """The nouns of a list, and how many of its words are none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--words={path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    lemmas = [wordnet.lemma(line) for line in lines]
    known = [lemma for lemma in lemmas if lemma is not None]
    return list(dict.fromkeys(known)), len(lemmas) - len(known)


def _find_words(args: argparse.Namespace, wordnet: WordNet) -> tuple[list[str], int]:
    """The nouns of a source's captions."""
    from mmjax.data.negatives.generate import CaptionReader
    from mmjax.data.preparing.progress import Counter
    from mmjax.data.sample import Unreadable

    args.modalities = None
    source, _ = data_source.open_source(args)
    reader, nouns = CaptionReader(source), dict[str, None]()
    with Counter(len(source), unit="examples") as counter:
        for index in range(len(source)):
            try:
                for caption in reader.read(index)[1]:
                    nouns |= dict.fromkeys(wordnet.nouns_in(caption))
            except Unreadable:
                continue
            finally:
                counter(index + 1)
    return sorted(nouns), 0
