"""Surveys a source: its fields, pictures, captions, and unreadable examples."""

from __future__ import annotations

import array
import collections
import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.printable import printable
from mmjax.data.preparing.progress import Counter, amount
from mmjax.data.preparing.reencoding import check, format_of, is_transparent
from mmjax.data.preparing.schema import Schema, infer_schema
from mmjax.data.sample import Example, Unreadable, as_unreadable
from mmjax.data.sequences import frames
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer

KEYS_SHOWN = 5
_SEQUENCES = "sequences"  # the format of sequences of features
_CHUNK = 1 << 10  # examples that the threads read at a time
_NUMBER = (int, float, np.integer, np.floating)


class _Picture(NamedTuple):
    modality: str
    format: str
    height: int
    width: int
    bytes: int
    transparent: bool


class _Inspected(NamedTuple):
    """One example without its pictures."""

    example: Example
    pictures: list[_Picture]
    problem: tuple[str, str, str] | None  # key, reason, detail


def survey(source: Source, *, tokenizer: Tokenizer, numbers: Sequence[int], threads: int = 1) -> dict[str, Any]:
    """Reads the examples of those ``numbers``, decodes all their pictures, and returns statistics as JSON values.

    Memory grows by some tens of bytes per example.
    """
    pictures = {name: _Pictures() for name in source.modalities}
    captions, fields = _Captions(tokenizer), _Fields(source)
    unreadable = _Reasons()
    with Counter(len(numbers), unit="examples") as progress, ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in range(0, len(numbers), _CHUNK):
            seen = list(pool.map(lambda number: _inspect(source, number), numbers[start : start + _CHUNK]))
            good = [entry for entry in seen if entry.problem is None]
            for entry in seen:
                if entry.problem is not None:
                    unreadable.add(*entry.problem)
                for picture in entry.pictures:
                    pictures[picture.modality].add(picture)
            captions.add([entry.example["captions"] for entry in good])
            fields.add([entry.example for entry in good])
            progress(start + len(seen))
    at_opening = _Reasons()
    for key, reason, detail in source.unreadable:
        at_opening.add(key, reason, detail)
    summary: dict[str, Any] = {
        "source": source.reader,
        "examples": len(source),
        "inspected": len(numbers),
        "group": source.group,
        "pictures": {name: tally.summary() for name, tally in pictures.items()},
        "fields": fields.summary(),
        "captions": captions.summary(),
        "unreadable": {"when opened": at_opening.summary(), "when read": unreadable.summary()},
    }
    if source.components:
        total = sum(component.weight for component in source.components)
        summary["components"] = [
            {"name": name, "examples": size, "fraction": weight / total} for name, size, weight in source.components
        ]
    return summary


def text(summary: dict[str, Any]) -> str:
    """The statistics as text."""
    seen = summary["inspected"]
    read = "all" if seen == summary["examples"] else f"{seen:,}"
    lines = [f"{summary['source']}: {summary['examples']:,} examples, {read} of them read"]
    if summary["group"] > 1:
        lines[0] += f", in groups of {summary['group']}"
    for name, p in summary["pictures"].items():
        if p["count"]:
            kinds = ", ".join(f"{kind} {part:.0%}" if part < 1 else kind for kind, part in p["formats"].items())
            lines.append(f"{name}: {p['storage']}: {kinds}; {_format_stats(p['bytes'], amount)}")
            first, second = ("frames", "features") if p["storage"] == _SEQUENCES else ("height", "width")
            lines.append(
                f"  {first} {_format_stats(p['height'])}, {second} {_format_stats(p['width'])}  (min, median, max)"
            )
            if p["transparent"]:
                lines.append(f"  transparent pixels in {p['transparent']:.1%} of them, put on data.background")
    c = summary["captions"]
    if c["count"]:
        lines.append(
            f"captions: {c['per_image']['mean']:.3g} per image ({c['per_image']['min']} to {c['per_image']['max']}), "
            f"{c['duplicates']:.1%} are duplicates"
        )
        lines.append(
            f"  tokens {_format_stats(c['tokens'])}; {c['truncated']:.1%} exceed the context length of "
            f"{c['context_length']}"
        )
        if c["unknown"]:
            lines.append(f"  {c['unknown']:.1%} of the words are unknown; data.tokenizer.name=bpe knows every word")
    for name, fact in summary["fields"].items():
        lines.append(f"{printable(name)}: {fact}")
    for component in summary.get("components", ()):
        lines.append(
            f"{component['name']}: {component['examples']:,} examples, {component['fraction']:.1%} of the rows"
        )
    for when, reasons in summary["unreadable"].items():
        for reason, entry in reasons.items():
            examples = ", ".join(map(printable, entry["keys"])) + (", …" if entry["count"] > len(entry["keys"]) else "")
            first = f" (the first one: {printable(entry['detail'])})" if entry["detail"] else ""
            lines.append(f"unreadable ({when}): {reason}: {entry['count']:,}: {examples}{first}")
    if not any(summary["unreadable"].values()):
        lines.append("unreadable: none")
    return "\n".join(lines)


