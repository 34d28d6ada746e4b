"""Oracles over the procedural world of ``scenes``, wrong at a set rate: every recipe can be run and measured with them.

They look at the scene graph of a picture (``Picture.scene``), which the source ``scenes`` supplies and which pictures
that they make carry on. Each answer depends on the item and its seed alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np

from mmjax.core.config import Between
from mmjax.data.scenes import graph
from mmjax.data.scenes.world import COLORS, FRAME, SHAPES, WORLDS, Scene, Thing, World
from mmjax.generate.backend import (
    Box,
    Decoding,
    Entity,
    Failure,
    Picture,
    PictureRequest,
    TextRequest,
)
from mmjax.generate.scene_oracles import oracle, writer
from mmjax.generate.scene_oracles.oracle import random_scene, similarity, stream

T = TypeVar("T")
Rate = Annotated[float, Between(0, 1)]
_ENTITY = re.compile(rf"\b(?:{'|'.join(SHAPES)})\b")


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
    """True captions; a wrong one is another scene's. Prompts for questions or marked names are followed.

    Args:
      error: the rate of wrong answers.
      corrupt: the rate of answers to such prompts that are not as asked for.
    """

    def __init__(self, *, error: Rate = 0.0, corrupt: Rate = 0.0):
        super().__init__(error=error)
        self._corrupt = corrupt

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` captions a picture, different ones as far as there are."""

        def answer(scene: Scene, world: World, number: int) -> list[str]:
            seed, texts = seeds[number], []
            order = stream("caption", seed).permutation(5).tolist()
            for draw in range(decoding.n):
                shown = random_scene(world, seed, draw) if self.is_wrong(seed, draw) else scene
                random = stream("prompted", seed, draw)
                texts.append(
                    "" if prompts[number] and random.random() < self._corrupt
                    else oracle.prompted(prompts[number], scene, shown, world, random, order[draw % 5])
                )  # fmt: skip
            return texts

        return _each(pictures, answer)


