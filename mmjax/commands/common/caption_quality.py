"""The captions of a source by kind, as training has them, and their report for ``mmjax data inspect --captions``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable, as_unreadable
from mmjax.data.source import Source

SOURCE = "source"
"""The kind of the captions that are there before anything is done to them."""


def inspect_captions(args: argparse.Namespace, split: Any, numbers: Sequence[int]) -> dict[str, Any]:
    """The report on the examples of those ``numbers`` as JSON values.

    Kinds are ``source``, the source's own captions; ``training``, what the transforms of the config make of them, one
    by one, before captions are sampled; ``negatives``, the false captions; and, of what ``mmjax generate`` wrote, each
    source of its captions.

    Args:
        args: of the command.
        split: a ``SplitInspector``.
        numbers: which examples.
    """
    from mmjax.data.preparing.progress import Counter
    from mmjax.evals.captions.quality import measure_quality

    source, chain = split.source, split.train_transforms
    transforms = any(chain.stage_of(name.partition("#")[0]) in ("captions", "sample") for name in chain.names)
    each: list[dict[str, list[str]]] = []
    readable: list[int] = []
    unreadable: list[Unreadable] = []
    with Counter(len(numbers), unit="examples") as progress:
        for done, number in enumerate(numbers, 1):
            try:
                example = source.read(number)
                kinds = _kinds(source, number, example)
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
    names = list(dict.fromkeys(name for kinds in each for name in kinds))
    groups = {name: [kinds.get(name, []) for kinds in each] for name in names}
    scores = _clip_scores(args.model, source, readable, groups) if args.model else None
    first = SOURCE if SOURCE in groups else "raw"
    truth = _truth(source, readable)
    quality = measure_quality(groups, source=first, is_true=truth, clip_scores=scores)
    return {
        "examples": len(source),
        "inspected": len(numbers),
        "unreadable": len(unreadable),
        "groups": quality,
    }


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
    from mmjax.generate.scene_graph import from_json, is_true

    if (scene := getattr(source, "scene", None)) is not None:
        return lambda row, text: is_true(scene(numbers[row]), text)
    if (record := getattr(source, "record", None)) is not None and "scene" in record(numbers[0]).fields:
        return lambda row, text: is_true(from_json(record(numbers[row]).fields["scene"])[0], text)
    return None


def _clip_scores(
    model: str, source: Source, numbers: Sequence[int], groups: dict[str, list[list[str]]]
) -> dict[str, tuple[float, float]]:
    """Mean CLIPScores of each kind: of captions with their image, and with that of the next example."""
    import mmjax
    from mmjax.evals.captions.clip_score import PREFIX, clip_scores
    from mmjax.inference.embedding import Embedding

    loaded = mmjax.load(model)
    shard = Embedding(loaded, source, kinds=("images",)).run(numbers)
    assert shard.images is not None
    place = {number: row for row, number in enumerate(shard.indices)}
    result = {}
    for name, each in groups.items():
        pairs = [(place[n], text) for n, texts in zip(numbers, each, strict=True) if n in place for text in texts]
        if pairs:
            rows, texts = np.array([row for row, _ in pairs]), loaded.encode_text([PREFIX + text for _, text in pairs])
            others = shard.images[(rows + 1) % len(shard.images)]
            result[name] = tuple(float(clip_scores(x, texts).mean()) for x in (shard.images[rows], others))
    return result  # type: ignore[return-value]  # two numbers each