def _inspect(source: Source, number: int) -> _Inspected:
    key = f"example {number}"
    try:
        example = source[number]
        key = str(example.get("key", key))
        pictures = []
        for name in source.modalities:
            data = example[name]
            if isinstance(data, np.ndarray) and data.ndim == 2:
                pictures.append(_Picture(name, _SEQUENCES, *frames.size_of(data), data.nbytes, False))
                continue
            height, width = check(data, key=key)
            raw = isinstance(data, np.ndarray)
            kind = "pixels" if raw else format_of(data) or "other"
            pictures.append(
                _Picture(name, kind, height, width, data.nbytes if raw else len(data), is_transparent(data, key=key))
            )
        if not example["captions"]:
            raise Unreadable("no caption", key=key)
    except Exception as error:
        problem = as_unreadable(error, key)
        return _Inspected({}, [], (problem.key, problem.reason, problem.detail))
    return _Inspected({k: v for k, v in example.items() if k not in source.modalities}, pictures, None)


class _Pictures:
    """Statistics of one modality's pictures."""

    def __init__(self) -> None:
        self._formats: collections.Counter[str] = collections.Counter()
        self._transparent = 0
        self._numbers = {name: array.array("q") for name in ("height", "width", "bytes")}

    def add(self, picture: _Picture) -> None:
        self._formats[picture.format] += 1
        self._transparent += picture.transparent
        for name, values in self._numbers.items():
            values.append(getattr(picture, name))

    def summary(self) -> dict[str, Any]:
        count, kinds = self._formats.total(), set(self._formats)
        return {
            "count": count,
            "storage": kinds.pop() if kinds in ({"pixels"}, {_SEQUENCES}) else "encoded",
            "formats": {kind: number / count for kind, number in self._formats.most_common()},
            "transparent": self._transparent / max(count, 1),
            **{name: _statistics(values) for name, values in self._numbers.items()},
        }


class _Captions:
    """Statistics of captions; duplicates are found by a 64-bit hash."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._each, self._lengths, self._hashes = array.array("q"), array.array("q"), array.array("Q")
        self._truncated = self._unknown = 0.0

    def add(self, captions: Sequence[Sequence[str]]) -> None:
        texts = [caption for several in captions for caption in several]
        if not texts:
            return
        self._each.extend(len(several) for several in captions)
        # A text ends at its first EOS; truncated ones count as long as the context.
        self._lengths.extend(((self._tokenizer(texts) == self._tokenizer.eos_id).argmax(axis=1) + 1).tolist())
        self._truncated += int(self._tokenizer.is_truncated(texts).sum())
        self._unknown += self._tokenizer.unknown_fraction(texts) * len(texts)
        digests = (hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest() for text in texts)
        self._hashes.extend(int.from_bytes(digest, "little") for digest in digests)

    def summary(self) -> dict[str, Any]:
        count = len(self._lengths)
        summary: dict[str, Any] = {"count": count, "context_length": self._tokenizer.context_length}
        if count:
            summary |= {
                "per_image": {"min": min(self._each), "mean": count / len(self._each), "max": max(self._each)},
                "duplicates": 1 - len(np.unique(np.frombuffer(self._hashes, np.uint64))) / count,
                "tokens": _statistics(self._lengths),
                "truncated": self._truncated / count,
                "unknown": self._unknown / count,
            }
        return summary


class _Fields:
    """Statistics of the other fields: types from the first examples, numbers from all."""

    def __init__(self, source: Source):
        self._modalities = source.modalities
        self._classes = source.class_names
        self._schema: Schema | None = None
        self._count = 0
        self._numbers: dict[str, tuple[int, float, float, float]] = {}  # count, least, most, sum
        self._labels: set[int] = set()

    def add(self, examples: Sequence[Example]) -> None:
        if self._schema is None and examples:
            self._schema = infer_schema(examples, modalities=self._modalities)
        if self._schema is None:
            return
        self._count += len(examples)
        for name, field in self._schema.fields.items():
            if field.kind not in ("integer", "number"):
                continue
            values = [example[name] for example in examples if isinstance(example.get(name), _NUMBER)]
            if values:
                count, smallest, largest, total = self._numbers.get(name, (0, math.inf, -math.inf, 0.0))
                self._numbers[name] = (
                    count + len(values), min(smallest, *values), max(largest, *values), total + float(sum(values)),
                )  # fmt: skip
            if name == "label":
                self._labels.update(values)

    def summary(self) -> dict[str, str]:
        if self._schema is None:
            return {}
        summary = {name: str(field.kind) for name, field in self._schema.fields.items()}
        for name, (count, smallest, largest, total) in self._numbers.items():
            if count < self._count:
                summary[name] += f", in {count:,} examples"
            if name == "label" and self._classes is not None:
                summary[name] += f"; {len(self._labels):,} of {len(self._classes):,} classes"
            else:
                summary[name] += f"; {smallest:.4g} to {largest:.4g}, mean {total / count:.4g}"
        return summary | {name: f"not text or numbers: {reason}" for name, reason in self._schema.left_out.items()}


class _Reasons:
    """Counts and first keys of unreadable examples, by reason."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Any]] = {}

    def add(self, key: str, reason: str, detail: str = "") -> None:
        entry = self._entries.setdefault(reason, {"count": 0, "keys": [], "detail": detail})
        entry["count"] += 1
        if len(entry["keys"]) < KEYS_SHOWN:
            entry["keys"].append(key)

    def summary(self) -> dict[str, Any]:
        return dict(sorted(self._entries.items(), key=lambda item: -item[1]["count"]))


def _statistics(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _format_stats(statistics: dict[str, float], form: Callable[[float], str] = "{:,.0f}".format) -> str:
    return " / ".join(form(statistics[name]) for name in ("min", "median", "max"))
