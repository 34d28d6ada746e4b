"""The captions of a source by kind, as training has them, and their report for ``mmjax data inspect --captions``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.sample import Unreadable, as_unreadable
from mmjax.data.source import Source
from mmjax.inference.embedding import name_of

SOURCE = "source"
"""The kind of the captions that are there before anything is done to them."""

FILE = "file"
"""The kind of those of a table beside the source."""


def inspect_captions(args: argparse.Namespace, split: Any, numbers: Sequence[int]) -> dict[str, Any]:
    """The report on the examples of those ``numbers`` as JSON values.

    Kinds are ``source``, the source's own captions; ``training``, what the transforms of the config make of them, one
    by one, before captions are sampled; ``negatives``, the false captions; ``file``, those of a table; and, of what
    ``mmjax generate`` wrote, each source of its captions.

    Args:
        args: of the command.
        split: a ``SplitInspector``.
        numbers: which examples.
    """
    from mmjax.data.preparing.progress import Counter
    from mmjax.evals.captions.quality import measure_quality
    from mmjax.generate.languages import identify

    source, chain = split.source, split.train_transforms
    transforms = any(chain.stage_of(name.partition("#")[0]) in ("captions", "sample") for name in chain.names)
    table = None if args.captions is True else CaptionFile(args.captions)
    each: list[dict[str, list[str]]] = []
    readable: list[int] = []
    unreadable: list[Unreadable] = []
    with Counter(len(numbers), unit="examples") as progress:
        for done, number in enumerate(numbers, 1):
            try:
                example = source.read(number)
                kinds = _kinds(source, number, example)
                if table is not None:
                    kinds[FILE] = table.texts_of(example, number)
                if transforms:
                    sample = chain.apply_caption_transforms(example, number=number)
                    kinds["training"] = chain.decode_and_transform(sample, example, number=number).captions
            except ConfigError:
                raise
            except Exception as error:  # whatever is wrong with one example
                unreadable.append(as_unreadable(error, f"example {number}"))
                continue
            finally:
                progress(done)
            readable.append(number)
            each.append(kinds)
    if not each:
        raise ConfigError(f"none of the examples can be used; the first one: {unreadable[0]}")
    if table is not None and not any(kinds[FILE] for kinds in each):
        raise ConfigError(
            f"--captions={args.captions}: names none of the {len(each):,} examples by its {table.by!r}, such as "
            f"{table.name_of(source.read(readable[0]), readable[0])!r}; check the file and --split"
        )
    names = list(dict.fromkeys(name for kinds in each for name in kinds))
    groups = {name: [kinds.get(name, []) for kinds in each] for name in names}
    first = SOURCE if SOURCE in groups else "raw"
    scores = _clip_scores(args.model, source, readable, groups, first) if args.model else None
    truth = _truth(source, readable)
    quality = measure_quality(
        groups, source=first, is_true=truth, clip_scores=scores, identify=identify if args.languages else None
    )
    return {
        "examples": len(source),
        "inspected": len(numbers),
        "unreadable": len(unreadable),
        "groups": quality,
    }


class CaptionFile:
    """Captions of a table (parquet, csv, tsv, jsonl) by the ``key`` or ``id`` of the examples."""

    def __init__(self, path: str):
        self.by: lookup.By = "key"
        self._texts = lookup.Texts(self._rows(path))

    def texts_of(self, example: Mapping[str, Any], number: int) -> list[str]:
        """The captions of an example."""
        return self._texts[self.name_of(example, number)]

    def name_of(self, example: Mapping[str, Any], number: int) -> str | int:
        """What names an example in the table."""
        return int(example["id"]) if self.by == "id" else name_of(example, number)

    def _rows(self, path: str) -> Iterator[tuple[str | int, str]]:
        first = True
        for number, row in lookup.rows(path, option="--captions"):
            where = f"--captions={path!r}: line {number}"
            if first:
                self.by, first = "key" if "key" in row else "id", False
            yield (
                lookup.name_of(row, self.by, where=where),
                lookup.text_of(lookup.field(row, "caption", where=where), where=where),
            )


def _kinds(source: Source, number: int, example: dict[str, Any]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    if (record := getattr(source, "record", None)) is not None:
        for caption in record(number).captions:
            kinds.setdefault(caption["source"], []).append(caption["text"])
    else:
        kinds[SOURCE] = list(example["captions"])
    if negatives := example.get("negatives"):
        kinds["negatives"] = [false for _, _, false in negatives]
    return kinds


def _truth(source: Source, numbers: Sequence[int]) -> Callable[[int, str], bool] | None:
    """Whether captions are true, of scenes, whose content is known."""
    from mmjax.data.scenes.graph import from_json, is_true

    if (scene := getattr(source, "scene", None)) is not None:
        return lambda row, text: is_true(scene(numbers[row]), text)
    if (record := getattr(source, "record", None)) is not None and "scene" in record(numbers[0]).fields:
        return lambda row, text: is_true(from_json(record(numbers[row]).fields["scene"])[0], text)
    return None


def _clip_scores(
    model: str, source: Source, numbers: Sequence[int], groups: dict[str, list[list[str]]], first: str
) -> dict[str, dict[str, float]]:
    """Mean CLIPScores of each kind: of captions with their image, with that of the next example, and with references.

    Args:
        model: what embeds.
        source: the pictures.
        numbers: their examples.
        groups: the captions of each example, by kind.
        first: the kind of the references.
    """
    import mmjax
    from mmjax.evals.captions.clip_score import PREFIX, clip_scores, ref_clip_scores
    from mmjax.inference.embedding import Embedding

    loaded = mmjax.load(model)
    shard = Embedding(loaded, source, kinds=("images",)).run(numbers)
    assert shard.images is not None
    place = {number: row for row, number in enumerate(shard.indices)}
    result: dict[str, dict[str, float]] = {}
    references: dict[int, np.ndarray] = {}
    for name in sorted(groups, key=lambda name: name != first):
        pairs = [
            (place[n], text) for n, texts in zip(numbers, groups[name], strict=True) if n in place for text in texts
        ]
        if not pairs:
            continue
        rows, texts = np.array([row for row, _ in pairs]), loaded.encode_text([PREFIX + text for _, text in pairs])
        others = shard.images[(rows + 1) % len(shard.images)]
        result[name] = {
            "clip_score": float(clip_scores(shard.images[rows], texts).mean()),
            "clip_score_shuffled": float(clip_scores(others, texts).mean()),
        }
        if name == first:
            references = {row: texts[rows == row] for row in set(rows.tolist())}
        elif len(own := [number for number, row in enumerate(rows.tolist()) if row in references]):
            refs = [references[row] for row in rows[own].tolist()]
            result[name]["ref_clip_score"] = float(ref_clip_scores(shard.images[rows[own]], texts[own], refs).mean())
    return result
