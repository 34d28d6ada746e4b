"""What the oracles of the backend ``scenes`` know: other scenes, true captions, scenes that texts ask for, pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.scenes import language, render
from mmjax.data.scenes import world as worlds
from mmjax.data.scenes.graph import Claims, claims, to_json, true_claims
from mmjax.data.scenes.world import FRAME, Scene, Thing, World
from mmjax.generate.backend import Box, Picture
from mmjax.generate.scene_oracles.questions import question

SIZE = 32  # of pictures that are drawn from a text alone
_CLAIMED = ("shape", "color", "texture", "size")
_NAME = re.compile(rf"\b(?:{'|'.join(worlds.SHAPES)})\b")
_EMPTY = ("plain background", "empty scene", "nothing")


def stream(*key: object) -> np.random.Generator:
    """Random numbers that depend on ``key`` alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def random_scene(world: World, *key: object) -> Scene:
    """Any scene of two things."""
    return worlds.draw_pair(world, stream("scene", *key).random(worlds.UNIFORMS).tolist(), "seen")


def captions(scene: Scene) -> list[str]:
    """True captions."""
    if scene.things:
        return language.captions(scene)
    return [f"a plain {'light' if scene.light else 'dark'} background"]


def prompted(
    prompt: str | None, scene: Scene, shown: Scene, world: World, random: np.random.Generator, number: int
) -> str:
    """What a captioner replies about ``scene`` that takes it for ``shown``: a question, marked names, or a caption."""
    known = captions(shown)
    text = known[number % len(known)]
    if prompt is not None and prompt.lower().startswith("question"):
        one = question(scene, world, random)
        if one is None:
            return "Question: what is here? Answer: nothing."
        others = [choice for choice in one["choices"] if choice != one["a"]]
        answer = one["a"] if shown is scene else others[int(random.integers(len(others)))]
        return f"Question: {one['q']} Answer: {answer}."
    if prompt is not None and "[name | KIND]" in prompt:
        # A mistake is another scene's sentence, in which one name alone is marked.
        return _NAME.sub(lambda match: f"[{match[0]} | PERSON]", text, count=0 if shown is scene else 1)
    return text


def similarity(scene: Scene, text: str) -> float:
    """From 0 to 1: the fraction of the text's claims that hold; a quarter for a text that claims nothing."""
    if any(phrase in text.lower() for phrase in _EMPTY) or not scene.things:
        return float(any(phrase in text.lower() for phrase in _EMPTY) and not scene.things)
    claimed = claims(text)
    return true_claims(scene, claimed) / claimed.count if claimed.count else 0.25


def scene_of(text: str, world: World, random: np.random.Generator, boxes: Sequence[Box] = ()) -> Scene:
    """A scene for which the text is true as far as two things and a background allow; the rest is random.

    Args:
      text: its first two things are drawn.
      world: of what the text leaves open.
      random: draws that.
      boxes: where things are, by order; their phrases say what they are if the text names nothing.
    """
    claimed = claims(" and ".join(box.phrase for box in boxes) if boxes else text)
    u = random.random(worlds.UNIFORMS).tolist()
    if len(claimed.things) == 1:
        scene = worlds.draw_single(world, u)
    else:
        scene = worlds.draw_pair(world, u, "any")
        relation = claimed.relations[0] if claimed.relations else None
        if relation is not None:
            scene = _related(world, random, relation)
    things = []
    for thing, wanted in zip(scene.things, [*claimed.things, {}, {}], strict=False):
        things.append(with_claims(thing, wanted))
    for number, box in enumerate(boxes[: len(things)]):
        x, y = (box.x1 + box.x2) / 2 * FRAME, (box.y1 + box.y2) / 2 * FRAME
        radius = max(min(box.x2 - box.x1, box.y2 - box.y1) / 2 * FRAME, 4.0)
        things[number] = dataclasses.replace(things[number], x=x, y=y, radius=radius)
    relation = None if boxes else scene.relation
    light = scene.light if claimed.light is None else claimed.light
    return Scene(tuple(things), relation, light, scene.tint)


def with_claims(thing: Thing, wanted: Mapping[str, Any]) -> Thing:
    """The thing with the claimed attributes; a claimed size is one that can be seen."""
    changes = {name: wanted[name] for name in _CLAIMED if name in wanted}
    if "size" in changes and changes["size"] != thing.size:
        changes["radius"] = sum(worlds.RADII[changes["size"]]) / 2
    return dataclasses.replace(thing, **changes)


def edited(scene: Scene, text: str, random: np.random.Generator) -> Scene:
    """The scene with the setting that a text asks for: background, place, and the size of the first thing."""
    claimed: Claims = claims(text)
    things = list(scene.things)
    if things and claimed.things:
        things[0] = with_claims(things[0], {k: v for k, v in claimed.things[0].items() if k in ("size", "texture")})
    a, b, c = (2 * random.random(3) - 1).tolist()
    light = scene.light if claimed.light is None else claimed.light
    return dataclasses.replace(scene, things=tuple(things), light=light, tint=(a, b, c))


def wrong_thing(scene: Scene, world: World, random: np.random.Generator) -> Scene:
    """The scene whose first thing has another color, another shape, or both."""
    first, draw = scene.things[0], int(random.integers(3))
    color = (first.color + (draw != 1) * (1 + int(random.integers(world.colors - 1)))) % world.colors
    shape = (first.shape + (draw != 0) * (1 + int(random.integers(world.shapes - 1)))) % world.shapes
    return dataclasses.replace(scene, things=(dataclasses.replace(first, color=color, shape=shape), *scene.things[1:]))


def picture_of(scene: Scene, world: World, size: int, seed: int, **notes: Any) -> Picture:
    """The scene's picture, with its graph; ``notes`` stand beside it, such as what kind of edit it was."""
    pixels = render.render(scene, image_size=size, noise={"image": stream("pixels", seed)})["image"]
    return Picture(pixels, to_json(scene, world) | notes)


def _related(world: World, random: np.random.Generator, relation: int) -> Scene:
    """A scene of two things in that relation, which worlds with fewer relations may lack."""
    u = random.random(worlds.UNIFORMS).tolist()
    known = dataclasses.replace(world, relations=len(worlds.RELATIONS))
    u[1] = (relation + 0.5) / known.relations
    return worlds.draw_pair(known, u, "any")
