"""What the oracles of the backend ``scenes`` know: other scenes, true captions, and how much of a text is true."""

from __future__ import annotations

import hashlib

import numpy as np

from mmjax.data.scenes import language
from mmjax.data.scenes import world as worlds
from mmjax.data.scenes.world import Scene, World
from mmjax.generate.scene_graph import claims, true_claims

captions = language.captions


def stream(*key: object) -> np.random.Generator:
    """Random numbers that depend on ``key`` alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def random_scene(world: World, *key: object) -> Scene:
    """Any scene of two things."""
    return worlds.draw_pair(world, stream("scene", *key).random(worlds.UNIFORMS).tolist(), "seen")


def fraction_true(scene: Scene, text: str) -> float:
    """The fraction of the text's claims that hold; 0 if it claims nothing."""
    claimed = claims(text)
    return true_claims(scene, claimed) / claimed.count if claimed.count else 0.0
