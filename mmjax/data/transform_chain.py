"""The transforms of a configuration, in their order: from a source's examples to samples and rows of batches."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind, call
from mmjax.data import pictures
from mmjax.data.sample import BatchRows, Crop, Example, Sample, Unreadable
from mmjax.data.token_format import TokenFormat
from mmjax.data.transforms.common.base import (
    STAGES,
    BatchTransform,
    CaptionTransform,
    GeometryTransform,
    SampleTransform,
    Stage,
)

FOLDER = "mmjax.data.transforms"
Section = Mapping[str, Any]


class TransformChain:
    """What happens to an example, and to rows of examples, between the source and the batch.

    Args:
      transforms: (name, options) pairs, in their order (see ``mmjax.data.transforms.common.base`` for stages).
      image_size: height and width that a geometry transform crops to.
      modalities: the keys of the pictures in an example.
      token_format: the tokenizer's; without it the chain can have no batch transforms.
      seed: of all draws.
      background: the color that transparent pictures are put on; ``keep``: pictures have alpha as a fourth channel.
      path: the config key that error messages name.
      aligned: crop all pictures of an example alike (``Source.aligned``).
    """

    def __init__(
        self,
        transforms: Sequence[tuple[str, Section]],
        *,
        image_size: int,
        modalities: tuple[str, ...],
        token_format: TokenFormat | None = None,
        seed: int = 0,
        background: str = "white",
        path: str = "data.transforms",
        aligned: bool = True,
    ):
        self._modalities = modalities
        self._aligned = aligned
        self._seed = seed
        self._background = pictures.parse_background(background)
        injected = {
            "image_size": image_size,
            "data_modalities": modalities,
            "token_format": token_format,
            "background": self._background,
        }
        self._stages: dict[str, list[tuple[str, Any]]] = {stage: [] for stage in STAGES}
        last_stage, count_of = 0, dict[str, int]()
        for name, options in transforms:
            transform = _make_transform(name, options, injected=injected, path=path)
            stage = transform.stage
            if STAGES.index(stage) < last_stage:
                raise ConfigError(
                    f"{path}: {name!r} ({stage}) comes after a transform of a later stage; the order of stages is "
                    f"{', '.join(STAGES)}"
                )
            last_stage = STAGES.index(stage)
            count_of[name] = count_of.get(name, 0) + 1
            # Random draws depend on the transform's name; a second one of the same name gets another name.
            self._stages[stage].append((name if count_of[name] == 1 else f"{name}#{count_of[name]}", transform))
        if len(self._stages["geometry"]) > 1:
            raise ConfigError(f"{path}: {' and '.join(n for n, _ in self._stages['geometry'])} both crop; keep one")

    @property
    def geometry(self) -> GeometryTransform | None:
        """The transform that crops, if there is one."""
        return self._stages["geometry"][0][1] if self._stages["geometry"] else None

    @property
    def names(self) -> list[str]:
        """The transforms in the order in which they act."""
        return [name for stage in STAGES for name, _ in self._stages[stage]]

    @property
    def adds_negatives(self) -> bool:
        """Whether one of the transforms makes hard negatives."""
        transforms = (*self._stages["sample"], *self._stages["batch"])
        return any(getattr(transform, "adds_negatives", False) for _, transform in transforms)

    @property
    def joins_captions(self) -> list[str]:
        """The transforms that make captions of two whole ones."""
        return [name for name, transform in self._stages["batch"] if getattr(transform, "joins_captions", False)]

    @staticmethod
    def stage_of(name: str) -> Stage:
        """The stage of the transform of that name."""
        return _load(name).stage

    @staticmethod
    def makes_negatives(name: str) -> bool:
        """Whether the transform of that name makes hard negatives."""
        return getattr(_load(name), "adds_negatives", False)

    @staticmethod
    def published_targets(name: str) -> str | None:
        """The ``objective.targets`` that the paper of the transform of that name has, if not those by provenance."""
        return getattr(_load(name), "published_targets", None)

    def apply_caption_transforms(self, example: Example, *, number: int) -> Sample:
        """The example as a sample with all captions that it may get; its pictures are not decoded yet."""
        key = str(example.get("key", example["id"]))
        fixed = ("id", "key", "captions", "caption_weights", *self._modalities)
        fields = {k: v for k, v in example.items() if k not in fixed}
        sample = Sample(id=example["id"], key=key, captions=list(example["captions"]), fields=fields)
        sample.weights = example.get("caption_weights")
        for name, transform in self._stages["captions"]:
            caption_transform: CaptionTransform = transform
            sample = caption_transform(sample, self.random(name, number))
        if not sample.captions:
            raise Unreadable("no caption", key=key)
        return sample

    def decode_and_transform(self, sample: Sample, example: Example, *, number: int) -> Sample:
        """The sample with its pictures decoded and cropped, after all sample transforms."""
        sample.images, sample.crop = self._decode(example, sample.key, number)
        for name, transform in self._stages["sample"]:
            sample_transform: SampleTransform = transform
            sample = sample_transform(sample, self.random(name, number))
        return sample

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> list[dict[int, int]]:
        """For each batch transform, row to partner row, for all rows that ``host_rows`` depends on."""
        needed = set(host_rows)
        partners_of: list[dict[int, int]] = []
        for _, transform in reversed(self._stages["batch"]):
            batch_transform: BatchTransform = transform
            pairs = dict(batch_transform.partners(batch_size=batch_size, group=group, host_rows=host_rows))
            # Rows of other processes that a later transform combines with ours.
            for row in sorted(needed - set(host_rows)):
                pairs |= batch_transform.partners(batch_size=batch_size, group=group, host_rows=range(row, row + 1))
            partners_of.append(pairs)
            needed |= set(pairs.values())
        return partners_of[::-1]

    def combine_texts(
        self,
        samples: Sequence[Sample],
        *,
        rows: Sequence[int],
        partners: Sequence[Mapping[int, int]],
        step: int,
        start: int,
    ) -> list[Sample]:
        """The samples of ``rows`` after the batch transforms that combine captions before they become tokens."""
        for (name, transform), pairs in zip(self._stages["batch"], partners, strict=True):
            if not hasattr(transform, "combine_texts"):
                continue
            sample_of = dict(zip(rows, samples, strict=True))
            samples = [
                transform.combine_texts(
                    sample_of[row], sample_of.get(pairs.get(row, -1)), step, self.random(f"{name}.texts", start + row)
                )
                for row in rows
            ]
        return list(samples)

    def apply_batch_transforms(
        self, rows: BatchRows, *, partners: Sequence[Mapping[int, int]], start: int
    ) -> BatchRows:
        """The rows after all batch transforms; ``start`` is the number of the global batch's first row."""
        if not partners:
            return rows
        place_of = {number: place for place, number in enumerate(rows.numbers.tolist())}
        for (name, transform), pairs in zip(self._stages["batch"], partners, strict=True):
            batch_transform: BatchTransform = transform
            partner = np.array([place_of.get(pairs.get(n, -1), -1) for n in rows.numbers.tolist()], np.int64)
            rows = batch_transform(rows.replace(partner=partner), functools.partial(self._random_of_row, name, start))
        return rows

    def random(self, name: str, number: int) -> np.random.Generator:
        """The generator of one transform for the row of that number since the start of training."""
        return np.random.Generator(np.random.Philox(key=[self._seed, _hash(name)], counter=[0, 0, 0, number]))

    def _random_of_row(self, name: str, start: int, row: int) -> np.random.Generator:
        return self.random(name, start + row)

    def _decode(self, example: Example, key: str, number: int) -> tuple[dict[str, np.ndarray], Crop | None]:
        crop = None
        present = [name for name in self._modalities if example.get(name) is not None]
        first = example[present[0]] if present else None
        if self._stages["geometry"] and first is not None:
            name, geometry = self._stages["geometry"][0]
            height, width = _size(first, key)
            crop = geometry(height, width, self.random(name, number))
        images = {}
        for modality in self._modalities:
            picture = example.get(modality)
            if picture is None:
                continue  # the pipeline raises if a batch needs it
            own_crop = crop
            if crop is not None and modality != present[0]:
                size = _size(picture, key)
                if self._aligned:
                    own_crop = _scale_crop(crop, (height, width), size)
                else:
                    own_crop = geometry(*size, self.random(f"{name}.{modality}", number))
            is_final = isinstance(picture, np.ndarray) and crop is None
            images[modality] = (
                picture if is_final else pictures.decode(picture, own_crop, key=key, background=self._background)
            )
        return images, crop


