"""What a source holds: fields, pictures, captions, and what is broken."""

from __future__ import annotations

import array
import collections
import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.preparing.packing import Schema, schema_of
from mmjax.data.preparing.progress import Counter, amount
from mmjax.data.preparing.reencoding import check, format_of
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer

KEYS_SHOWN = 5
_BOUND = 1 << 10  # examples in the hands of the threads
_NUMBER = (int, float, np.integer, np.floating)


class _Picture(NamedTuple):
    modality: str
    format: str
    height: int
    width: int
    bytes: int


class _Seen(NamedTuple):
    """What is kept of one example: all but its pictures."""

    example: Example
    pictures: list[_Picture]
    problem: tuple[str, str, str] | None  # key, reason, detail


def survey(source: Source, *, tokenizer: Tokenizer, numbers: Sequence[int], threads: int = 1) -> dict[str, Any]:
    """Facts about the examples of those ``numbers``, every picture of which is decoded; JSON can hold the result.

    Of millions of examples, some tens of bytes each stay in memory.
    """
    pictures = {name: _Pictures() for name in source.modalities}
    captions, fields = _Captions(tokenizer), _Fields(source)
    broken = _Reasons()
    with Counter(len(numbers), unit="examples") as progress, ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in range(0, len(numbers), _BOUND):
            seen = list(pool.map(lambda number: _look(source, number), numbers[start : start + _BOUND]))
            good = [entry for entry in seen if entry.problem is None]
            for entry in seen:
                if entry.problem is not None:
                    broken.add(*entry.problem)
                for picture in entry.pictures:
                    pictures[picture.modality].add(picture)
            captions.add([entry.example["captions"] for entry in good])
            fields.add([entry.example for entry in good])
            progress(start + len(seen))
    at_opening = _Reasons()
    for key, reason, _ in source.unreadable:
        at_opening.add(key, reason)
    facts: dict[str, Any] = {
        "examples": len(source),
        "inspected": len(numbers),
        "group": source.group,
        "pictures": {name: tally.facts() for name, tally in pictures.items()},
        "fields": fields.facts(),
        "captions": captions.facts(),
        "broken": {"when opened": at_opening.facts(), "when read": broken.facts()},
    }
    if source.components:
        total = sum(component.weight for component in source.components)
        facts["components"] = [
            {"name": name, "examples": size, "fraction": weight / total} for name, size, weight in source.components
        ]
    return facts


def text(facts: dict[str, Any]) -> str:
    """The facts for people."""
    seen = facts["inspected"]
    lines = [f"{facts['examples']:,} examples, {'all' if seen == facts['examples'] else f'{seen:,}'} of them read"]
    if facts["group"] > 1:
        lines[0] += f", in groups of {facts['group']}"
    for name, p in facts["pictures"].items():
        if p["count"]:
            kinds = ", ".join(f"{kind} {share:.0%}" if share < 1 else kind for kind, share in p["formats"].items())
            lines.append(f"{name}: {p['storage']}: {kinds}; {_three(p['bytes'], amount)}")
            lines.append(f"  height {_three(p['height'])}, width {_three(p['width'])}  (least, median, most)")
    c = facts["captions"]
    if c["count"]:
        lines.append(
            f"captions: {c['per_image']['mean']:.3g} an image ({c['per_image']['least']} to {c['per_image']['most']}), "
            f"{c['duplicates']:.1%} are repeated"
        )
        lines.append(
            f"  tokens {_three(c['tokens'])}; {c['truncated']:.1%} are cut at the context length of "
            f"{c['context_length']}"
        )
    for name, fact in facts["fields"].items():
        lines.append(f"{name}: {fact}")
    for component in facts.get("components", ()):
        lines.append(
            f"{component['name']}: {component['examples']:,} examples, {component['fraction']:.1%} of the rows"
        )
    for when, reasons in facts["broken"].items():
        for reason, entry in reasons.items():
            examples = ", ".join(entry["keys"]) + (", …" if entry["count"] > len(entry["keys"]) else "")
            lines.append(f"broken ({when}): {reason}: {entry['count']:,}: {examples}")
    if not any(facts["broken"].values()):
        lines.append("broken: none")
    return "\n".join(lines)


def _look(source: Source, number: int) -> _Seen:
    key = f"example {number}"
    try:
        example = source[number]
        key = str(example.get("key", key))
        pictures = []
        for name in source.modalities:
            data = example[name]
            height, width = check(data, key=key)
            raw = isinstance(data, np.ndarray)
            kind = "pixels" if raw else format_of(data) or "other"
            pictures.append(_Picture(name, kind, height, width, data.nbytes if raw else len(data)))
        if not example["captions"]:
            raise Unreadable("no caption", key=key)
    except Unreadable as error:
        return _Seen({}, [], (error.key or key, error.reason, error.detail))
    return _Seen({k: v for k, v in example.items() if k not in source.modalities}, pictures, None)


