"""Questions about a scene, with one true answer each; no kind of question can be answered without the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmjax.data.scenes.world import COLORS, SHAPES, SIZES, TEXTURES, Scene, World, pick

KINDS = ("color", "shape", "texture", "size", "existence", "background")
ANSWERS = (*COLORS, *SHAPES, *TEXTURES, *SIZES, "yes", "no", "light", "dark")
UNIFORMS = 4  # numbers for one question


class Question(NamedTuple):
    """What is asked, the answer, and the kind of question."""

    text: str
    answer: str
    kind: str


def question(world: World, scene: Scene, u: Sequence[float]) -> Question:
    """One question, from ``UNIFORMS`` numbers in [0, 1).

    Objects are named by color or by shape, which differ between the two of a scene. Of the questions for existence half
    are true; the others exchange the color for another one of the world, and no object of the scene has both.
    """
    kind, thing = pick(KINDS, u[0]), pick(scene.things, u[1])
    color, shape = COLORS[thing.color], SHAPES[thing.shape]
    if kind == "color":
        return Question(f"what color is the {shape}", color, kind)
    if kind == "shape":
        return Question(f"what shape is the {color} object", shape, kind)
    named = f"the {color} object" if u[2] < 0.5 else f"the {shape}"
    if kind == "texture":
        return Question(f"is {named} plain striped or dotted", TEXTURES[thing.texture], kind)
    if kind == "size":
        return Question(f"is {named} small or large", SIZES[thing.size], kind)
    if kind == "background":
        return Question("is the background light or dark", "light" if scene.light else "dark", kind)
    if u[2] < 0.5:
        return Question(f"is there a {color} {shape}", "yes", kind)
    here = {(t.color, t.shape) for t in scene.things}
    others = [c for c in range(world.colors) if (c, thing.shape) not in here]
    return Question(f"is there a {COLORS[pick(others, u[3])]} {shape}", "no", kind)
