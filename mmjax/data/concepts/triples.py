"""Facts of knowledge graphs as sentences, each with false versions of itself: (dog, UsedFor, hunting).

Knowledge-CLIP (Pan et al. 2022, arXiv:2210.08901) trains a transformer over [head, relation, tail], which predicts the
hidden entity (E2E) or the hidden relation (E2R). Here both are choices among sentences, for which a text tower is
enough: the true tail against one of another head, and the true relation against one that the graph does not have.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.concepts.function_words import FUNCTION_WORDS
from mmjax.data.concepts.visualsem import is_visualsem, read_facts
from mmjax.data.concepts.wordnet import WordNet
from mmjax.data.storage import filesystem

KINDS = ("entity", "relation")

_PHRASES = {
    "IsA": "is a kind of", "UsedFor": "is used for", "AtLocation": "is found at", "CapableOf": "can", "HasA": "has",
    "PartOf": "is part of", "MadeOf": "is made of", "HasProperty": "is", "ReceivesAction": "can be",
    "Causes": "causes", "Desires": "wants", "CreatedBy": "is made by", "LocatedNear": "is found near",
    "DefinedAs": "is defined as", "UsedBy": "is used by", "SubjectOf": "is the subject of",
    "MannerOf": "is a way of", "InstanceOf": "is an example of",
}  # fmt: skip
_SYMMETRIC = {
    "RelatedTo", "Synonym", "Antonym", "SimilarTo", "DistinctFrom", "EtymologicallyRelatedTo", "FormOf", "GlossRelated",
    "AlsoSee",
}  # fmt: skip
_UPWARD = {"IsA", "InstanceOf"}  # what is true of the tail is true of the head
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LONGEST = 4  # words of a head
_TRIED = 16  # draws of a false tail


class Triple(NamedTuple):
    """A fact of a graph; head and tail in lower case."""

    head: str
    relation: str
    tail: str

    @property
    def sentence(self) -> str:
        """As a caption.

        Example::

            >>> Triple("dog", "/r/CapableOf", "bark").sentence, Triple("dog", "livesIn", "kennel").sentence
            ('dog can bark', 'dog lives in kennel')
        """
        name = self.relation.rpartition("/")[2]
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
        return f"{self.head} {_PHRASES.get(name, spaced)} {self.tail}"


def read_triples(path: str, *, option: str, language: str = "en") -> Iterator[Triple]:
    """The facts of a file: a table with ``head``, ``relation`` and ``tail``, VisualSem's, or ConceptNet's assertions.

    Of the latter two relations that hold both ways are left out, and of ConceptNet facts of another ``language``.

    Args:
      path: csv, tsv, jsonl or parquet of a table; ``tuples.v2.json`` of VisualSem; any other ending is ConceptNet's
        (assertions-5.7.0.csv has one of its own, but no line of names: call it .assertions).
      option: that names the path, for errors.
      language: of both entities; of VisualSem, of the descriptions.
    """
    if path.rpartition(".")[2].lower() in ("csv", "tsv", "jsonl", "parquet"):
        for number, row in lookup.rows(path, option=option):
            where = f"{option}={path!r}: line {number}"
            names = ("head", "relation", "tail")
            head, relation, tail = (lookup.text_of(lookup.field(row, name, where=where), where=where) for name in names)
            yield Triple(head.lower(), relation, tail.lower())
        return
    if is_visualsem(path):
        for head, relation, tail in read_facts(path, option=option, language=language):
            if relation not in _SYMMETRIC:
                yield Triple(head.lower(), relation, tail.lower())
        return
    try:
        with filesystem.open_file(path) as file:
            for number, line in enumerate(filesystem.read_lines(file, name=f"{option}={path!r}"), 1):
                fields = line.decode("utf-8", "replace").split("\t")
                if len(fields) < 4:
                    raise ConfigError(f"{option}={path!r}: line {number} is not ConceptNet's; name its assertions")
                entities = [re.fullmatch(rf"/c/{language}/([^/\s]+)(?:/.*)?", field) for field in fields[2:4]]
                if all(entities) and fields[1].rpartition("/")[2] not in _SYMMETRIC:
                    head, tail = (match[1].replace("_", " ").lower() for match in entities if match)
                    yield Triple(head, fields[1], tail)
    except OSError as error:
        raise ConfigError(f"{option}={path!r}: cannot be read ({error.strerror or error}); check the name") from None


def wordnet_triples(wordnet: WordNet, nouns: Iterable[str]) -> Iterator[Triple]:
    """(word, IsA, more general word) for each of ``nouns``, in its most frequent meaning."""
    for word in nouns:
        for sense in wordnet.senses(word)[:1]:
            for above in wordnet.synsets[sense].hypernyms:
                yield Triple(word, "IsA", wordnet.synsets[above].lemmas[0].lower())


class Graph:
    """Facts by their heads, and false ones that are like them.

    Args:
      triples: the facts; those that come twice count once.
    """

    def __init__(self, triples: Iterable[Triple]):
        self._of_head: dict[str, list[Triple]] = {}
        tails: dict[str, dict[str, None]] = collections.defaultdict(dict)
        for triple in dict.fromkeys(triples):
            self._of_head.setdefault(triple.head, []).append(triple)
            tails[triple.relation][triple.tail] = None
        self._tails = {relation: list(names) for relation, names in tails.items()}

    def __len__(self) -> int:
        return sum(map(len, self._of_head.values()))

    def heads_in(self, text: str) -> list[str]:
        """The heads that a text names, the longest at each place; also in the plural with s; no function words."""
        tokens, place, heads = [token.lower() for token in _WORD.findall(text)], 0, dict[str, None]()
        while place < len(tokens):
            for count in range(min(_LONGEST, len(tokens) - place), 0, -1):
                name = " ".join(tokens[place : place + count])
                head = next((form for form in (name, name.removesuffix("s")) if form in self._of_head), None)
                if head is not None and name not in FUNCTION_WORDS:
                    heads[head] = None
                    break
            place += count
        return list(heads)

    def of_head(self, head: str) -> list[Triple]:
        """The facts of a head."""
        return self._of_head.get(head, [])

    def false_tail(self, triple: Triple, random: np.random.Generator) -> Triple | None:
        """The same with another tail of that relation, which the graph does not have; None if none was drawn.

        The graph has (dog, IsA, animal) also by (dog, IsA, canine) and (canine, IsA, animal).
        """
        tails, known = self._tails[triple.relation], self._known_of(triple.head)
        for _ in range(_TRIED):
            tail = tails[int(random.integers(len(tails)))]
            if tail != triple.head and (triple.relation, tail) not in known:
                return triple._replace(tail=tail)
        return None

    def false_relation(self, triple: Triple, random: np.random.Generator) -> Triple | None:
        """The same with another relation, which the graph does not have; None if it has all."""
        known = self._known_of(triple.head)
        others = [triple._replace(relation=name) for name in self._tails if (name, triple.tail) not in known]
        others = [other for other in others if other.sentence != triple.sentence]
        return others[int(random.integers(len(others)))] if others else None

    def _known_of(self, head: str) -> set[tuple[str, str]]:
        """Relations and tails of a head, and of all that it is a kind of."""
        known, heads, pending = set[tuple[str, str]](), {head}, [head]
        while pending:
            for _, relation, tail in self.of_head(pending.pop()):
                known.add((relation, tail))
                if relation.rpartition("/")[2] in _UPWARD and tail not in heads:
                    heads.add(tail)
                    pending.append(tail)
        return known
