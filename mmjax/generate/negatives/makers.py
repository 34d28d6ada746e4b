"""What all of them share: examples with captions, rows of the table, and fills that are tried until one is accepted."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mmjax.generate.backend import Failure, MaskFiller

MASK = "[MASK]"

Row = dict[str, Any]
"""Of the table: key, kind, caption, negative, valid, method."""


class CaptionedExample(NamedTuple):
    """An example: its place in the source, its key and its captions."""

    place: int
    key: str
    captions: Sequence[str]


class Maker(Protocol):
    """Makes negatives of several examples at a time; failures are counted by reason."""

    failures: collections.Counter[str]

    def rows(self, examples: Sequence[CaptionedExample]) -> list[Row]:
        """The negatives of all examples, in their order."""


def draw_seed(*values: object) -> int:
    """A number of 31 bits that depends on the values alone."""
    text = "\0".join(map(str, values)).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") >> 1


def fill_until(
    filler: MaskFiller,
    masked: Sequence[str],
    *,
    temperature: float,
    tries: int,
    seed: Callable[[int, int], int],
    accept: Callable[[Sequence[int], Sequence[str]], Sequence[bool | Failure]],
) -> list[str | Failure | None]:
    """Each text with its masks filled in, as soon as the result is accepted; None where none of the tries was.

    Args:
        filler: The model.
        masked: The texts.
        temperature: Of the draws.
        tries: Of each text.
        seed: Of a text's number and the number of its try.
        accept: Takes numbers of texts and their fills.
    """
    results: list[str | Failure | None] = [None] * len(masked)
    pending = list(range(len(masked)))
    for attempt in range(tries):
        if not pending:
            break
        texts, numbers = [], []
        fills = filler.fill([masked[i] for i in pending], temperature, [seed(i, attempt) for i in pending])
        for i, fill in zip(pending, fills, strict=True):
            if isinstance(fill, Failure):
                results[i] = fill
            else:
                numbers.append(i)
                texts.append(fill)
        pending = []
        for i, text, verdict in zip(numbers, texts, accept(numbers, texts), strict=True):
            if isinstance(verdict, Failure):
                results[i] = verdict
            elif verdict:
                results[i] = text
            else:
                pending.append(i)
    return results


def to_rows(
    method: str,
    items: Sequence[tuple[CaptionedExample, str, str]],
    results: Sequence[str | Failure | None],
    failures: collections.Counter[str],
) -> list[Row]:
    """Rows of (example, kind, true caption) and what came of them; none equals a caption of its example or another.

    Failures are counted.
    """
    rows: list[Row] = []
    known: dict[int, set[str]] = {}
    for (example, kind, caption), result in zip(items, results, strict=True):
        if isinstance(result, Failure):
            failures[result.reason] += 1
            continue
        texts = known.setdefault(example.place, {text.casefold() for text in example.captions})
        if result is not None and result.casefold() not in texts:
            texts.add(result.casefold())
            row = {"key": example.key, "kind": kind, "caption": caption, "negative": result}
            rows.append({**row, "valid": True, "method": method})
    return rows
