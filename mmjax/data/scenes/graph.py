"""Scene graphs of the procedural world as plain values, and what a text claims about a scene."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from mmjax.data.scenes import language
from mmjax.data.scenes.world import COLORS, FRAME, RELATIONS, SHAPES, SIZES, TEXTURES, WORLDS, Scene, Thing, World

_SIZE = {**{name: number for number, name in enumerate(SIZES)}, **{n: k for k, n in enumerate(language.SYNONYMS)}}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_THING = re.compile(
    rf"(?:\b(?P<size>{'|'.join(_SIZE)}) )?(?:\b(?P<texture>{'|'.join(TEXTURES)}) )?"
    rf"(?:\b(?P<color>{'|'.join(COLORS)}) )?\b(?:(?P<shape>{'|'.join(SHAPES)})|object)\b"
    rf"(?: in the (?P<row>{'|'.join(_ROWS)}) (?P<column>{'|'.join(_COLUMNS)})\b)?",
    re.IGNORECASE,
)
_STATEMENTS = tuple(
    (re.compile(pattern, re.IGNORECASE), plain)
    for pattern, plain in (
        (r"(?:question\s*:\s*|^)(\w[^?]*\w)\s*\? (?:answer\s*:\s*)?(\w+)", r"\1? \2"),
        (r"is there (an? [^?]+)\? yes", r"\1"),
        (r"is there an? ([^?]+)\? no", r"there is no \1"),
        (r"what color is the (\w+)\? (\w+)", r"a \2 \1"),
        (r"what shape is the (\w+) (?:thing|object)\? (\w+)", r"a \1 \2"),
        (r"is the background light or dark\? (\w+)", r"a \1 background"),
        (r"is the (\w+(?: object)?) (?:plain striped or dotted|small or large)\? (\w+)", r"a \2 \1"),
        (r"the color of the (\w+) is (\w+)", r"a \2 \1"),
        (r"the shape of the (\w+) (?:thing|object) is (\w+)", r"a \1 \2"),
        (r"the (\w+ \w+) is (small|large)", r"a \2 \1"),
        (r"the brightness of the background is (\w+)", r"a \1 background"),
    )
)
"""Questions with answers, and statements made of them, in plain words."""
ATTRIBUTES = ("shape", "color", "texture", "size")
KINDS = (*ATTRIBUTES, "place", "relation", "background", "absence")
_ABSENT = re.compile(r"there is no ([^.?]+)", re.IGNORECASE)
_WHERE = re.compile(r"\b(dark|light) background\b", re.IGNORECASE)
_RELATION = re.compile(rf"^\W*(?:is )?(?P<relation>{'|'.join(language.RELATION_PHRASES)}) an?\s+$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a text says: attributes of things by name, relations between neighboring ones, the background, and things
    that are not there.
    """

    things: tuple[Mapping[str, Any], ...]
    relations: tuple[int | None, ...]  # of each thing to the next
    light: bool | None
    absent: tuple[Mapping[str, Any], ...] = ()

    @property
    def kinds(self) -> collections.Counter[str]:
        """How many facts of each of ``KINDS`` are claimed."""
        kinds = collections.Counter(name for thing in self.things for name in thing)
        kinds["relation"] = sum(relation is not None for relation in self.relations)
        kinds["background"], kinds["absence"] = int(self.light is not None), len(self.absent)
        return kinds

    @property
    def count(self) -> int:
        """How many facts are claimed."""
        return self.kinds.total()


def to_json(scene: Scene, world: World) -> dict[str, Any]:
    """The scene as plain values."""
    things = [list(dataclasses.astuple(thing)) for thing in scene.things]
    graph = {"world": world.name, "things": things, "relation": scene.relation}
    return graph | {"light": scene.light, "tint": list(scene.tint)}


def from_json(graph: Mapping[str, Any]) -> tuple[Scene, World]:
    """The scene and its world that ``to_json`` wrote."""
    things = tuple(Thing(*values) for values in graph["things"])
    a, b, c = graph["tint"]
    return Scene(things, graph["relation"], bool(graph["light"]), (a, b, c)), WORLDS[graph["world"]]


