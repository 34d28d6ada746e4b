"""Plans a prepared split from a sample of its examples, and checks it against what the folder already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.preparing.reencoding import Reencoding, format_of
from mmjax.data.preparing.schema import Schema, infer_schema
from mmjax.data.preparing.split_folder import Plan, SplitFolder
from mmjax.data.sample import Example, Unreadable, as_unreadable
from mmjax.data.source import Source

SAMPLED = 128  # examples from which fields and the number of shards are inferred
_MIN_PER_SHARD, _MIN_SHARDS = 256, 8  # small data has 8 shards for parallel writing, if each gets 256 examples


def read_example(source: Source, index: int, reencoding: Reencoding) -> tuple[Example, dict[str, bytes]]:
    """The example at ``index``, and its pictures as they will be stored."""
    example = source.read(index)
    key = str(example.get("key", f"example {index}"))
    try:
        pictures = {name: reencoding(example[name], key=key) for name in source.modalities}
        if not example["captions"]:
            raise Unreadable("no caption")
    except Exception as error:
        raise as_unreadable(error, key) from error
    return example, pictures


def evenly_spaced(count: int, limit: int) -> Sequence[int]:
    """At most ``limit`` evenly spaced numbers below ``count``."""
    if limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]


def make_plan(
    source: Source,
    reencoding: Reencoding,
    asked: Mapping[str, Any],
    *,
    examples: int,
    shards: int | None,
    shard_mib: int,
    drop: Sequence[str],
) -> Plan:
    """Infers the schema, the number of shards and the picture formats from a sample; see ``prepare``."""
    sample: list[tuple[Example, dict[str, bytes]]] = []
    first: Unreadable | None = None
    for index in evenly_spaced(examples, SAMPLED):
        try:
            sample.append(read_example(source, index, reencoding))
        except Unreadable as error:
            first = first or error
    if not sample:
        raise ConfigError(f"none of the source's examples can be used; the first one: {first or 'it is empty'}")
    schema = infer_schema((example for example, _ in sample), modalities=source.modalities, drop=drop)
    if shards is None:
        each = sum(len(data) for _, pictures in sample for data in pictures.values()) / len(sample)
        each += sum(len(caption) for example, _ in sample for caption in example["captions"]) / len(sample)
        shards = max(round(each * examples / (shard_mib << 20)), min(examples // _MIN_PER_SHARD, _MIN_SHARDS), 1)
    if shards > examples:
        raise ConfigError(f"--shards={shards}: there are only {examples} examples; use fewer")
    formats = {}
    for name in source.modalities:
        kinds = {format_of(pictures[name]) for _, pictures in sample}
        kind = kinds.pop() if len(kinds) == 1 else None
        formats[name] = kind if kind in ("jpeg", "png") else None
    return Plan(
        asked=asked,
        schema=schema,
        examples=examples,
        shards=shards,
        formats=formats,
        class_names=None if source.class_names is None else tuple(source.class_names),
        unreadable=tuple(source.unreadable),
    )


def common_schema(plan: Plan, others: Sequence[tuple[str, Plan]], split: str) -> Schema:
    """The schema that this split must use: that of the data set's other splits, if there are any."""
    if not others:
        return plan.schema
    name, other = others[0]
    mine, theirs = plan.schema, other.schema
    if mine.modalities != theirs.modalities:
        raise ConfigError(
            f"--split={split}: has {mine.modalities}, the split {name} {theirs.modalities}; use another --name"
        )
    added = [field for field, kind in mine.fields.items() if theirs.fields.get(field) != kind]
    if added:
        raise ConfigError(
            f"--split={split}: has the field(s) {', '.join(added)}, which the split {name} lacks; "
            f"prepare this split first, leave them out with --drop={','.join(added)}, or use another --name"
        )
    needed = [field for field, kind in theirs.fields.items() if kind.kind == "integer" and field not in mine.fields]
    if needed:
        raise ConfigError(
            f"--split={split}: has no {', '.join(needed)}, which the split {name} has; use another --name"
        )
    if plan.class_names is not None and other.class_names not in (None, plan.class_names):
        raise ConfigError(f"--split={split}: its classes are not those of the split {name}; use another --name")
    return theirs


def check_same(plan: Plan, new_plan: Plan, folder: SplitFolder) -> None:
    """Raises ConfigError if the split was begun with other options than those of now."""
    begun, now = plan.to_json()["asked"], new_plan.to_json()["asked"]
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key):
            raise ConfigError(
                f"{key} is {now.get(key)!r}, but {folder.path} was begun with {begun.get(key)!r} for its split "
                f"{folder.split}; use that again, or another --version or --name"
            )
