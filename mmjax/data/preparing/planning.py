"""What a prepared data set will be like, from a look at some of the examples, and whether that fits what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.preparing.packing import Schema, schema_of
from mmjax.data.preparing.prepared import Folder, Plan
from mmjax.data.preparing.reencoding import Reencoding, format_of
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source

SAMPLED = 128  # examples that fields and the number of shards are judged by
_FEWEST, _SHARED_BY = 256, 8  # small data, too, makes work for some processes, unless so few examples are left for each


def read(source: Source, index: int, reencoding: Reencoding) -> tuple[Example, dict[str, bytes]]:
    """An example, and its pictures as they will be stored."""
    example = source[index]
    key = str(example.get("key", f"example {index}"))
    pictures = {name: reencoding(example[name], key=key) for name in source.modalities}
    if not example["captions"]:
        raise Unreadable("no caption", key=key)
    return example, pictures


def spread(count: int, most: int) -> Sequence[int]:
    """At most so many numbers below ``count``, evenly spaced."""
    if most >= count:
        return range(count)
    return [place * count // most for place in range(most)]


def planned(
    source: Source,
    reencoding: Reencoding,
    asked: Mapping[str, Any],
    *,
    examples: int,
    shards: int | None,
    shard_mib: int,
    drop: Sequence[str],
) -> Plan:
    """What follows from a look at some of the examples."""
    seen: list[tuple[Example, dict[str, bytes]]] = []
    broken: Unreadable | None = None
    for index in spread(examples, SAMPLED):
        try:
            seen.append(read(source, index, reencoding))
        except Unreadable as error:
            broken = error
    if not seen:
        raise ConfigError(
            f"none of the source's examples can be used; the last one looked at: {broken or 'it is empty'}"
        )
    schema = schema_of((example for example, _ in seen), modalities=source.modalities, drop=drop)
    if shards is None:
        each = sum(len(data) for _, pictures in seen for data in pictures.values()) / len(seen)
        each += sum(len(caption) for example, _ in seen for caption in example["captions"]) / len(seen)
        shards = max(round(each * examples / (shard_mib << 20)), min(examples // _FEWEST, _SHARED_BY), 1)
    if shards > examples:
        raise ConfigError(f"--shards={shards}: there are only {examples} examples; use fewer")
    formats = {}
    for name in source.modalities:
        kinds = {format_of(pictures[name]) for _, pictures in seen}
        kind = kinds.pop() if len(kinds) == 1 else None
        formats[name] = kind if kind in ("jpeg", "png") else None
    return Plan(
        asked=asked,
        schema=schema,
        examples=examples,
        shards=shards,
        formats=formats,
        class_names=None if source.class_names is None else tuple(source.class_names),
        skipped=tuple(source.unreadable),
    )


def common_schema(plan: Plan, others: Sequence[tuple[str, Plan]], split: str) -> Schema:
    """The schema for another split of a data set, whose splits all have the same."""
    if not others:
        return plan.schema
    name, other = others[0]
    mine, theirs = plan.schema, other.schema
    if mine.modalities != theirs.modalities:
        raise ConfigError(
            f"--split={split}: has pictures {mine.modalities}, the split {name} {theirs.modalities}; use another --name"
        )
    new = [field for field, kind in mine.fields.items() if theirs.fields.get(field) != kind]
    if new:
        raise ConfigError(
            f"--split={split}: has the field(s) {', '.join(new)}, and the split {name} has none such; "
            f"prepare this split first, leave them out with --drop={','.join(new)}, or use another --name"
        )
    needed = [field for field, kind in theirs.fields.items() if kind.kind == "integer" and field not in mine.fields]
    if needed:
        raise ConfigError(
            f"--split={split}: has no {', '.join(needed)}, which the split {name} has; use another --name"
        )
    if plan.class_names is not None and other.class_names not in (None, plan.class_names):
        raise ConfigError(f"--split={split}: its classes are not those of the split {name}; use another --name")
    return theirs


def check_same(plan: Plan, fresh: Plan, folder: Folder) -> None:
    """Raises where a split was begun with other settings than those asked for now."""
    begun, now = plan.to_json()["asked"], fresh.to_json()["asked"]
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key):
            raise ConfigError(
                f"{key} is {now.get(key)!r}, and {folder.path} was begun with {begun.get(key)!r} for its split "
                f"{folder.split}; use that again, or another --version or --name"
            )
