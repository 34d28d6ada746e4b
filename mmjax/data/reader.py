"""One row's example: read, captioned, decoded and transformed; replaced by another if it is unreadable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.core.groups import group_number
from mmjax.data.sample import (
    QUANTILE,
    DataError,
    Example,
    ImageSpec,
    Sample,
    Unreadable,
    as_unreadable,
    without_captions,
)
from mmjax.data.sequences.labels import LabelSequences
from mmjax.data.source import Source, UnreadableEntry
from mmjax.data.transform_chain import TransformChain

T = TypeVar("T")
Captions = Literal["random", "first"]

_STREAM = 2  # of random numbers; the order has 0, the pipeline 1
_ATTEMPTS = 32  # examples that are tried for one row


class Reader:
    """Makes samples with at most ``caption_rows`` captions and ``negative_rows`` hard negatives.

    ``sample.fields["negatives"]`` holds the false captions that were drawn, as (kind, true caption, false caption), and
    ``"group"`` the number of the sample's group by the fields ``groups``.
    ``"quantile"`` is that of its score, or None, and ``"labels"`` are those of its sequence, or None.
    """

    def __init__(
        self,
        source: Source,
        chain: TransformChain,
        *,
        seed: int,
        captions: Captions = "random",
        caption_rows: int = 1,
        negative_rows: int = 0,
        groups: Sequence[str] = (),
        labels: LabelSequences | None = None,
    ):
        self._source = source
        self._chain = chain
        self._seed = seed
        self._captions = captions
        self._caption_rows = caption_rows
        self._negative_rows = negative_rows
        self._groups, self._labels = groups, labels
        self._image_specs: dict[str, ImageSpec] = {}

    def first(self) -> Sample:
        """The sample of the first readable example; from then on all must have images of its shapes."""
        first: Unreadable | None = None
        for place in range(min(_ATTEMPTS, len(self._source))):
            try:
                example = self._source[place]
                sample = self._make(example, 0, [0.0] * (self._caption_rows + self._negative_rows))
            except ConfigError:
                raise
            except Exception as error:
                first = first or as_unreadable(error, f"example {place}")
                continue
            if self._negative_rows and "negatives" not in example and not self._chain.adds_negatives:
                raise ConfigError(
                    f"negatives_per_image={self._negative_rows}: the source supplies no negatives; use 0, a table of "
                    "them (data.negatives.path) or the transform negatives_rules"
                )
            for name in self._groups:
                if name not in example:
                    raise ConfigError(
                        f"groups={tuple(self._groups)}: the source's examples have no field {name!r}; they have "
                        f"{', '.join(sorted(map(str, example)))}"
                    )
            if self._labels is not None:
                self._labels.check(example)
            if not sample.images:
                raise ConfigError(
                    "the source's examples have no images: a modality is an array of uint8[H, W, channels] or an "
                    "encoded picture"
                )
            self._image_specs = {name: ImageSpec(image.shape, image.dtype) for name, image in sample.images.items()}
            return sample
        raise ConfigError(f"none of the source's first examples can be used; the first one: {first}")

    def sample(
        self, number: int, place: int, draws: list[float], *, component: range
    ) -> tuple[Sample, list[UnreadableEntry]]:
        """Reads the row of that ``number``, and replaces unreadable examples, whatever is wrong with them.

        The substitute is drawn from ``component`` by the seed, the row and the attempt alone. It is not the neighbor,
        which may be as broken.

        Returns:
          The sample, and the unreadable examples that were tried before it.
        """
        unreadable: list[UnreadableEntry] = []
        for attempt in range(_ATTEMPTS):
            key = f"example {place}"
            try:
                example = self._source[place]
                key = str(example.get("key", key))
                return self._make(example, number, draws), unreadable
            except Exception as error:
                problem = as_unreadable(error, key)
                unreadable.append((problem.key, problem.reason, problem.detail))
            generator = np.random.default_rng((self._seed, _STREAM, number, attempt))
            place = int(generator.integers(component.start, component.stop))
        last = ": ".join(filter(None, unreadable[-1]))
        raise DataError(f"{_ATTEMPTS} examples drawn one after the other cannot be used; the last one: {last}")

    def _make(self, example: Example, number: int, draws: list[float]) -> Sample:
        sample = self._chain.apply_caption_transforms(example, number=number)
        sample.fields["captions"] = captions = sample.captions
        if self._captions == "first":
            sample.captions = sample.captions[: self._caption_rows]
        else:
            sample.captions = sample_without_replacement(sample.captions, draws[: self._caption_rows], sample.weights)
        if "negatives" in sample.fields:  # before a transform such as flip makes other captions of them
            sample.fields["negatives"] = without_captions(sample.fields["negatives"], captions)
        sample = self._chain.decode_and_transform(sample, example, number=number)
        # Some examples of a mixture or a table have no negatives; their rows become padding.
        negatives = list(sample.fields.get("negatives", ())) if self._negative_rows else []
        sample.captions = sample.captions[: self._caption_rows]
        sample.fields = {
            "negatives": sample_without_replacement(negatives, draws[self._caption_rows :]),
            "quantile": sample.fields.get(QUANTILE),
            "teacher": sample.fields.get("teacher"),
            "labels": None if self._labels is None else self._labels.numbers(sample.fields),
            "group": group_number(*(sample.fields.get(name) for name in self._groups)),
        }
        if not 0 <= sample.id < 1 << 31:
            raise Unreadable("bad row", f"id {sample.id}: ids must be from 0 to 2**31 - 1", key=sample.key)
        for name, spec in self._image_specs.items():
            _check_image(sample, name, spec)
        return sample


def _check_image(sample: Sample, name: str, spec: ImageSpec) -> None:
    image = sample.images.get(name)
    if image is None or (image.shape, image.dtype) != spec:
        actual = "missing" if image is None else f"{image.dtype}{list(image.shape)}"
        raise Unreadable(
            "bad row",
            f"{name!r} is {actual}; the source's first example has {spec.dtype}{list(spec.shape)}: bring all images to "
            "one size, as data.transforms=(('resize_crop', {}),) does",
            key=sample.key,
        )


def sample_without_replacement(
    pool: Sequence[T], draws: list[float], weights: Sequence[float] | None = None
) -> list[T]:
    """One member of ``pool`` for each draw, none twice; all members if the pool is smaller than that.

    Args:
      pool: what to choose from.
      draws: uniform numbers in [0, 1).
      weights: of the members; uniform if None. A member of weight 0 is never chosen.
    """
    left = list(pool)
    if weights is None:
        return [left.pop(int(draw * len(left))) for draw in draws[: len(left)]]
    chosen, weights_left = [], list(weights)
    for draw in draws:
        if not sum(weights_left) > 0:
            break
        bounds = np.cumsum(weights_left) / sum(weights_left)
        index = int(np.searchsorted(bounds[:-1], draw, side="right"))
        chosen.append(left.pop(index))
        weights_left.pop(index)
    return chosen
