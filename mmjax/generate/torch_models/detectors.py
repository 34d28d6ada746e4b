"""Detectors of described objects: GroundingDINO, OWL-ViT and OWLv2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.generate.backend import Box, Failure, Picture
from mmjax.generate.pixels import to_pillow
from mmjax.generate.torch_models.loading import TorchModel, import_torch, import_transformers, to_device

_KINDS = ("grounding-dino", "owlvit", "owlv2")


class PhraseDetector:
    """A detector and its processor."""

    def __init__(self, options: TorchModel):
        transformers = import_transformers()
        self._options = options
        self._kind = options.read(transformers.AutoConfig).model_type
        if self._kind not in _KINDS:
            raise ConfigError(f"model={options.model!r}: is of type {self._kind}; detectors are {', '.join(_KINDS)}")
        self._processor = options.read(transformers.AutoProcessor)
        self._network = options.load(transformers.AutoModelForZeroShotObjectDetection)

    def detect(
        self, pictures: Sequence[Picture], phrases: Sequence[Sequence[str]], threshold: float
    ) -> list[list[Box] | Failure]:
        """The boxes of each picture that score at least ``threshold``, best first; each has one of its phrases."""
        results: list[list[Box] | Failure] = [[] for _ in pictures]
        items = [(p, tuple(w)) for p, w in zip(pictures, phrases, strict=True)]
        wanted = [place for place, (_, own) in enumerate(items) if own]
        detected = self._options.run(
            [items[place] for place in wanted],
            [0] * len(wanted),
            lambda batch, _: self._detect(batch, threshold),
            group=lambda item: (item[0].pixels.shape, item[1]),  # nothing is padded
        )
        for place, boxes in zip(wanted, detected, strict=True):
            results[place] = boxes
        return results

    def _detect(self, batch: Sequence[tuple[Picture, tuple[str, ...]]], threshold: float) -> list[list[Box]]:
        torch = import_torch()
        phrases = batch[0][1]
        images = [to_pillow(picture) for picture, _ in batch]
        if self._kind == "grounding-dino":
            text, spans = _caption(phrases)
            inputs = self._processor(images=images, text=[text] * len(batch), return_tensors="pt")
            outputs = self._network(**to_device(inputs, self._network))
            scores = torch.stack(
                [outputs.logits.float().sigmoid()[..., own].amax(-1) for own in self._tokens(text, spans)], -1
            )
        else:
            inputs = self._processor(
                images=images, text=[list(phrases)] * len(batch), return_tensors="pt", padding=True
            )
            outputs = self._network(**to_device(inputs, self._network))
            scores = outputs.logits.float().sigmoid()[..., : len(phrases)]
        boxes = outputs.pred_boxes.float().cpu()
        height, width = batch[0][0].pixels.shape[:2]
        if self._kind == "owlv2":  # which pads pictures to squares, at the right and below
            boxes = boxes * torch.tensor([max(height, width) / width, max(height, width) / height] * 2)
        return [_boxes(own, of_boxes, phrases, threshold) for own, of_boxes in zip(scores.cpu(), boxes, strict=True)]

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> list[Any]:
        """The places of each phrase's tokens."""
        offsets = self._processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        places = [[i for i, (a, b) in enumerate(offsets) if a < b and start <= a < end] for start, end in spans]
        if not all(places):
            raise ValueError("a phrase has no tokens that the model knows, or there are too many phrases")
        return places


def _caption(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The phrases as one text, and where each one is in it.

    >>> _caption(["A Cat", "dog."])
    ('a cat. dog.', [(0, 5), (7, 10)])
    """
    text, spans = "", []
    for phrase in phrases:
        clean = phrase.lower().replace(".", " ").strip()
        if not clean:
            raise ValueError(f"the phrase {phrase!r} is empty")
        text += " " if text else ""
        spans.append((len(text), len(text) + len(clean)))
        text += f"{clean}."
    return text, spans


def _boxes(scores: Any, boxes: Any, phrases: Sequence[str], threshold: float) -> list[Box]:
    """Boxes f32[queries, (x, y, w, h)] with their best phrase by scores f32[queries, phrases], best first."""
    best, which_phrase = scores.max(-1)
    results = []
    for score, place, (x, y, w, h) in zip(best.tolist(), which_phrase.tolist(), boxes.tolist(), strict=True):
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        if score >= threshold and x1 < x2 and y1 < y2:
            results.append(Box(x1, y1, x2, y2, phrases[place], score))
    return sorted(results, key=lambda box: -box.score)
