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
from mmjax.data.negatives import rules, swaps
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source
from mmjax.data.text import captions_of

Method = Literal["rules", "swap"]
KINDS: dict[Method, tuple[str, ...]] = {"rules": rules.KINDS, "swap": swaps.KINDS}
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "kind", "caption", "negative")]).append(
    pa.field("valid", pa.bool_())
).append(pa.field("method", pa.string()))  # fmt: skip

Edit = Callable[[str, np.random.Generator], str | None]


class Generator:
    """Makes at most one negative of each kind for each caption: a function of the seed, the key and the caption.

    Args:
      method: ``rules`` exchanges words for others of their list, ``swap`` two spans of a caption.
      kinds: of the method.
      seed: of the choices.
    """

    def __init__(self, method: Method, kinds: Iterable[str], *, seed: int):
        self._method, self._kinds, self._seed = method, tuple(kinds), seed
        self._find_tags = swaps.tagger() if method == "swap" else None

    def rows(self, key: str, captions: Sequence[str]) -> list[dict[str, Any]]:
        """The negatives of an example; none equals one of its captions, none comes twice."""
        known = {caption.casefold() for caption in captions}
        rows = []
        for caption in captions:
            digest = hashlib.blake2b(f"{self._seed}\0{key}\0{caption}".encode("utf-8", "backslashreplace"))
            random = np.random.default_rng(int.from_bytes(digest.digest()[:16], "little"))
            for kind, negative in self._edits(caption, random):
                if negative is not None and negative.casefold() not in known:
                    known.add(negative.casefold())
                    row = {"key": key, "kind": kind, "caption": caption, "negative": negative}
                    rows.append({**row, "valid": True, "method": self._method})
        return rows

    def _edits(self, caption: str, random: np.random.Generator) -> list[tuple[str, str | None]]:
        if self._find_tags is None:
            return [(f"replace_{kind}", rules.replace_words(caption, kind, random)) for kind in self._kinds]
        tagged = swaps.Tagged(caption, find_tags=self._find_tags)
        return [(f"swap_{kind}", tagged.swap(kind, random)) for kind in self._kinds]


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
    """The rows whose key and negative did not come before, as where rows of one image have one key."""
    known: set[tuple[str, str]] = set()
    kept = []
    for pair in zip(table["key"].to_pylist(), table["negative"].to_pylist(), strict=True):
        kept.append(pair not in known)
        known.add(pair)
    return table.filter(pa.array(kept, pa.bool_()))


def revision(method: Method) -> str:
    """What tells one state of the word lists, or of the tagger, from another."""
    if method == "swap":
        return f"textblob {importlib.metadata.version('textblob')}"
    entries = [rules.word_list(kind).line_of for kind in rules.KINDS]
    return hashlib.blake2b(repr(entries).encode(), digest_size=8).hexdigest()
