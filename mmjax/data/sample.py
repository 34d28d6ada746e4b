"""What a source gives, and what travels through the transforms on the way to a batch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

Example = dict[str, Any]
"""What ``source[index]`` gives:

``id``        int, 0 to 2**31 - 1: which image it is; rows of one image share it
``key``       str, for people: the file, row or member that it comes from (sources without files may leave it out)
``captions``  list[str], at least one
MODALITY      for each name in the source's ``modalities``: bytes of an encoded picture, or u8[H, W, C]

and whatever else the source knows: ``label`` (int), ``negatives`` (list of (kind, true caption, false caption)),
score columns, boxes. ``Unreadable`` is raised where an example cannot be used.
"""

Reason = Literal[
    "missing file",
    "empty image",
    "truncated image",
    "corrupt image",
    "image too large",
    "no caption",
    "caption is not UTF-8",
    "truncated archive",
    "duplicate key",
    "bad row",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class Unreadable(ValueError):
    """An example that cannot be used: ``reason`` is counted, ``key`` listed, ``detail`` says more to people."""

    def __init__(self, reason: Reason, detail: str = "", *, key: str = ""):
        super().__init__(f"{key + ': ' if key else ''}{reason}{f' ({detail})' if detail else ''}")
        self.reason: Reason = reason
        self.detail = detail
        self.key = key

    def __reduce__(self) -> Any:
        return _unreadable, (self.reason, self.detail, self.key)


class DataError(RuntimeError):
    """So much of the data cannot be used that going on would train something else than was asked for."""


def _unreadable(reason: Reason, detail: str, key: str) -> Unreadable:
    return Unreadable(reason, detail, key=key)


class Crop(NamedTuple):
    """Which part of an upright picture becomes the view, and how large; ``pictures`` carries it out.

    The box is in pixels of the original and may be fractional; the result is ``inner`` pixels of it, set into
    ``size`` at ``offset`` on ``fill`` (only where a picture is padded do ``inner`` and ``size`` differ).
    """

    top: float
    left: float
    height: float
    width: float
    size: tuple[int, int]  # height and width of the view
    inner: tuple[int, int]  # of the resized box in it
    offset: tuple[int, int] = (0, 0)  # where that begins: row and column
    resample: Literal["fast", "bicubic", "bilinear", "nearest"] = "bicubic"
    fill: int = 0  # gray level of the padding

    def place(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box (left, top, right, bottom) of the original, in pixels of the view; parts may lie outside."""
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
    """One example on its way to a batch. Transforms may change its lists and dictionaries, never an array's content."""

    id: int
    key: str
    captions: list[str]  # all of them; after the choice, those that become rows
    weights: list[float] | None = None  # of the captions, for the choice; None is uniform
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # modality -> u8[H, W, C], once decoded
    crop: Crop | None = None  # how the pixels were taken from the original; None: the original's
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # whatever else the source said


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchRows:
    """Rows of a global batch as arrays: n images with T texts each, captions first, hard negatives last.

    A transform reads these and gives new ones; the arrays are never written to.
    """

    numbers: np.ndarray  # i64[n]: each row's number in the global batch
    partner: np.ndarray  # i64[n]: the place in these rows of the row that this one is combined with; -1: none
    images: dict[str, np.ndarray]  # modality -> u8[n, H, W, C]
    image_ids: np.ndarray  # i32[n, K]: the examples that each image is made of; -1: none
    image_weight: np.ndarray  # f32[n, K]
    tokens: np.ndarray  # i32[n, T, L]
    text_ids: np.ndarray  # i32[n, T, K]; -1 in column 0: padding
    text_weight: np.ndarray  # f32[n, T, K]; 0 in all columns: a hard negative, or padding
    captions: int  # how many of the T texts are captions

    def replace(self, **changes: Any) -> BatchRows:
        """These rows with some arrays exchanged."""
        return dataclasses.replace(self, **changes)
