"""An image generator paints a wrong attribute into a box: pairs that are each other's negatives (BiAug)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Failure, ImageGenerator, PictureRequest
from mmjax.generate.block import Estimate, Tools


class Block(block.RecordBlock):
    """Makes children of a record by random ones of its edits (BiAug, Wu et al. 2023, arXiv:2310.01330).

    The child's picture is its parent's with the wrong caption's content inside the box; outside of the mask each pixel
    is the parent's. The parent gets the true caption (source ``detail``), unless it has it, and the wrong one as a
    negative; the child has them the other way round, and each names the other in ``neg_image_ids``. A record without
    edits stays as it is.

    Args:
      model: the image generator's name.
      most: edits of a record that are made, at most.
      margin: by which the mask is larger than the box, as a fraction of the picture.
      guidance: of the text.
      steps: of the sampler.
    """

    def __init__(
        self,
        *,
        model: str = "image_generator",
        most: Annotated[int, Ge(1)] = 2,
        margin: Annotated[float, Ge(0)] = 0.02,
        guidance: float | None = 7.5,
        steps: int | None = None,
    ):
        self.uses = {model: ImageGenerator}
        self._model, self._most, self._margin, self._guidance, self._steps = model, most, margin, guidance, steps

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """Each record with its children after it."""
        generator: ImageGenerator = tools.model(self._model)
        asked = []
        for row, record in enumerate(records):
            if not (edits := record.fields.get("edits")):
                continue
            picture = tools.picture(record)
            order = np.random.default_rng(tools.seed(record, "edits")).permutation(len(edits)).tolist()
            for number, edit in enumerate(edits[k] for k in order[: self._most]):
                mask = box_mask(record.boxes[edit["box"]]["box"], picture.pixels.shape[:2], self._margin)
                asked.append((row, number, edit, picture, mask, tools.seed(record, number)))
        made = generator.make(
            [
                PictureRequest("inpaint", edit["wrong"], picture, mask, guidance=self._guidance, steps=self._steps)
                for _, _, edit, picture, mask, _ in asked
            ],
            [seed for *_, seed in asked],
        )
        families: list[list[Record]] = [[record] for record in records]
        for (row, number, edit, picture, mask, seed), result in zip(asked, made, strict=True):
            record = records[row]
            if isinstance(result, Failure):
                families[row].append(block.failed_child(record, number, f"inpaint: {result.reason}"))
                continue
            child = block.child(record, number)
            pasted = paste(picture.pixels, result.pixels, mask)
            child.image = tools.encode(dataclasses.replace(result, pixels=pasted))
            child.size = (pasted.shape[0], pasted.shape[1])
            if result.scene is not None:
                child.fields["scene"] = dict(result.scene)
            writer = record.provenance[edit["by"]]
            for one, true, wrong in ((record, "caption", "wrong"), (child, "wrong", "caption")):
                by = one.provenance.index(writer) if writer in one.provenance else len(one.provenance)
                one.provenance = one.provenance if by < len(one.provenance) else [*one.provenance, writer]
                place = _place(one, edit[true])
                if place == len(one.captions):
                    one.captions.append({"text": edit[true], "source": "detail", "weight": 1.0, "by": by})
                one.negatives.append({"text": edit[wrong], "kind": edit["kind"], "of": place, "by": by})
            tools.origin(child, generator, seed=seed, prompt=edit["wrong"], guidance=self._guidance, steps=self._steps)
            record.neg_image_ids.append(child.id)
            child.neg_image_ids.append(record.id)
            families[row].append(child)
        return list(families)

    def estimate(self, records: int) -> Estimate:
        """A request for each edit."""
        return Estimate({self._model: records * self._most}, records * (1 + self._most))


def _place(record: Record, text: str) -> int:
    """Of a caption with that text, as that of another edit or the record's own may be; behind the last if none is."""
    own = (k for k, caption in enumerate(record.captions) if caption["text"] == text and caption["weight"] > 0)
    return next(own, len(record.captions))


def box_mask(box: Sequence[float], size: tuple[int, ...], margin: float = 0.0) -> np.ndarray:
    """bool[H, W]: the pixels that a box in fractions of the picture touches; at least one."""
    height, width = size
    left, top = max(box[0] - margin, 0.0), max(box[1] - margin, 0.0)
    right, bottom = min(box[2] + margin, 1.0), min(box[3] + margin, 1.0)
    rows = slice(min(int(top * height), height - 1), max(int(np.ceil(bottom * height)), int(top * height) + 1))
    columns = slice(min(int(left * width), width - 1), max(int(np.ceil(right * width)), int(left * width) + 1))
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


def paste(old: np.ndarray, new: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``new`` inside the mask, ``old`` outside; resized to the old picture where a generator has its own sizes."""
    if new.shape != old.shape:
        new = _resized(new, old.shape[:2])
    return np.where(mask[..., None], new, old)


def _resized(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    from mmjax.data.pictures.resampling import resampled

    height, width = pixels.shape[:2]
    return resampled(pixels, (0.0, 0.0, float(height), float(width)), size=(size[0], size[1]), resample="bicubic")
