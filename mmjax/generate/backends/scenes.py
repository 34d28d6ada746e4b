"""Oracles over the procedural world of ``scenes``, wrong at a set rate: every recipe can be run and measured with them.

They look at the scene graph of a picture (``Picture.scene``), which the source ``scenes`` supplies and which pictures
that they make carry on. Each answer depends on the item and its seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mmjax.core.config import Between
from mmjax.generate import scene_graph
from mmjax.generate.backend import Decoding, Failure, Picture
from mmjax.generate.scene_oracle import captions, fraction_true, random_scene, stream

Rate = Annotated[float, Between(0, 1)]
_NO_SCENE = Failure("the picture has no scene graph; the backend scenes needs data of the source scenes")


class Oracle:
    """Base class: the identity, and when an answer is wrong.

    Args:
      error: the rate of wrong answers.
    """

    revision = "1"

    def __init__(self, *, error: Rate = 0.0):
        self.error = error
        self.model = f"scenes.{type(self).__name__.lower()}"

    def is_wrong(self, *key: object) -> bool:
        """Whether this answer is wrong."""
        return bool(stream("error", self.model, *key).random() < self.error)


class Captioner(Oracle):
    """True captions; a wrong one is another scene's.

    Args:
      error: the rate of wrong answers.
    """

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` captions a picture, different ones as far as there are."""
        results: list[list[str] | Failure] = []
        for picture, seed in zip(pictures, seeds, strict=True):
            if picture.scene is None:
                results.append(_NO_SCENE)
                continue
            scene, world = scene_graph.from_json(picture.scene)
            texts = []
            order = stream("caption", seed).permutation(len(captions(scene))).tolist()
            for number in range(decoding.n):
                claimed = random_scene(world, seed, number) if self.is_wrong(seed, number) else scene
                texts.append(captions(claimed)[order[number % len(order)]])
            results.append(texts)
        return results


class Scorer(Oracle):
    """A cosine that grows with the fraction of a text's claims that are true, with noise.

    Args:
      error: the rate of texts whose cosine is that of any other one.
      noise: the standard deviation of all cosines.
    """

    def __init__(self, *, error: Rate = 0.0, noise: float = 0.01):
        super().__init__(error=error)
        self._noise = noise

    def score(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[np.ndarray | Failure]:
        """From 0.1 for what says nothing true to 0.3 for what is true."""
        results: list[np.ndarray | Failure] = []
        for picture, captions_of_it in zip(pictures, texts, strict=True):
            if picture.scene is None:
                results.append(_NO_SCENE)
                continue
            scene, _ = scene_graph.from_json(picture.scene)
            cosines = []
            for text in captions_of_it:
                random = stream("score", repr(scene), text)
                fraction = random.random() if self.is_wrong(repr(scene), text) else fraction_true(scene, text)
                cosines.append(0.1 + 0.2 * fraction + self._noise * random.standard_normal())
            results.append(np.clip(np.array(cosines, np.float32), -1, 1))
        return results
