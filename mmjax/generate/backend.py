"""What a recipe asks of a model: one protocol for each role, whatever library or service the model runs in.

Every method takes a batch and returns one result an item in the same order. An item that fails gives a ``Failure`` in
its place; the others are not touched by it. Results depend on the item and its seed alone, not on its batch.

A backend is a module of ``mmjax/generate/backends`` (or of another package). It has a class for each role that it can
take, with the role's name: ``Captioner`` of ``hf.py`` is what ``models.captioner = {"name": "hf", ...}`` makes, with
the section's other keys as keyword arguments. Construction is cheap: weights are loaded with the first call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Failure:
    """Stands in place of the result of an item that failed."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as models get and give it.

    Attributes:
      pixels: u8[H, W, 3].
      scene: the scene graph of a rendered picture; only the backend ``scenes`` looks at it.
    """

    pixels: np.ndarray
    scene: Mapping[str, Any] | None = None


class Message(NamedTuple):
    """One turn of a conversation; a picture may come with the user's turns."""

    role: Literal["system", "user", "assistant"]
    text: str
    picture: Picture | None = None


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """What to continue.

    Attributes:
      messages: the conversation, whose last turn is the user's.
      task: the prompt's name, such as ``laclip_rewrite``.
      values: what the prompt's blanks were filled with. ``task`` and ``values`` say the same as the messages, for
        backends without a language model (``rules``, ``scenes``); the others look at the messages alone.
    """

    messages: Sequence[Message]
    task: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Entity(NamedTuple):
    """Characters ``start`` to ``end`` of a text and what they name, such as ``PERSON``."""

    start: int
    end: int
    kind: str


class Box(NamedTuple):
    """A region in fractions of the picture's width and height, what it shows, and how sure the model is."""

    x1: float
    y1: float
    x2: float
    y2: float
    phrase: str
    score: float


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are sampled; None leaves a setting to the model. ``temperature=0`` is greedy."""

    n: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    beams: int | None = None


@dataclasses.dataclass(frozen=True)
class PictureRequest:
    """What picture to make.

    Attributes:
      mode: from text alone; from a picture; from a picture and an instruction; inside a mask; with boxes.
      prompt: the text.
      picture: the picture to start from, in all modes but ``text`` and ``layout``.
      mask: bool[H, W], where ``inpaint`` may change the picture.
      boxes: where ``layout`` puts which phrase.
      size: (height, width); by default the picture's or the model's own.
      strength: how far ``image`` goes from the picture, 0 to 1.
      guidance: of the text.
      image_guidance: of the picture, in ``instruct``.
      steps: of the sampler.
    """

    mode: Literal["text", "image", "instruct", "inpaint", "layout"]
    prompt: str
    picture: Picture | None = None
    mask: np.ndarray | None = None
    boxes: Sequence[Box] = ()
    size: tuple[int, int] | None = None
    strength: float | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    steps: int | None = None


class Model(Protocol):
    """What every role has: the identity that the provenance of its results names."""

    model: str
    revision: str


@runtime_checkable
class Captioner(Model, Protocol):
    """Describes pictures, or answers prompts about them."""

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` texts a picture."""


@runtime_checkable
class Writer(Model, Protocol):
    """Continues conversations."""

    def write(
        self,
        requests: Sequence[TextRequest],
        decoding: Decoding,
        seeds: Sequence[int],
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str] | Failure]:
        """``decoding.n`` replies a request; with a JSON ``schema``, replies that follow it."""


@runtime_checkable
class MaskFiller(Model, Protocol):
    """Fills in masked words."""

    def fill(self, texts: Sequence[str], temperature: float, seeds: Sequence[int]) -> list[str | Failure]:
        """Each text with every ``[MASK]`` replaced by one whole word."""


@runtime_checkable
class EntityTagger(Model, Protocol):
    """Finds names in texts."""

    def entities(self, texts: Sequence[str]) -> list[list[Entity] | Failure]:
        """The entities of each text, from left to right, without overlaps."""


@runtime_checkable
class Detector(Model, Protocol):
    """Finds objects by their descriptions."""

    def detect(
        self, pictures: Sequence[Picture], phrases: Sequence[Sequence[str]], threshold: float
    ) -> list[list[Box] | Failure]:
        """The boxes of each picture that score at least ``threshold``, best first."""


@runtime_checkable
class ImageGenerator(Model, Protocol):
    """Makes and edits pictures."""

    def make(self, requests: Sequence[PictureRequest], seeds: Sequence[int]) -> list[Picture | Failure]:
        """One picture a request."""


@runtime_checkable
class Labeler(Model, Protocol):
    """Classifies pictures."""

    def probabilities(self, pictures: Sequence[Picture], classes: Sequence[str]) -> list[np.ndarray | Failure]:
        """f32[classes] of each picture, summing to 1."""


@runtime_checkable
class Scorer(Model, Protocol):
    """Compares pictures with texts."""

    def score(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[np.ndarray | Failure]:
        """The cosine of each picture with each of its texts, f32[texts]."""
