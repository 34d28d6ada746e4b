"""Examples of a source, and what the pipeline makes of them: samples, crops, rows of a batch, its arrays."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mmjax.core.groups import UNKNOWN, group_number, place_number

Example = dict[str, Any]
"""What ``source[index]`` returns:

``id``        int, 0 to 2**31 - 1: identifies the image; rows with the same image have the same id
``key``       str, for messages: the file, row or member that it comes from (optional for sources without files)
``captions``  list[str], at least one
MODALITY      for each name in the source's ``modalities``: bytes of an encoded picture, or u8[H, W, C]

and further fields: ``caption_weights`` (list of float, with which captions are sampled; uniform if left out),
``label`` (int), ``labels`` (several), ``negatives`` (list of (kind, true caption,
false caption)), score columns, boxes.
The source raises ``Unreadable`` if an example cannot be used.
"""

Reason = Literal[
    "missing file",
    "empty image",
    "truncated image",
    "corrupt image",
    "image too large",
    "file too large",
    "no caption",
    "caption is not UTF-8",
    "truncated archive",
    "duplicate key",
    "bad row",
    "other error",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

QUANTILE = "score_quantile"
"""The field of examples that a gate goes by (``mmjax.objectives.common.gate``)."""


class Unreadable(ValueError):
    """An example that cannot be used: ``reason`` is counted, ``key`` is listed, ``detail`` explains."""

    def __init__(self, reason: Reason, detail: str = "", *, key: str = ""):
        super().__init__(f"{key + ': ' if key else ''}{reason}{f' ({detail})' if detail else ''}")
        self.reason: Reason = reason
        self.detail = detail
        self.key = key

    def __reduce__(self) -> Any:
        return _unreadable, (self.reason, self.detail, self.key)


def as_unreadable(error: Exception, key: str) -> Unreadable:
    """Whatever went wrong with the example of that ``key``; an error without a reason says where it was raised."""
    if isinstance(error, Unreadable):
        return Unreadable(error.reason, error.detail, key=error.key or key)
    message = " ".join(str(error).split())
    if isinstance(error, OSError):
        return Unreadable("missing file", message, key=key)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in last)
    return Unreadable("other error", f"{type(error).__name__}: {message[:200]}{where}", key=key)


class DataError(RuntimeError):
    """Too much of the data is unreadable to train on the rest."""


def _unreadable(reason: Reason, detail: str, key: str) -> Unreadable:
    return Unreadable(reason, detail, key=key)


class ImageSpec(NamedTuple):
    """What all images of one modality have in common."""

    shape: tuple[int, ...]  # H, W, C
    dtype: np.dtype


class Crop(NamedTuple):
    """The region of an upright picture that becomes the view, and the size of the view.

    The box is in pixels of the original and may be fractional. It is resized to ``inner`` pixels, which are placed at
    ``offset`` in a view of ``size`` filled with ``fill``; ``inner`` and ``size`` differ only if there is padding.
    """

    top: float
    left: float
    height: float
    width: float
    size: tuple[int, int]  # height and width of the view
    inner: tuple[int, int]  # height and width of the resized box in it
    offset: tuple[int, int] = (0, 0)  # row and column where that begins
    resample: Literal["fast", "bicubic", "bilinear", "nearest"] = "bicubic"
    fill: int = 0  # gray level of the padding

    def place(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box (left, top, right, bottom) of the original in pixels of the view; it may extend beyond the view."""
        down, across = self.inner[0] / self.height, self.inner[1] / self.width
        left, top, right, bottom = box
        return (
            (left - self.left) * across + self.offset[1],
            (top - self.top) * down + self.offset[0],
            (right - self.left) * across + self.offset[1],
            (bottom - self.top) * down + self.offset[0],
        )


@dataclasses.dataclass(kw_only=True)
class Sample:
    """One example on its way to a batch. Transforms may change its lists and dictionaries, but not write to arrays."""

    id: int
    key: str
    captions: list[str]  # all of them; after sampling, those that become rows
    weights: list[float] | None = None  # of the captions, for sampling; None is uniform
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # modality -> u8[H, W, C], after decoding
    crop: Crop | None = None  # of the original; None if it was not cropped
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # the example's others, and all its ``captions``


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher's embeddings of an example: zeros and no texts where it has none."""

    image: np.ndarray  # f32[E]
    texts: dict[str, np.ndarray]  # caption -> f32[E]

    @property
    def blank(self) -> Teacher:
        """That of an example which has become another one."""
        return Teacher(image=np.zeros_like(self.image), texts={})


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchRows:
    """Rows of a global batch as arrays: n images with T texts each, captions first, hard negatives last.

    Batch transforms return new rows and never write to these arrays.
    """

    numbers: np.ndarray  # i64[n]: each row's number in the global batch
    partner: np.ndarray  # i64[n]: the index in these rows of the row to combine with; -1: none
    images: dict[str, np.ndarray]  # modality -> u8[n, H, W, C]
    image_ids: np.ndarray  # i32[n, K]: the examples that each image is mixed from; -1: none
    image_weight: np.ndarray  # f32[n, K]
    tokens: np.ndarray  # i32[n, T, L]
    text_ids: np.ndarray  # i32[n, T, K]; -1 in column 0: padding
    text_weight: np.ndarray  # f32[n, T, K]; 0 in all columns: a hard negative, or padding
    captions: int  # how many of the T texts are captions
    step: int = 0  # of training

    def replace(self, **changes: Any) -> BatchRows:
        """These rows with some arrays replaced."""
        return dataclasses.replace(self, **changes)


