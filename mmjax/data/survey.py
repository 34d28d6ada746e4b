"""What a source holds: fields, pictures, captions, and what is broken."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.order import Part
from mmjax.data.packing import schema_of
from mmjax.data.progress import Counter, amount
from mmjax.data.reader import Source
from mmjax.data.reencoding import check, format_of
from mmjax.data.sample import Example, Unreadable
from mmjax.data.tokenizer import Tokenizer

KEYS_SHOWN = 5
_BOUND = 1 << 10  # examples in the hands of the threads


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
    """Facts about the examples of those ``numbers``, every picture of which is decoded; JSON can hold the result."""
    seen = list(_seen(source, numbers, threads))
    good = [entry for entry in seen if entry.problem is None]
    broken = [entry.problem for entry in seen if entry.problem is not None]
    at_opening = list(getattr(source, "skipped", ()))
    captions = [entry.example["captions"] for entry in good]
    facts: dict[str, Any] = {
        "examples": len(source),
        "inspected": len(seen),
        "group": source.group,
        "pictures": {name: _pictures(good, name) for name in source.modalities},
        "fields": _fields([entry.example for entry in good], source),
        "captions": _captions(captions, tokenizer),
        "broken": {"when opened": _reasons(at_opening), "when read": _reasons(broken)},
    }
    parts: Sequence[Part] = getattr(source, "parts", ())
    if parts:
        total = sum(part.weight for part in parts)
        facts["parts"] = [{"name": part.name, "examples": part.size, "share": part.weight / total} for part in parts]
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
    for part in facts.get("parts", ()):
        lines.append(f"{part['name']}: {part['examples']:,} examples, {part['share']:.1%} of the rows")
    for when, reasons in facts["broken"].items():
        for reason, entry in reasons.items():
            examples = ", ".join(entry["keys"]) + (", …" if entry["count"] > len(entry["keys"]) else "")
            lines.append(f"broken ({when}): {reason}: {entry['count']:,}: {examples}")
    if not any(facts["broken"].values()):
        lines.append("broken: none")
    return "\n".join(lines)


def _seen(source: Source, numbers: Sequence[int], threads: int) -> Iterable[_Seen]:
    with Counter(len(numbers), unit="examples") as progress, ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in range(0, len(numbers), _BOUND):
            yield from pool.map(lambda number: _look(source, number), numbers[start : start + _BOUND])
            progress(min(start + _BOUND, len(numbers)))


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


def _pictures(seen: Sequence[_Seen], modality: str) -> dict[str, Any]:
    found = [picture for entry in seen for picture in entry.pictures if picture.modality == modality]
    formats = collections.Counter(picture.format for picture in found)
    return {
        "count": len(found),
        "storage": "pixels" if set(formats) == {"pixels"} else "encoded",
        "formats": {kind: count / len(found) for kind, count in formats.most_common()},
        "height": _spread([picture.height for picture in found]),
        "width": _spread([picture.width for picture in found]),
        "bytes": _spread([picture.bytes for picture in found]),
    }


def _captions(captions: Sequence[Sequence[str]], tokenizer: Tokenizer) -> dict[str, Any]:
    texts = [caption for several in captions for caption in several]
    facts: dict[str, Any] = {"count": len(texts), "context_length": tokenizer.context_length}
    if texts:
        rows = tokenizer(texts)
        # The end of a text is its first EOS; what was cut counts as long as the context.
        lengths = (rows == tokenizer.eos_id).argmax(axis=1) + 1
        counts = [len(several) for several in captions]
        facts |= {
            "per_image": {"least": min(counts), "mean": len(texts) / len(counts), "most": max(counts)},
            "duplicates": 1 - len(set(texts)) / len(texts),
            "tokens": _spread(lengths.tolist()),
            "truncated": tokenizer.truncated_share(texts),
        }
    return facts


def _fields(examples: Sequence[Example], source: Source) -> dict[str, str]:
    schema = schema_of(examples, modalities=source.modalities)
    facts = {}
    for name, field in schema.fields.items():
        values = [example[name] for example in examples if example.get(name) is not None]
        facts[name] = field.kind if len(values) == len(examples) else f"{field.kind}, in {len(values):,} examples"
        if name == "label" and getattr(source, "class_names", None) is not None:
            facts[name] += f"; {len(set(values)):,} of {len(source.class_names):,} classes"  # type: ignore[attr-defined]
        elif field.kind in ("integer", "number"):
            facts[name] += f"; {min(values):.4g} to {max(values):.4g}, mean {statistics.fmean(values):.4g}"
    return facts | {name: f"not text or numbers: {reason}" for name, reason in schema.left_out.items()}


def _reasons(entries: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, reason, _ in entries:
        entry = found.setdefault(reason, {"count": 0, "keys": []})
        entry["count"] += 1
        if len(entry["keys"]) < KEYS_SHOWN:
            entry["keys"].append(key)
    return dict(sorted(found.items(), key=lambda item: -item[1]["count"]))


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def _three(spread: dict[str, float], form: Callable[[float], str] = "{:,.0f}".format) -> str:
    return " / ".join(form(spread[name]) for name in ("least", "median", "most"))
