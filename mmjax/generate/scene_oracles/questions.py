"""Questions with choices about scenes of the procedural world, whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.data.scenes.world import COLORS, SHAPES, SIZES, Scene, World

SKILLS = ("color", "shape", "size", "background")


def question(
    scene: Scene, world: World, random: np.random.Generator, skill: str | None = None
) -> dict[str, Any] | None:
    """A question of a random skill, or of that one, about the first thing; None for an empty scene."""
    if not scene.things:
        return None
    thing = scene.things[0]
    color, shape, size = COLORS[thing.color], SHAPES[thing.shape], SIZES[thing.size]
    skill = SKILLS[int(random.integers(len(SKILLS)))] if skill is None else skill
    text, answer, others = {
        "color": (f"What color is the {shape}?", color, COLORS[: world.colors]),
        "shape": (f"What shape is the {color} thing?", shape, SHAPES[: world.shapes]),
        "size": (f"How large is the {color} {shape}?", size, SIZES),
        "background": ("What brightness is the background?", "light" if scene.light else "dark", ("light", "dark")),
    }[skill]
    wrong = [value for value in others if value != answer]
    choices = [answer, *(wrong[k] for k in random.permutation(len(wrong))[:3].tolist())]
    choices = [choices[k] for k in random.permutation(len(choices)).tolist()]
    return {"q": text, "choices": choices, "a": answer, "context": "", "skill": skill}
