"""Models of the Hugging Face hub or in its layout, in this process: transformers and diffusers (extra ``generate``)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mmjax.core.config import Ge
from mmjax.generate.backend import Box, Decoding, Entity, Failure, Picture, PictureRequest, TextRequest
from mmjax.generate.json_schema import check_schema
from mmjax.generate.torch_models.captioners import PictureReader
from mmjax.generate.torch_models.detectors import PhraseDetector
from mmjax.generate.torch_models.diffusion import Diffusion
from mmjax.generate.torch_models.encoders import BlankFiller, Tagger
from mmjax.generate.torch_models.loading import TorchModel
from mmjax.generate.torch_models.writers import LanguageModel


class Captioner(TorchModel):
    """BLIP, BLIP-2, InstructBLIP, or a chat model that sees, such as Qwen2-VL; the options are those of ``TorchModel``.

    A prompt is the beginning of BLIP's captions, a question to its variant for question answering, and an instruction
    to the others.
    """

    @functools.cached_property
    def _reader(self) -> PictureReader:
        return PictureReader(self)

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` texts a picture."""
        return self._reader.caption(pictures, prompts, decoding, seeds)


class Writer(TorchModel):
    """A causal language model; the options are those of ``TorchModel``.

    Conversations are written with the tokenizer's chat template; without one, turns are paragraphs that the model
    continues.
    """

    @functools.cached_property
    def _language_model(self) -> LanguageModel:
        return LanguageModel(self)

    def write(
        self,
        requests: Sequence[TextRequest],
        decoding: Decoding,
        seeds: Sequence[int],
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str] | Failure]:
        """``decoding.n`` replies to each request; those that break the schema fail it."""
        if schema is not None:
            check_schema(schema)
        return self._language_model.write([request.messages for request in requests], decoding, seeds, schema)


class MaskFiller(TorchModel):
    """A masked language model such as BERT, which fills in whole words; the options are those of ``TorchModel``."""

    @functools.cached_property
    def _filler(self) -> BlankFiller:
        return BlankFiller(self)

    def fill(self, texts: Sequence[str], temperature: float, seeds: Sequence[int]) -> list[str | Failure]:
        """Each text with a word in the place of every ``[MASK]``."""
        return self._filler.fill(texts, temperature, seeds)


class EntityTagger(TorchModel):
    """A token classifier with labels as in B-PER and I-PER; the options are those of ``TorchModel``.

    ``PER`` is called ``PERSON``.
    """

    @functools.cached_property
    def _tagger(self) -> Tagger:
        return Tagger(self)

    def entities(self, texts: Sequence[str]) -> list[list[Entity] | Failure]:
        """The entities of each text."""
        return self._tagger.entities(texts)


class Detector(TorchModel):
    """GroundingDINO, OWL-ViT or OWLv2; the options are those of ``TorchModel``."""

    @functools.cached_property
    def _detector(self) -> PhraseDetector:
        return PhraseDetector(self)

    def detect(
        self, pictures: Sequence[Picture], phrases: Sequence[Sequence[str]], threshold: float
    ) -> list[list[Box] | Failure]:
        """The boxes of each picture."""
        return self._detector.detect(pictures, phrases, threshold)


@dataclasses.dataclass(kw_only=True)
class ImageGenerator(TorchModel):
    """A pipeline of diffusers; the options are those of ``TorchModel``.

    One of Stable Diffusion makes pictures from text, pictures and masks. ``instruct`` needs InstructPix2Pix, ``layout``
    GLIGEN. Pixels outside a mask are the original's.

    Args:
      variant: of the files, such as ``fp16``, where a repository has several.
      side: small pictures are enlarged, and large ones reduced, to that shorter side while the model works on them, 512
        for Stable Diffusion 1.5; results have the size that was asked for. None leaves them as they are.
    """

    variant: str | None = None
    side: Annotated[int, Ge(8)] | None = None

    @functools.cached_property
    def _diffusion(self) -> Diffusion:
        return Diffusion(self, variant=self.variant, side=self.side)

    def make(self, requests: Sequence[PictureRequest], seeds: Sequence[int]) -> list[Picture | Failure]:
        """One picture a request."""
        return self._diffusion.make(requests, seeds)
