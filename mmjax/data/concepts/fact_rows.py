"""Facts about what captions name, as units with foils: rows of a table that ``data.negatives`` joins."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.concepts.triples import KINDS, Graph


class FactMaker:
    """For each head that a caption names, facts of the graph, each with a false tail and with a false relation.

    A fact is a function of the seed, the key and the caption.

    Args:
      graph: the facts.
      kinds: ``entity`` for false tails, ``relation`` for false relations.
      seed: of the choices.
      limit: the most facts of a caption.
    """

    def __init__(self, graph: Graph, kinds: Sequence[str] = KINDS, *, seed: int, limit: int = 4):
        self._graph, self._kinds, self._seed, self._limit = graph, tuple(kinds), seed, limit
        self.failures: collections.Counter[str] = collections.Counter()

    def rows(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows of examples with ``key`` and ``captions``."""
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for example in examples:
            for caption in example.captions:
                text = f"{self._seed}\0{example.key}\0{caption}".encode("utf-8", "backslashreplace")
                random = np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
                triples = [fact for head in self._graph.heads_in(caption) for fact in self._graph.of_head(head)]
                for number in random.permutation(len(triples))[: self._limit].tolist():
                    triple = triples[number]
                    for kind, make in (("entity", self._graph.false_tail), ("relation", self._graph.false_relation)):
                        false = make(triple, random) if kind in self._kinds else None
                        if false is not None:
                            row = {"key": example.key, "kind": kind, "caption": triple.sentence}
                            row |= {"negative": false.sentence, "valid": True, "method": "triples"}
                            rows.setdefault((example.key, kind, triple.sentence), row)
        return list(rows.values())