def claims(text: str) -> Claims:
    """What ``text`` claims; words outside the vocabularies claim nothing."""
    for pattern, plain in _STATEMENTS:
        text = pattern.sub(plain, text)
    absent = tuple(_thing(one) for named in _ABSENT.findall(text) for one in _THING.finditer(named))
    text = _ABSENT.sub("", text)
    matches = list(_THING.finditer(text))
    relations = []
    for match, following in itertools.zip_longest(matches, matches[1:]):
        between = _RELATION.match(text[match.end() : following.start()]) if following else None
        relations.append(language.RELATION_PHRASES.index(between["relation"].lower()) if between else None)
    where = _WHERE.search(text)
    light = None if where is None else where[1].lower() == "light"
    return Claims(tuple(map(_thing, matches)), tuple(relations), light, absent)


def true_kinds(scene: Scene, claimed: Claims) -> collections.Counter[str]:
    """How many facts of each kind hold, with claimed things matched to the scene's as well as possible."""
    numbers = [*range(len(claimed.things)), *[None] * len(scene.things)]
    matches = (
        {number: thing for thing, number in zip(scene.things, chosen, strict=True) if number is not None}
        for chosen in itertools.permutations(numbers, len(scene.things))
    )
    best = max((_true(scene, claimed, own) for own in matches), key=collections.Counter.total)
    best["background"] = int(claimed.light is not None and claimed.light == scene.light)
    best["absence"] = sum(not any(is_thing(own, one) for own in scene.things) for one in claimed.absent)
    return best


def true_claims(scene: Scene, claimed: Claims) -> int:
    """How many of the facts hold."""
    return true_kinds(scene, claimed).total()


def is_true(scene: Scene, text: str) -> bool:
    """Whether everything that the text claims holds, and it claims something."""
    claimed = claims(text)
    return bool(claimed.count) and true_claims(scene, claimed) == claimed.count


def is_thing(own: Thing, claimed: Mapping[str, Any]) -> bool:
    """Whether all that is claimed of a thing holds of that one."""
    return _has(own).items() >= claimed.items()


def box(thing: Thing) -> tuple[float, float, float, float]:
    """The thing's box (x1, y1, x2, y2) in fractions of the frame."""
    x, y, r = thing.x / FRAME, thing.y / FRAME, thing.radius / FRAME
    return max(x - r, 0.0), max(y - r, 0.0), min(x + r, 1.0), min(y + r, 1.0)


def relation_holds(scene: Scene, first: Thing, second: Thing, relation: int) -> bool:
    """Whether thing ``first`` of the scene has the relation to thing ``second``."""
    if scene.relation is None or first is second:
        return False
    return relation == (scene.relation if first is scene.things[0] else scene.relation ^ 1)


def _true(scene: Scene, claimed: Claims, match: Mapping[int, Thing]) -> collections.Counter[str]:
    """The facts that hold about things; ``match`` has the things by the claimed ones' numbers."""
    kinds: collections.Counter[str] = collections.Counter()
    for number, own in match.items():
        has = _has(own)
        kinds.update(name for name, value in claimed.things[number].items() if has[name] == value)
        relation = claimed.relations[number]
        if relation is not None and number + 1 in match:
            kinds["relation"] += relation_holds(scene, own, match[number + 1], relation)
    return kinds


def _has(own: Thing) -> dict[str, Any]:
    return {"place": language.place(own), **{name: getattr(own, name) for name in ATTRIBUTES}}


def _thing(match: re.Match[str]) -> dict[str, Any]:
    thing: dict[str, Any] = {}
    for name, vocabulary in (("shape", SHAPES), ("color", COLORS), ("texture", TEXTURES)):
        if match[name]:
            thing[name] = vocabulary.index(match[name].lower())
    if match["size"]:
        thing["size"] = _SIZE[match["size"].lower()]
    if match["row"]:
        thing["place"] = f"in the {match['row']} {match['column']}".lower()
    return thing


assert len(RELATIONS) == len(language.RELATION_PHRASES)
