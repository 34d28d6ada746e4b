"""Models that ``mmjax.load`` takes: cosines of pictures with texts, zero-shot classes, and captions by a decoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from mmjax.core.config import Ge
from mmjax.generate.backend import Decoding, Failure, Picture
from mmjax.inference.loading import load
from mmjax.inference.model import Model


@dataclasses.dataclass(kw_only=True)
class Judge:
    """A model that ``mmjax.load`` takes.

    Args:
      model: a run folder, with ``@best`` or ``@STEP`` after it, a folder of weights, or a name of the hub.
      revision: what tells versions of the model apart in the provenance; a run's name holds its step already.
      precision: of matrix products; None is the run's own.
      batch_size: the largest batch of pictures or texts.
    """

    model: str
    revision: str = ""
    precision: Literal["float32", "bfloat16"] | None = None
    batch_size: Annotated[int, Ge(1)] = 64

    @functools.cached_property
    def _loaded(self) -> Model:
        return load(self.model, precision=self.precision, batch_size=self.batch_size)


@dataclasses.dataclass(kw_only=True)
class Captioner(Judge):
    """Texts by the model's own decoder, as those of ``objective.name='caption'``; the options are those of ``Judge``.

    A prompt is how texts begin, so the model must have been trained on texts that begin so.
    """

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` texts a picture, with the prompt; several, or a temperature, top_k or top_p, are draws."""
        names = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_tokens": "min_length"}
        names |= {"max_tokens": "max_length", "beams": "beams"}
        options = {name: value for key, name in names.items() if (value := getattr(decoding, key)) is not None}
        if options.get("temperature") == 0:
            del options["temperature"]
        draws = options.keys() & {"temperature", "top_k", "top_p"} or decoding.n > 1
        options["method"] = "sample" if draws else "beam" if "beams" in options else "greedy"
        results: dict[int, list[str] | Failure] = {}
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, own in enumerate(prompts) if own == prompt]
            texts = self._loaded.captions(
                [pictures[row].pixels for row in rows],
                count=decoding.n,
                numbers=[seeds[row] >> 1 for row in rows],  # of 32 bits, where JAX takes 31
                prompt=prompt or "",
                **options,
            )
            results |= zip(rows, texts, strict=True)
        return [results[row] for row in range(len(pictures))]


@dataclasses.dataclass(kw_only=True)
class Scorer(Judge):
    """Cosines of pictures with texts; the options are those of ``Judge``."""

    def score(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[np.ndarray | Failure]:
        """f32[texts] for each picture."""
        distinct = list(dict.fromkeys(text for several in texts for text in several))
        if not distinct:
            return [np.zeros(0, np.float32) for _ in pictures]
        places = {text: place for place, text in enumerate(distinct)}
        rows = self._loaded.encode_text(distinct)
        images = self._loaded.encode_image([picture.pixels for picture in pictures])
        return [
            (rows[[places[text] for text in several]] * image).sum(axis=1) if several else np.zeros(0, np.float32)
            for image, several in zip(images, texts, strict=True)
        ]


@dataclasses.dataclass(kw_only=True)
class Labeler(Judge):
    """Zero-shot classification; the options are those of ``Judge``.

    Args:
      templates: prompts with ``{}`` where the class goes; a class is the mean of their embeddings.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)

    def probabilities(self, pictures: Sequence[Picture], classes: Sequence[str]) -> list[np.ndarray | Failure]:
        """f32[classes] for each picture, summing to 1, for models with a sigmoid too."""
        if not pictures:
            return []
        values = self._loaded.classify([p.pixels for p in pictures], classes, templates=self.templates)
        return list(values / values.sum(axis=1, keepdims=True))
