"""Minimal changes of a scene; everything else, even the tint of the background, stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mmjax.data.scenes.world import Scene, Thing, World


def exchange(scene: Scene, *attributes: str) -> Scene:
    """The scene with the named attributes, such as ``color``, swapped between its two things."""
    a, b = scene.things
    return dataclasses.replace(scene, things=(_with(a, b, attributes), _with(b, a, attributes)))


def exchange_places(scene: Scene) -> Scene:
    """The scene with positions and depths swapped between its two things, which inverts their relation."""
    assert scene.relation is not None
    return dataclasses.replace(exchange(scene, "x", "y", "z"), relation=scene.relation ^ 1)


def change(scene: Scene, index: int, attribute: str, value: int) -> Scene:
    """The scene with another value of one attribute of thing number ``index``."""
    things = list(scene.things)
    things[index] = dataclasses.replace(things[index], **{attribute: value})
    return dataclasses.replace(scene, things=tuple(things))


def others(world: World, scene: Scene, index: int, attribute: str) -> list[int]:
    """Other values for thing number ``index``: absent from the scene, and not making a held-out combination."""
    thing = scene.things[index]
    if attribute in ("size", "texture"):
        count = 2 if attribute == "size" else world.textures
        return [v for v in range(count) if v != getattr(thing, attribute)]
    present = {getattr(t, attribute) for t in scene.things}
    if attribute == "shape":
        return [v for v in range(world.shapes) if v not in present and not world.held_out(thing.color, v)]
    return [v for v in range(world.colors) if v not in present and not world.held_out(v, thing.shape)]


def twin(world: World, scene: Scene, u: Sequence[float]) -> Scene:
    """A scene that differs minimally, drawn by two numbers in [0, 1).

    Two things swap places or, equally often, colors (but places if colors would make a held-out combination). A single
    thing gets another color, shape or texture.
    """
    if len(scene.things) == 1:
        attribute = ("color", "shape", "texture")[int(u[0] * 3)]
        values = others(world, scene, 0, attribute)
        return change(scene, 0, attribute, values[int(u[1] * len(values))])
    a, b = scene.things
    if u[0] < 0.5 and not world.held_out(b.color, a.shape) and not world.held_out(a.color, b.shape):
        return exchange(scene, "color")
    return exchange_places(scene)


def _with(thing: Thing, other: Thing, attributes: Sequence[str]) -> Thing:
    return dataclasses.replace(thing, **{name: getattr(other, name) for name in attributes})
