"""The transforms of a configuration, in their stages, from a source's examples to samples and rows."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind
from mmjax.data import pictures
from mmjax.data.sample import Crop, Example, Frame, Rows, Sample, Unreadable
from mmjax.data.transforms.base import STAGES, Captions, Geometry, PerBatch, PerSample, Stage

FOLDER = "mmjax.data.transforms"
Section = Mapping[str, Any]


class Chain:
    """What happens to an example, and to rows of examples, between the source and the batch.

    Args:
      transforms: (name, options) pairs, in their order (see ``mmjax.data.transforms.base`` for stages).
      image_size: height and width of the views that a geometry makes.
      modalities: the keys of the pictures in an example.
      frame: the tokenizer's; without it there can be no transforms of rows.
      seed: of all draws.
      path: the config key to blame.
    """

    def __init__(
        self,
        transforms: Sequence[tuple[str, Section]],
        *,
        image_size: int,
        modalities: tuple[str, ...],
        frame: Frame | None = None,
        seed: int = 0,
        path: str = "data.transforms",
    ):
        self._modalities = modalities
        self._seed = seed
        given = {"image_size": image_size, "modalities": modalities, "frame": frame}
        self._stages: dict[str, list[tuple[str, Any]]] = {stage: [] for stage in STAGES}
        reached, seen = 0, dict[str, int]()
        for name, options in transforms:
            transform = _open(name, options, given=given, path=path)
            stage = transform.stage
            if STAGES.index(stage) < reached:
                raise ConfigError(
                    f"{path}: {name!r} ({stage}) stands behind a transform of a later stage; the order of stages is "
                    f"{', '.join(STAGES)}"
                )
            reached = STAGES.index(stage)
            seen[name] = seen.get(name, 0) + 1
            # A second transform of one name has draws of its own; otherwise they depend on the name alone.
            self._stages[stage].append((name if seen[name] == 1 else f"{name}#{seen[name]}", transform))
        if len(self._stages["geometry"]) > 1:
            raise ConfigError(f"{path}: {' and '.join(n for n, _ in self._stages['geometry'])} both crop; keep one")

    @property
    def geometry(self) -> Geometry | None:
        """What crops, if anything does."""
        return self._stages["geometry"][0][1] if self._stages["geometry"] else None

    @property
    def names(self) -> list[str]:
        """The transforms in the order in which they act."""
        return [name for stage in STAGES for name, _ in self._stages[stage]]

    @staticmethod
    def stage_of(name: str) -> Stage:
        """The stage of the transform of that name."""
        return plugins.load(FOLDER, name, path="data.transforms").Transform.stage

    def captioned(self, example: Example, *, number: int) -> Sample:
        """The example as a sample with all captions that it may be given, not decoded yet."""
        key = str(example.get("key", example["id"]))
        fields = {k: v for k, v in example.items() if k not in ("id", "key", "captions", *self._modalities)}
        sample = Sample(id=example["id"], key=key, captions=list(example["captions"]), fields=fields)
        for name, transform in self._stages["captions"]:
            caption: Captions = transform
            sample = caption(sample, self.random(name, number))
        if not sample.captions:
            raise Unreadable("no caption", key=key)
        return sample

    def viewed(self, sample: Sample, example: Example, *, number: int) -> Sample:
        """The sample with its pictures decoded and cropped, and what acts on single samples done."""
        sample.images, sample.crop = self._pictures(example, sample.key, number)
        for name, transform in self._stages["sample"]:
            change: PerSample = transform
            sample = change(sample, self.random(name, number))
        return sample

    def partners(self, *, batch_size: int, group: int, share: range) -> list[dict[int, int]]:
        """For each transform of rows, which rows it combines with which, for all rows that ``share`` depends on."""
        needed = set(share)
        found: list[dict[int, int]] = []
        for _, transform in reversed(self._stages["batch"]):
            change: PerBatch = transform
            mine = dict(change.partners(batch_size=batch_size, group=group, share=share))
            for row in sorted(needed - set(share)):  # other processes' rows, which a later transform combines with ours
                mine |= change.partners(batch_size=batch_size, group=group, share=range(row, row + 1))
            found.append(mine)
            needed |= set(mine.values())
        return found[::-1]

    def combined(self, rows: Rows, *, partners: Sequence[Mapping[int, int]], start: int) -> Rows:
        """The rows after all transforms of rows; ``start`` is the number of the global batch's first row."""
        if not partners:
            return rows
        at = {number: place for place, number in enumerate(rows.numbers.tolist())}
        for (name, transform), pairs in zip(self._stages["batch"], partners, strict=True):
            change: PerBatch = transform
            partner = np.array([at.get(pairs.get(n, -1), -1) for n in rows.numbers.tolist()], np.int64)
            rows = change(rows.replace(partner=partner), functools.partial(self._of_row, name, start))
        return rows

    def random(self, name: str, number: int) -> np.random.Generator:
        """The draws of one transform for the row of that number since the start of training."""
        return np.random.Generator(np.random.Philox(key=[self._seed, _stream(name)], counter=[0, 0, 0, number]))

    def _of_row(self, name: str, start: int, row: int) -> np.random.Generator:
        return self.random(name, start + row)

    def _pictures(self, example: Example, key: str, number: int) -> tuple[dict[str, np.ndarray], Crop | None]:
        crop = None
        first = next((example[name] for name in self._modalities if example.get(name) is not None), None)
        if self._stages["geometry"] and first is not None:
            name, geometry = self._stages["geometry"][0]
            height, width = _size(first, key)
            crop = geometry(height, width, self.random(name, number))
        images = {}
        for modality in self._modalities:
            picture = example.get(modality)
            if picture is None:
                continue  # whoever needs it says so, and with what the other examples have
            mine = crop
            if crop is not None and picture is not first:
                mine = _scaled(crop, (height, width), _size(picture, key))
            raw = isinstance(picture, np.ndarray) and crop is None
            images[modality] = picture if raw else pictures.decode(picture, mine, key=key)
        return images, crop


def _open(name: str, options: Section, *, given: Mapping[str, Any], path: str) -> Any:
    transform = plugins.load(FOLDER, name, path=path).Transform
    known = inspect.signature(transform.__init__).parameters
    mine = {key: value for key, value in given.items() if key in known}
    if "frame" in mine and mine["frame"] is None:
        raise ConfigError(f"{path}: {name!r} changes rows of tokens, and there are none here; leave it out")
    try:
        return transform(**bind(transform, options, path=f"{path}.{name}", given=mine))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(path) else f"{path}.{name}.{text}") from None


@functools.cache
def _stream(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _size(picture: Any, key: str) -> tuple[int, int]:
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    try:
        return pictures.size_of(picture)
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail, key=key) from None


def _scaled(crop: Crop, size: tuple[int, int], other: tuple[int, int]) -> Crop:
    """The same part of an aligned picture of another size."""
    down, across = other[0] / size[0], other[1] / size[1]
    return crop._replace(
        top=crop.top * down, left=crop.left * across, height=crop.height * down, width=crop.width * across
    )
