"""Scenes as sequences of noisy features, as a video of signs would give: a segment of frames for each gloss."""

from __future__ import annotations

import numpy as np

from mmjax.data.scenes import language
from mmjax.data.scenes.world import COLORS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene

GLOSSES = (*SHAPES, *COLORS, *TEXTURES, *SIZES, *RELATIONS)
FEATURES = 16
SHORTEST, LONGEST = 2, 4  # frames of a gloss
NOISE = 0.5  # standard deviation; that of a sign's own features is 1
_SIGNS = np.random.default_rng(20180708).normal(size=(len(GLOSSES), FEATURES))


def glosses(scene: Scene) -> list[str]:
    """What the full caption says, in its order: four words for each thing, one for their relation."""
    named = [language.describe(thing, "size", "texture").split() for thing in scene.things]
    if scene.relation is None:
        return named[0]
    return [*named[0], RELATIONS[scene.relation], *named[1]]


def frames(scene: Scene, noise: np.random.Generator) -> np.ndarray:
    """f32[T, FEATURES]: each gloss is its sign for 2 to 4 frames, with noise; read-only."""
    numbers = [GLOSSES.index(gloss) for gloss in glosses(scene)]
    lengths = noise.integers(SHORTEST, LONGEST + 1, len(numbers))
    signs = np.repeat(_SIGNS[numbers], lengths, axis=0)
    x = (signs + NOISE * noise.normal(size=signs.shape)).astype(np.float32)
    x.flags.writeable = False
    return x