class Writer(Oracle):
    """Replies to the prompts that ship.

    Args:
      error: the rate of replies whose content is wrong.
      corrupt: the rate of replies that are cut off, empty or not as asked for.
      weak: for a prompt, skills of questions at which half of its replies are wrong.
    """

    def __init__(self, *, error: Rate = 0.0, corrupt: Rate = 0.0, weak: Mapping[str, tuple[str, ...]] | None = None):
        super().__init__(error=error)
        self._corrupt, self._weak = corrupt, dict(weak or {})

    def write(
        self,
        requests: Sequence[TextRequest],
        decoding: Decoding,
        seeds: Sequence[int],
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str] | Failure]:
        """``decoding.n`` replies a request."""
        return [
            [self._reply(request, seed, number) for number in range(decoding.n)]
            if request.task in writer.REPLIES
            else Failure(f"the backend scenes does not know the prompt {request.task!r}")
            for request, seed in zip(requests, seeds, strict=True)
        ]

    def _reply(self, request: TextRequest, seed: int, number: int) -> str:
        random = stream("write", request.task, seed, number)
        is_weak = request.values.get("skill") in self._weak.get(request.task, ())
        wrong = self.is_wrong(request.task, seed, number) or (is_weak and random.random() < 0.5)
        reply = writer.REPLIES[request.task](request.values, random, wrong)
        draw = stream("corrupt", seed, number).random(2).tolist()
        if draw[0] >= self._corrupt:
            return reply
        return ("", reply[: len(reply) // 2].rpartition(" ")[0], "I cannot help with that.")[int(draw[1] * 3)]


class MaskFiller(Oracle):
    """Fills masks with words of the kind that stood there: colors before shapes, and shapes.

    Args:
      error: the rate of pieces of words, which a masked language model may give.
    """

    def fill(self, texts: Sequence[str], temperature: float, seeds: Sequence[int]) -> list[str | Failure]:
        """Each text with every ``[MASK]`` replaced."""
        results: list[str | Failure] = []
        for text, seed in zip(texts, seeds, strict=True):
            random = stream("fill", text, seed)
            while "[MASK]" in text:
                _, _, after = text.partition("[MASK]")
                vocabulary = COLORS if after.lstrip().split(" ")[0] in (*SHAPES, "[MASK]") else SHAPES
                word = vocabulary[int(random.integers(len(vocabulary)))]
                word = f"##{word[1:]}" if self.is_wrong(text, seed) else word
                text = text.replace("[MASK]", word, 1)
            results.append(text)
        return results


class EntityTagger(Oracle):
    """The names of shapes are entities of one kind.

    Args:
      error: the rate of texts of which one is not found.
      kind: what it calls them.
    """

    def __init__(self, *, error: Rate = 0.0, kind: str = "PERSON"):
        super().__init__(error=error)
        self._kind = kind

    def entities(self, texts: Sequence[str]) -> list[list[Entity] | Failure]:
        """The shapes' names of each text."""
        names = [[Entity(m.start(), m.end(), self._kind) for m in _ENTITY.finditer(text)] for text in texts]
        return [own[1:] if self.is_wrong(text) else own for text, own in zip(texts, names, strict=True)]


class Detector(Oracle):
    """Boxes of things that phrases describe rightly.

    Args:
      error: the rate of phrases that are overlooked, or found where nothing is.
    """

    def detect(
        self, pictures: Sequence[Picture], phrases: Sequence[Sequence[str]], threshold: float
    ) -> list[list[Box] | Failure]:
        """The boxes of each picture, best first."""

        def answer(scene: Scene, world: World, number: int) -> list[Box]:
            boxes = []
            for phrase in dict.fromkeys(phrases[number]):
                wrong = self.is_wrong(repr(scene), phrase)
                random = stream("detect", repr(scene), phrase)
                shown = [t for t in scene.things if _describes(phrase, dataclasses.replace(scene, things=(t,)))]
                if shown and not wrong:
                    boxes.append(Box(*graph.box(shown[0]), phrase, 0.6 + 0.4 * random.random()))
                elif wrong and not shown:
                    x, y = (0.6 * random.random(2)).tolist()
                    boxes.append(Box(x, y, x + 0.4, y + 0.4, phrase, 0.3 + 0.4 * random.random()))
            return sorted((box for box in boxes if box.score >= threshold), key=lambda box: -box.score)

        return _each(pictures, answer)


class ImageGenerator(Oracle):
    """Draws what prompts ask for. A wrong picture is, equally often, unchanged, of another class, or blank.

    The graph of an edited picture has ``edit``: ok, unchanged, broken or blank.

    Args:
      error: the rate of wrong answers.
      world: of pictures from a text alone.
    """

    def __init__(self, *, error: Rate = 0.0, world: str = "easy"):
        super().__init__(error=error)
        self._world = WORLDS[world]

    def make(self, requests: Sequence[PictureRequest], seeds: Sequence[int]) -> list[Picture | Failure]:
        """One picture a request."""
        return [self._make(request, seed) for request, seed in zip(requests, seeds, strict=True)]

    def _make(self, request: PictureRequest, seed: int) -> Picture | Failure:
        random, wrong = stream("make", seed), self.is_wrong("make", seed)
        kind = ("unchanged", "broken", "blank")[int(stream("kind", seed).integers(3))] if wrong else "ok"
        size = request.size or (request.picture.pixels.shape[:2] if request.picture else (oracle.SIZE,) * 2)
        original, world = None, self._world
        if request.picture is not None:
            if request.picture.scene is None:
                return _NO_SCENE
            original, world = graph.from_json(request.picture.scene)
        if original is None:
            scene = oracle.scene_of(request.prompt, world, random, request.boxes)
        elif kind == "unchanged":
            scene = original
        elif request.mode == "inpaint" and request.mask is not None:
            scene = _inpainted(original, request.prompt, request.mask)
        else:
            scene = oracle.edited(original, request.prompt, random)
        if kind == "blank":
            scene = dataclasses.replace(scene, things=(), relation=None)
        elif kind == "broken" or (kind == "unchanged" and original is None):
            scene = oracle.wrong_thing(scene, world, random)
        return oracle.picture_of(scene, world, int(size[0]), seed, edit=kind)


class Labeler(Oracle):
    """The class of a scene is that of its first thing; what was edited is less sure, and a blank picture a guess.

    Args:
      error: the rate of wrong predictions.
    """

    def probabilities(self, pictures: Sequence[Picture], classes: Sequence[str]) -> list[np.ndarray | Failure]:
        """f32[classes] for each picture."""

        def answer(scene: Scene, world: World, number: int) -> np.ndarray:
            edit = (pictures[number].scene or {}).get("edit")
            random = stream("label", repr(scene), edit)
            place = int(random.integers(len(classes)))
            if scene.things and not self.is_wrong(repr(scene)):
                first = dataclasses.replace(scene, things=scene.things[:1], relation=None)
                true = [k for k, name in enumerate(classes) if graph.is_true(first, name)]
                place = true[0] if true else place
            low, high = (0.5, 0.7) if edit == "ok" else (0.94, 0.99) if edit in ("unchanged", "broken") else (0.8, 0.95)
            best = low + (high - low) * random.random() if scene.things else 1 / len(classes)
            values = np.full(len(classes), (1 - best) / max(len(classes) - 1, 1), np.float32)
            values[place] = best
            return values

        return _each(pictures, answer)


class Scorer(Oracle):
    """A cosine from 0.1 for what says nothing true to 0.3 for what is true, with noise.

    Args:
      error: the rate of texts whose cosine is that of any other one.
      noise: the standard deviation of all cosines.
    """

    def __init__(self, *, error: Rate = 0.0, noise: float = 0.01):
        super().__init__(error=error)
        self._noise = noise

    def score(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[np.ndarray | Failure]:
        """f32[texts] for each picture."""

        def answer(scene: Scene, world: World, number: int) -> np.ndarray:
            cosines = []
            for text in texts[number]:
                random = stream("score", repr(scene), text)
                fraction = random.random() if self.is_wrong(repr(scene), text) else similarity(scene, text)
                cosines.append(0.1 + 0.2 * fraction + self._noise * random.standard_normal())
            return np.clip(np.array(cosines, np.float32), -1, 1)

        return _each(pictures, answer)


_NO_SCENE = Failure("the picture has no scene graph; the backend scenes needs data of the source scenes")


def _each(pictures: Sequence[Picture], answer: Callable[[Scene, World, int], T]) -> list[T | Failure]:
    """For each picture, the answer to its scene, world and number; a Failure without a scene."""
    return [
        _NO_SCENE if picture.scene is None else answer(*graph.from_json(picture.scene), number)
        for number, picture in enumerate(pictures)
    ]


def _describes(phrase: str, scene: Scene) -> bool:
    claimed = graph.claims(phrase)
    return bool(claimed.things) and graph.true_claims(scene, claimed) == claimed.count


def _inpainted(scene: Scene, prompt: str, mask: np.ndarray) -> Scene:
    """The scene whose first masked thing is as the prompt has it, which may describe the others, too."""
    claimed = graph.claims(prompt).things
    rows, columns = mask.shape
    for number, thing in enumerate(scene.things):
        row, column = int(thing.y / FRAME * rows), int(thing.x / FRAME * columns)
        if claimed and mask[min(row, rows - 1), min(column, columns - 1)]:
            others = scene.things[:number] + scene.things[number + 1 :]
            painted = oracle.with_claims(thing, _left_over(claimed, others))
            return dataclasses.replace(scene, things=(*scene.things[:number], painted, *scene.things[number + 1 :]))
    return scene


def _left_over(claimed: Sequence[Mapping[str, Any]], others: Sequence[Thing]) -> Mapping[str, Any]:
    """The claimed thing without which most of the rest are ``others``."""

    def count(number: int) -> int:
        rest = [*claimed[:number], *claimed[number + 1 :]]
        return sum(any(graph.is_thing(other, one) for one in rest) for other in others)

    return claimed[max(range(len(claimed)), key=count)]
