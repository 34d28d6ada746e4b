"""Negatives of a source's captions, as rows of a table."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmjax.core.config import ConfigError
from mmjax.data.negatives import rules, swaps, units
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source
from mmjax.data.text import captions_of

Method = Literal["rules", "swap", "units"]
KINDS: dict[Method, tuple[str, ...]] = {"rules": rules.KINDS, "swap": swaps.KINDS, "units": units.KINDS}
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "kind", "caption", "negative")]).append(
    pa.field("valid", pa.bool_())
).append(pa.field("method", pa.string()))  # fmt: skip

Edit = Callable[[str, np.random.Generator], str | None]


class Generator:
    """Makes at most one negative of each kind for each caption, or one for each unit of it.

    They are a function of the seed, the key and the caption.

    Args:
      method: ``rules`` exchanges words for others of their list, ``swap`` two spans of a caption, ``units`` makes foils
        of the entities and relations in it.
      kinds: of the method.
      seed: of the choices.
    """

    def __init__(self, method: Method, kinds: Iterable[str], *, seed: int):
        self._method, self._kinds, self._seed = method, tuple(kinds), seed
        self._find_tags = swaps.tagger(f"--method={method}") if method != "rules" else None

    def rows(self, key: str, captions: Sequence[str]) -> list[dict[str, Any]]:
        """The negatives of an example; none equals one of its captions, none comes twice."""
        edits = []
        for caption in captions:
            digest = hashlib.blake2b(f"{self._seed}\0{key}\0{caption}".encode("utf-8", "backslashreplace"))
            random = np.random.default_rng(int.from_bytes(digest.digest()[:16], "little"))
            edits += self._edits(caption, random)
        # A foil may be another unit of the picture, and so be true.
        known = {text.casefold() for text in (*captions, *(true for _, true, _ in edits))}
        rows, seen = [], set[str]()
        for kind, true, negatives in edits:
            negative = next((text for text in negatives if text.casefold() not in known), None)
            is_unit = self._method == "units"
            if negative is not None and not (is_unit and true.casefold() in seen):
                seen.add(true.casefold())
                known |= set() if is_unit else {negative.casefold()}
                row = {"key": key, "kind": kind, "caption": true, "negative": negative}
                rows.append({**row, "valid": True, "method": self._method})
        return rows

    def _edits(self, caption: str, random: np.random.Generator) -> list[tuple[str, str, list[str]]]:
        """Kind, true text, and what may be a false version of it, in the order of preference."""
        if self._find_tags is None:
            made = [(f"replace_{kind}", rules.replace_words(caption, kind, random)) for kind in self._kinds]
        elif self._method == "units":
            found_units = units.find_units(caption, random, find_tags=self._find_tags)
            return [unit for unit in found_units if unit[0] in self._kinds]
        else:
            tagged = swaps.Tagged(caption, find_tags=self._find_tags)
            made = [(f"swap_{kind}", tagged.swap(kind, random)) for kind in self._kinds]
        return [(kind, caption, [] if negative is None else [negative]) for kind, negative in made]


class CaptionReader:
    """Keys and captions of a source's examples; its pictures are not read if it has its captions as a column."""

    def __init__(self, source: Source):
        self._source = source
        self._keys: np.ndarray | None = None
        try:
            keys, captions = source.column("key"), source.column("captions")
            first = source.first_readable()
            number = keys.tolist().index(first.get("key"))
            if captions_of(captions[number]) == first["captions"]:
                self._keys, self._captions = keys, captions
        except (ConfigError, Unreadable, ValueError):  # no such columns, or of other captions than the examples'
            pass

    def read(self, index: int) -> tuple[str, list[str]]:
        """Key and captions; raises Unreadable."""
        if self._keys is not None:
            key = str(self._keys[index])
            return key, captions_of(self._captions[index], key)
        example = self._source.read(index)
        return str(example.get("key", example["id"])), list(example["captions"])


def count_kinds(table: pa.Table) -> dict[str, int]:
    """How many negatives there are of each kind."""
    return dict(sorted(collections.Counter(table["kind"].to_pylist()).items()))


def without_repeats(table: pa.Table) -> pa.Table:
    """The rows whose key and negative did not come before and are true in no other row.

    Such rows there are where several examples of a source are of one image, and have its key.
    """
    columns = [table[name].to_pylist() for name in ("key", "kind", "caption", "negative")]
    true = {(key, caption.casefold()) for key, _, caption, _ in zip(*columns, strict=True)}
    known: set[tuple[str, str, str]] = set()
    kept = []
    for key, kind, caption, negative in zip(*columns, strict=True):
        row = (key, negative, caption if kind in units.KINDS else "")
        kept.append(row not in known and (key, negative.casefold()) not in true)
        known.add(row)
    return table.filter(pa.array(kept, pa.bool_()))


def revision(method: Method) -> str:
    """What tells one state of the word lists, or of the tagger, from another."""
    lists = () if method == "swap" else rules.KINDS if method == "rules" else (*rules.KINDS, "relation")
    entries = [rules.word_list(kind).line_of for kind in lists]
    digest = [hashlib.blake2b(repr(entries).encode(), digest_size=8).hexdigest()] if lists else []
    tagger = [f"textblob {importlib.metadata.version('textblob')}"] if method != "rules" else []
    return " ".join(tagger + digest)
