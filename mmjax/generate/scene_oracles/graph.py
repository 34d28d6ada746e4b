"""Scene graphs of the procedural world as plain values, and what a text claims about a scene."""

from __future__ import annotations

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
    rf"(?:\b(?P<color>{'|'.join(COLORS)}) )?\b(?P<shape>{'|'.join(SHAPES)})\b"
    rf"(?: in the (?P<row>{'|'.join(_ROWS)}) (?P<column>{'|'.join(_COLUMNS)})\b)?",
    re.IGNORECASE,
)
_STATEMENTS = tuple(
    (re.compile(pattern, re.IGNORECASE), plain)
    for pattern, plain in (
        (r"the color of the (\w+) is (\w+)", r"a \2 \1"),
        (r"the shape of the (\w+) thing is (\w+)", r"a \1 \2"),
        (r"the (\w+ \w+) is (small|large)", r"a \2 \1"),
        (r"the brightness of the background is (\w+)", r"a \1 background"),
    )
)
"""Answers to questions in plain words."""
_WHERE = re.compile(r"\b(dark|light) background\b", re.IGNORECASE)
_RELATION = re.compile(rf"^\W*(?:is )?(?P<relation>{'|'.join(language.RELATION_PHRASES)}) an?\s+$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a text says: attributes of things by name, relations between neighboring ones, and the background."""

    things: tuple[Mapping[str, Any], ...]
    relations: tuple[int | None, ...]  # of each thing to the next
    light: bool | None

    @property
    def count(self) -> int:
        """How many facts are claimed."""
        relations = sum(relation is not None for relation in self.relations)
        return sum(map(len, self.things)) + relations + (self.light is not None)


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
    matches = list(_THING.finditer(text))
    things, relations = [], []
    for match, following in itertools.zip_longest(matches, matches[1:]):
        thing: dict[str, Any] = {"shape": SHAPES.index(match["shape"].lower())}
        for name, vocabulary in (("color", COLORS), ("texture", TEXTURES)):
            if match[name]:
                thing[name] = vocabulary.index(match[name].lower())
        if match["size"]:
            thing["size"] = _SIZE[match["size"].lower()]
        if match["row"]:
            thing["place"] = f"in the {match['row']} {match['column']}".lower()
        things.append(thing)
        between = _RELATION.match(text[match.end() : following.start()]) if following else None
        relations.append(language.RELATION_PHRASES.index(between["relation"].lower()) if between else None)
    where = _WHERE.search(text)
    return Claims(tuple(things), tuple(relations), None if where is None else where[1].lower() == "light")


def true_claims(scene: Scene, claimed: Claims) -> int:
    """How many of the facts hold, with claimed things matched to the scene's as well as possible."""
    slots = [*range(len(scene.things)), *[None] * max(len(claimed.things) - len(scene.things), 0)]
    best = max(
        (_count(scene, claimed, chosen) for chosen in set(itertools.permutations(slots, len(claimed.things)))),
        default=0,
    )
    return best + (claimed.light is not None and claimed.light == scene.light)


def is_true(scene: Scene, text: str) -> bool:
    """Whether everything that the text claims holds, and it claims something."""
    claimed = claims(text)
    return bool(claimed.count) and true_claims(scene, claimed) == claimed.count


def box(thing: Thing) -> tuple[float, float, float, float]:
    """The thing's box (x1, y1, x2, y2) in fractions of the frame."""
    x, y, r = thing.x / FRAME, thing.y / FRAME, thing.radius / FRAME
    return max(x - r, 0.0), max(y - r, 0.0), min(x + r, 1.0), min(y + r, 1.0)


def relation_holds(scene: Scene, first: int, second: int, relation: int) -> bool:
    """Whether thing ``first`` has the relation to thing ``second``."""
    if scene.relation is None or first == second:
        return False
    return relation == (scene.relation if (first, second) == (0, 1) else scene.relation ^ 1)


def _count(scene: Scene, claimed: Claims, chosen: tuple[int | None, ...]) -> int:
    total = 0
    for thing, place in zip(claimed.things, chosen, strict=True):
        if place is not None:
            own = scene.things[place]
            has = {"place": language.place(own), **{name: getattr(own, name) for name in _ATTRIBUTES}}
            total += sum(has[name] == value for name, value in thing.items())
    for number, relation in enumerate(claimed.relations):
        if relation is not None and None not in (first := chosen[number], second := chosen[number + 1]):
            assert first is not None and second is not None
            total += relation_holds(scene, first, second, relation)
    return total


_ATTRIBUTES = ("shape", "color", "texture", "size")
assert len(RELATIONS) == len(language.RELATION_PHRASES)