def _load(name: str, *, path: str = "data.transforms") -> Any:
    return plugins.load_class(FOLDER, "Transform", name, path=path)


def _make_transform(name: str, options: Section, *, injected: Mapping[str, Any], path: str) -> Any:
    transform = _load(name, path=path)
    parameters = inspect.signature(transform.__init__).parameters
    wanted = {key: value for key, value in injected.items() if key in parameters}
    if "token_format" in wanted and wanted["token_format"] is None:
        raise ConfigError(f"{path}: {name!r} transforms rows of tokens, which evaluation has none of; leave it out")
    bound = bind(transform, options, path=f"{path}.{name}", injected=wanted)
    elsewhere = {"image_size": "model.vision_cfg.image_size", "data_modalities": "data.modalities"}
    return call(transform, bound, path=f"{path}.{name}", paths=elsewhere)


@functools.cache
def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _size(picture: Any, key: str) -> tuple[int, int]:
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    try:
        return pictures.size_of(picture)
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail, key=key) from None


def _scale_crop(crop: Crop, size: tuple[int, int], other: tuple[int, int]) -> Crop:
    """The same region of an aligned picture of another size."""
    down, across = other[0] / size[0], other[1] / size[1]
    return crop._replace(
        top=crop.top * down, left=crop.left * across, height=crop.height * down, width=crop.width * across
    )
