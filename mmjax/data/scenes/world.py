"""Scene graphs: the vocabularies of scenes, and how to draw a scene from uniform numbers.

Lengths are in units of 1/64 of the frame, so that one scene can be rendered at any size; y points down.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "hexagon")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
RELATIONS = ("left", "right", "above", "below", "front", "behind")  # the inverse of relation r is r ^ 1
FRONT = RELATIONS.index("front")

FRAME = 64.0
RADII = ((10.0, 12.0), (14.0, 16.0))  # of small and of large objects
MARGIN = 1.0  # between an object and the border
DOMINANCE = 1.5  # of the main axis of a direction over the other axis
OVERLAP = (0.55, 0.85)  # distance / sum of radii for front and behind: both objects stay recognizable
UNIFORMS = 21  # numbers for one scene of any world

Combinations = Literal["seen", "any", "swappable", "tied", "flipped"]


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
    """One object. Shape, color, texture and size are indices into the vocabularies above."""

    shape: int
    color: int
    texture: int
    size: int
    x: float
    y: float
    radius: float
    z: float  # 0 at the eye, 1 at the far end
    shade: float  # multiplies the color


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """One or two things on a background; of two, the first one has the ``relation`` to the second."""

    things: tuple[Thing, ...]
    relation: int | None
    light: bool
    tint: tuple[float, float, float]  # in [-1, 1]


@dataclasses.dataclass(frozen=True)
class World:
    """How many entries of each vocabulary are in use, from its start."""

    name: str
    shapes: int
    colors: int
    textures: int
    relations: int

    def held_out(self, color: int, shape: int) -> bool:
        """Whether this combination never occurs in train and val; every color and every shape has one."""
        return (color + shape) % max(self.colors, self.shapes) == 0

    def tied_color(self, shape: int) -> int:
        """The color that belongs to a shape where the two are tied; that combination is not held out."""
        return (shape + 1) % self.colors

    @functools.cache  # noqa: B019 - worlds are few and live as long as the program
    def pairs(self, combinations: Combinations) -> tuple[tuple[int, int, int, int], ...]:
        """All (color, shape, color, shape) with two colors and two shapes, so that every swap changes the meaning.

        ``seen`` excludes held-out combinations, ``swappable`` also those that become held out if colors are swapped.
        In ``tied`` ones each shape has its own color; ``flipped`` are those with the colors exchanged, if seen.
        """
        pairs = []
        for a in range(self.colors * self.shapes):
            for b in range(self.colors * self.shapes):
                (ca, sa), (cb, sb) = divmod(a, self.shapes), divmod(b, self.shapes)
                if ca == cb or sa == sb:
                    continue
                is_held_out = self.held_out(ca, sa) or self.held_out(cb, sb)
                swap_is_held_out = self.held_out(cb, sa) or self.held_out(ca, sb)
                tied = self.tied_color(sa), self.tied_color(sb)
                allowed = {
                    "any": True,
                    "seen": not is_held_out,
                    "swappable": not is_held_out and not swap_is_held_out,
                    "tied": tied == (ca, cb),
                    "flipped": tied == (cb, ca) and not is_held_out,
                }
                if allowed[combinations]:
                    pairs.append((ca, sa, cb, sb))
        return tuple(pairs)

    @functools.cache  # noqa: B019
    def combinations(self, kind: Literal["seen", "any", "tied"]) -> tuple[tuple[int, int], ...]:
        """All (color, shape), color-major; ``seen`` excludes held-out ones, ``tied`` has one color for each shape."""
        both = [divmod(i, self.shapes) for i in range(self.colors * self.shapes)]
        if kind == "tied":
            return tuple((c, s) for c, s in both if c == self.tied_color(s))
        return tuple(cs for cs in both if kind == "any" or not self.held_out(*cs))


WORLDS = {
    "easy": World("easy", shapes=4, colors=4, textures=2, relations=4),
    "standard": World("standard", shapes=6, colors=6, textures=3, relations=6),
    "full": World("full", shapes=8, colors=8, textures=3, relations=6),
}


def draw_pair(world: World, u: Sequence[float], combinations: Combinations) -> Scene:
    """A scene of two related things, from ``UNIFORMS`` numbers in [0, 1); nothing is rejected and drawn again."""
    ca, sa, cb, sb = pick(world.pairs(combinations), u[0])
    relation = int(u[1] * world.relations)
    sizes = int(u[2] * len(SIZES)), int(u[3] * len(SIZES))
    ra, rb = _radius(sizes[0], u[4]), _radius(sizes[1], u[5])
    dx, dy = _displacement(relation, ra + rb, _room(max(ra, rb)), u[6], u[7])
    # Both have the larger one's margin, so that they can swap places.
    low = MARGIN + max(ra, rb)
    x = low + u[8] * (_room(max(ra, rb)) - abs(dx)) + max(0.0, -dx)
    y = low + u[9] * (_room(max(ra, rb)) - abs(dy)) + max(0.0, -dy)
    near = 0.1 + 0.3 * u[10]
    far = near + 0.25 + 0.2 * u[11]
    first_is_near = relation == FRONT if relation >= FRONT else u[12] < 0.5
    za, zb = (near, far) if first_is_near else (far, near)
    ta, tb = int(u[13] * world.textures), int(u[14] * world.textures)
    return Scene(
        things=(
            Thing(sa, ca, ta, sizes[0], x, y, ra, za, _shade(u[15])),
            Thing(sb, cb, tb, sizes[1], x + dx, y + dy, rb, zb, _shade(u[16])),
        ),
        relation=relation,
        light=u[17] < 0.5,
        tint=_tint(u),
    )


def draw_single(world: World, u: Sequence[float], combination: tuple[int, int] | None = None) -> Scene:
    """A scene of one thing: with the ``combination`` (color, shape), or else with any that is not held out."""
    color, shape = pick(world.combinations("seen"), u[0]) if combination is None else combination
    size = int(u[2] * len(SIZES))
    radius = _radius(size, u[4])
    low, room = MARGIN + radius, _room(radius)
    x, y, z = low + u[8] * room, low + u[9] * room, 0.1 + 0.7 * u[10]
    thing = Thing(shape, color, int(u[13] * world.textures), size, x, y, radius, z, _shade(u[15]))
    return Scene(things=(thing,), relation=None, light=u[17] < 0.5, tint=_tint(u))


def _displacement(relation: int, reach: float, room: float, u: float, v: float) -> tuple[float, float]:
    """From the first thing to the second: at least ``reach`` apart along a direction, or overlapping."""
    if relation >= FRONT:
        distance = reach * (OVERLAP[0] + (OVERLAP[1] - OVERLAP[0]) * u)
        return distance * math.cos(2 * math.pi * v), distance * math.sin(2 * math.pi * v)
    shortest = reach / math.sqrt(1 + DOMINANCE**-2)  # the shortest component that is both apart and within the cone
    along = shortest + u * (room - shortest)
    least, most = math.sqrt(max(0.0, reach**2 - along**2)), along / DOMINANCE
    side = 2 * v - 1
    across = math.copysign(least + abs(side) * (most - least), side)
    return ((along, across), (-along, across), (across, along), (across, -along))[relation]


def pick(options: Sequence[T], u: float) -> T:
    """The option that a uniform number u in [0, 1) draws."""
    return options[int(u * len(options))]


def _radius(size: int, u: float) -> float:
    low, high = RADII[size]
    return low + u * (high - low)


def _room(radius: float) -> float:
    return FRAME - 2 * (MARGIN + radius)


def _shade(u: float) -> float:
    return 0.90 + 0.18 * u


def _tint(u: Sequence[float]) -> tuple[float, float, float]:
    return 2 * u[18] - 1, 2 * u[19] - 1, 2 * u[20] - 1