class _Pictures:
    """Tally of one modality's pictures."""

    def __init__(self) -> None:
        self._formats: collections.Counter[str] = collections.Counter()
        self._numbers = {name: array.array("q") for name in ("height", "width", "bytes")}

    def add(self, picture: _Picture) -> None:
        self._formats[picture.format] += 1
        for name, values in self._numbers.items():
            values.append(getattr(picture, name))

    def facts(self) -> dict[str, Any]:
        count = self._formats.total()
        return {
            "count": count,
            "storage": "pixels" if set(self._formats) == {"pixels"} else "encoded",
            "formats": {kind: number / count for kind, number in self._formats.most_common()},
            **{name: _spread(values) for name, values in self._numbers.items()},
        }


class _Captions:
    """Tally of captions; texts are told apart by 64 bits of a hash."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._each, self._lengths, self._hashes = array.array("q"), array.array("q"), array.array("Q")
        self._truncated = 0.0

    def add(self, captions: Sequence[Sequence[str]]) -> None:
        texts = [caption for several in captions for caption in several]
        if not texts:
            return
        self._each.extend(len(several) for several in captions)
        # The end of a text is its first EOS; what was cut counts as long as the context.
        self._lengths.extend(((self._tokenizer(texts) == self._tokenizer.eos_id).argmax(axis=1) + 1).tolist())
        self._truncated += self._tokenizer.truncated_share(texts) * len(texts)
        digests = (hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest() for text in texts)
        self._hashes.extend(int.from_bytes(digest, "little") for digest in digests)

    def facts(self) -> dict[str, Any]:
        count = len(self._lengths)
        facts: dict[str, Any] = {"count": count, "context_length": self._tokenizer.context_length}
        if count:
            facts |= {
                "per_image": {"least": min(self._each), "mean": count / len(self._each), "most": max(self._each)},
                "duplicates": 1 - len(np.unique(np.frombuffer(self._hashes, np.uint64))) / count,
                "tokens": _spread(self._lengths),
                "truncated": self._truncated / count,
            }
        return facts


class _Fields:
    """Tally of the other fields: their types by the first examples, the numbers by all."""

    def __init__(self, source: Source):
        self._modalities = source.modalities
        self._classes = source.class_names
        self._schema: Schema | None = None
        self._count = 0
        self._numbers: dict[str, tuple[int, float, float, float]] = {}  # count, least, most, sum
        self._labels: set[int] = set()

    def add(self, examples: Sequence[Example]) -> None:
        if self._schema is None and examples:
            self._schema = schema_of(examples, modalities=self._modalities)
        if self._schema is None:
            return
        self._count += len(examples)
        for name, field in self._schema.fields.items():
            if field.kind not in ("integer", "number"):
                continue
            values = [example[name] for example in examples if isinstance(example.get(name), _NUMBER)]
            if values:
                count, least, most, total = self._numbers.get(name, (0, math.inf, -math.inf, 0.0))
                self._numbers[name] = (
                    count + len(values), min(least, *values), max(most, *values), total + float(sum(values)),
                )  # fmt: skip
            if name == "label":
                self._labels.update(values)

    def facts(self) -> dict[str, str]:
        if self._schema is None:
            return {}
        facts = {name: str(field.kind) for name, field in self._schema.fields.items()}
        for name, (count, least, most, total) in self._numbers.items():
            if count < self._count:
                facts[name] += f", in {count:,} examples"
            if name == "label" and self._classes is not None:
                facts[name] += f"; {len(self._labels):,} of {len(self._classes):,} classes"
            else:
                facts[name] += f"; {least:.4g} to {most:.4g}, mean {total / count:.4g}"
        return facts | {name: f"not text or numbers: {reason}" for name, reason in self._schema.left_out.items()}


class _Reasons:
    """How many are broken in which way, and which they are."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def add(self, key: str, reason: str, detail: str = "") -> None:
        entry = self._found.setdefault(reason, {"count": 0, "keys": []})
        entry["count"] += 1
        if len(entry["keys"]) < KEYS_SHOWN:
            entry["keys"].append(key)

    def facts(self) -> dict[str, Any]:
        return dict(sorted(self._found.items(), key=lambda item: -item[1]["count"]))


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _three(spread: dict[str, float], form: Callable[[float], str] = "{:,.0f}".format) -> str:
    return " / ".join(form(spread[name]) for name in ("least", "median", "most"))