def sample_arrays(samples: Sequence[Sample], rows: BatchRows, own: slice) -> dict[str, np.ndarray]:
    """What the ``own`` rows have of their examples beside pictures and texts: quantiles, embeddings, labels."""
    arrays = _quantile_arrays(samples, rows, own) | _teacher_arrays(samples, rows, own)
    if samples[0].fields["labels"] is not None:
        arrays["labels"] = np.stack([sample.fields["labels"] for sample in samples[own]])
    return arrays


def group_arrays(
    samples: Sequence[Sample],
    rows: BatchRows,
    own: slice,
    by: Literal["example", "kind", "place"],
    negatives: int,
) -> dict[str, np.ndarray]:
    """The groups of the images and of the texts of the ``own`` rows; those of mixed images are not known."""
    image = np.array([sample.fields["group"] for sample in samples], np.int32)
    image = np.where((rows.image_ids[:, 1:] >= 0).any(axis=1), UNKNOWN, image).astype(np.int32)
    text = np.repeat(image[:, None], rows.tokens.shape[1], axis=1)
    if by != "example":
        text = np.array([_groups_of_texts(sample, by, rows.captions, negatives) for sample in samples], np.int32)
    return {"image_group": image[own], "text_group": text[own].reshape(-1)}


def _groups_of_texts(sample: Sample, by: Literal["kind", "place"], captions: int, negatives: int) -> list[int]:
    """The groups of a sample's ``captions`` and ``negatives`` rows of text, by a negative's kind or a text's place."""
    texts = sample.captions[:captions]
    if by == "kind":
        groups = [UNKNOWN] * captions + [group_number(kind) for kind, *_ in sample.fields["negatives"][:negatives]]
    else:
        place_of = {caption: place for place, caption in reversed(list(enumerate(texts)))}
        groups = [place_number(place, caption) for place, caption in enumerate(texts)]
        groups += [UNKNOWN] * (captions - len(groups))
        for _, true, false in sample.fields["negatives"][:negatives]:
            groups.append(place_number(place_of.get(true, 0), false))
    return groups + [UNKNOWN] * (captions + negatives - len(groups))


def _quantile_arrays(samples: Sequence[Sample], rows: BatchRows, own: slice) -> dict[str, np.ndarray]:
    """The quantiles of the scores of rows, if examples have any; of a mixed image the least of its examples."""
    of_id = {sample.id: sample.fields["quantile"] for sample in samples}
    if None in of_id.values():
        return {}
    each = np.array([[of_id.get(i, 1.0) for i in ids] for ids in rows.image_ids.tolist()], np.float32)
    least = np.where(rows.image_weight > 0, each, np.float32(1)).min(axis=1)
    return {"quantile": least[own]}


def _teacher_arrays(samples: Sequence[Sample], rows: BatchRows, own: slice) -> dict[str, np.ndarray]:
    """A teacher's embeddings of rows, if examples have any; zeros for mixed images and texts that it has not seen."""
    first: Teacher | None = samples[0].fields["teacher"]
    if first is None:
        return {}
    count, texts = rows.tokens.shape[:2]
    image = np.zeros((count, len(first.image)), np.float32)
    text = np.zeros((count, texts, len(first.image)), np.float32)
    for row, sample in enumerate(samples):
        teacher: Teacher = sample.fields["teacher"]
        if (rows.image_ids[row, 1:] >= 0).any():
            continue
        image[row] = teacher.image
        false = (negative for _, _, negative in sample.fields["negatives"])
        for begin, captions in ((0, sample.captions[: rows.captions]), (rows.captions, false)):
            for place, caption in enumerate(captions, begin):
                if caption in teacher.texts and place < texts:
                    text[row, place] = teacher.texts[caption]
    return {"image_teacher": image[own], "text_teacher": text[own].reshape(-1, len(first.image))}


def without_captions(negatives: Sequence[tuple[str, str, str]], captions: Sequence[str]) -> list[tuple[str, str, str]]:
    """The (kind, true caption, false caption) that are none of an example's captions after all."""
    known = {caption.casefold() for caption in captions} if negatives else set()
    return [negative for negative in negatives if negative[2].casefold() not in known]


def pad(texts: list[str], count: int) -> list[str | None]:
    """``count`` texts: None stands for those that are missing."""
    return [*texts[:count], *[None] * (count - len(texts))]
