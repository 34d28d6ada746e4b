"""Image-text retrieval with any number of captions per image: recalls, ranks, and the geometry of embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from mmjax.core.config import ConfigError
from mmjax.core.sphere import modality_gap, uniformity
from mmjax.data.text import MaxCaptions, Norm, clean
from mmjax.evals.common.base import Base, OpenSource, Published, open_split
from mmjax.evals.common.caption_benchmarks import find_captions
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.host_batches import DIGEST
from mmjax.evals.common.ranks import Ranks, Ties, count_ranks

RECALL_AT = (1, 5, 10)
_GEOMETRY = ("uniformity_image", "uniformity_text", "modality_gap")
COUNTS = (
    "num_images", "num_captions", "num_repeated_images", "num_repeated_captions", "num_truncated", "num_unreadable",
)  # fmt: skip
_SOURCE = "open_clip, docs/openclip_retrieval_results.csv"
UNIFORMITY_ROWS = 2048  # uniformity compares all pairs of this many rows


def _published(model: str, **percent: tuple[float, ...]) -> tuple[Published, ...]:
    """R@1, 5 and 10 of captions as queries, then of images, by data set."""
    names = [f"{direction}_R@{k}" for direction in ("text_to_image", "image_to_text") for k in RECALL_AT]
    return tuple(
        Published(
            name, model, _SOURCE, {n: value / 100 for n, value in zip(names, six, strict=True)} | {"rsum": sum(six)}
        )
        for name, six in percent.items()
    )


class Evaluator(Base):
    """Retrieval over a whole split.

    ``image_to_text_*``: each image is a query, and any of its captions is a hit; its rank is the number of captions of
    others above its own best caption. ``text_to_image_*``: each caption is a query, and any of its images is a hit.
    ``R@k`` are fractions of the queries, ``mean_rank`` and ``median_rank`` count from 1, ``mrr`` is the mean of
    1 / rank, and ``rsum`` is the sum of the six recalls in percent (at most 600).

    Equal captions are one caption, which belongs to all of its images, and equal pictures are one image with all of
    their captions; ``num_repeated_*`` count what was merged. Images of one id, such as views of one thing, share their
    captions.

    A negative that scores exactly as high as the positive counts as above it (``ties="pessimistic"``), so a model that
    maps everything to one point scores 0. ``*_R@1_optimistic`` and ``*_mean_rank_optimistic`` count it as below, and
    ``*_tie_gap`` is the difference that this makes to R@1.

    How the unit embeddings x lie on the sphere, over the whole split and not by folds (uniformity: of at most 2,048
    rows, evenly spaced)::

        uniformity_image, uniformity_text = log mean_{i≠j} exp(-2 ‖x_i - x_j‖²)    (0: one point; lower: more even)
        modality_gap = ‖mean of the images - mean of the captions‖                 (at most 2)

    Conventions: Radford et al. 2021 (any caption is a hit); Karpathy and Fei-Fei 2015 (five folds of 1,000 images);
    Wang and Isola 2020 (arXiv:2005.10242, uniformity); Liang et al. 2022 (arXiv:2203.02053, the gap).
    """

    published = (
        *_published(
            "CLIP ViT-B/32 (OpenAI)",
            flickr30k=(58.8, 83.6, 90.0, 78.9, 94.9, 98.2), coco=(30.4, 55.9, 66.9, 50.1, 75.0, 83.5),
        ),
        *_published(
            "CLIP ViT-B/32 (LAION-2B)",
            flickr30k=(66.8, 88.4, 93.1, 84.1, 96.2, 98.3), coco=(39.3, 65.4, 75.6, 56.3, 79.8, 87.1),
        ),
        *_published(
            "CLIP ViT-B/32 (DataComp XL)",
            flickr30k=(61.1, 84.9, 90.9, 79.0, 93.9, 96.2), coco=(37.1, 62.4, 72.7, 53.5, 77.8, 86.0),
        ),
        *_published(
            "CLIP ViT-B/16 (OpenAI)",
            flickr30k=(62.2, 85.7, 91.9, 82.2, 96.6, 99.0), coco=(33.1, 58.4, 69.0, 52.4, 76.7, 84.6),
        ),
        *_published(
            "CLIP ViT-L/14 (OpenAI)",
            flickr30k=(65.0, 87.2, 92.0, 85.2, 97.4, 99.2), coco=(36.5, 61.1, 71.1, 56.3, 79.4, 86.6),
        ),
        *_published(
            "SigLIP ViT-B/16 (WebLI)",
            flickr30k=(74.7, 92.3, 95.6, 89.1, 98.0, 99.3), coco=(47.8, 72.4, 81.0, 65.7, 85.4, 91.3),
        ),
    )  # fmt: skip
    headline: ClassVar[Collection[str]] = (
        *(f"{direction}_R@{k}" for direction in ("image_to_text", "text_to_image") for k in RECALL_AT),
        "rsum",
    )

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        ties: Ties = "pessimistic",
        max_captions: MaxCaptions = None,
        caption_norm: Norm = "none",
        folds: int = 1,
        merge_repeats: bool = True,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: The split to measure on.
            source: Options for ``open_source``.
            ties: How negatives count that score as high as the positive.
            max_captions: Use only this many captions of each image. Of COCO's test images ten have more than 5.
            caption_norm: How captions are cleaned: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``).
            folds: Average over this many equal parts of the images; 5 of COCO are the protocol of 1,000 images.
            merge_repeats: Equal captions are one caption, and equal pictures one image.
        """
        self.split = open_split(open_source, split, source)
        if max_captions is not None and max_captions < 1:
            raise ConfigError(f"max_captions={max_captions}: must be at least 1; leave it out to keep all captions")
        self.max_captions, self.caption_norm, self.merge_repeats = max_captions, caption_norm, merge_repeats
        size = len(self.split.source)
        if not 1 <= folds <= size:
            raise ConfigError(f"folds={folds}: must lie between 1 and the {size} images of {split!r}")
        self.folds = folds
        self.ties = ties

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """COCO, Flickr30k and Flickr8k below ``root``, and WebDatasets of the type ``retrieval``."""
        return {
            name: {"split": "test", "source": source, "merge_repeats": False}
            for name, source in find_captions(root).items()
        }

    @classmethod
    def metric_names(cls) -> Collection[str] | None:
        """Those of ``metrics``, of the geometry, and counts."""
        one = Ranks(np.zeros(1, np.int32), np.zeros(1, np.int32))
        return [*metrics(one, one), *_GEOMETRY, *COUNTS]

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        return self.measure(embedder)

    def measure(self, embedder: BoundEmbedder, *, modalities: tuple[str, ...] | None = None) -> dict[str, float]:
        """The metrics with some ``modalities`` of the images; None: those that the model takes."""
        data = self._embed(embedder, modalities)
        folds = []
        for rows in np.array_split(np.arange(len(data.images)), min(self.folds, len(data.images))):
            own = data.own[rows]
            texts = np.unique(own[own >= 0])
            ranks = count_ranks(data.images[rows], own, data.texts[texts], texts, row_sharding=embedder.row_sharding)
            folds.append(metrics(*ranks, ties=self.ties))
        mean = {name: float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
        geometry = (
            _on_device(uniformity, evenly_spaced(data.images, UNIFORMITY_ROWS)),
            _on_device(uniformity, evenly_spaced(data.texts, UNIFORMITY_ROWS)),
            _on_device(modality_gap, _mean_row(data.images), _mean_row(data.texts)),
        )
        return mean | dict(zip(_GEOMETRY, geometry, strict=True)) | self._counts(embedder, data)

    def panel(self, embedder: BoundEmbedder, *, rows: Sequence[int], k: int = 5) -> list[dict[str, Any]]:
        """The ``k`` best captions of the whole split for each image of ``rows``.

        Each entry: ``image`` u8[H, W, C], ``captions`` (its own), ``retrieved`` [(caption, cosine, is_own)].
        """
        data = self._embed(embedder)
        panel = []
        for row in rows[: len(data.images)]:
            own = [data.captions[j] for j in data.own[row] if j >= 0]
            retrieved = {
                data.captions[j]: score for j, score in itertools.islice(_best(data.texts, data.images[row]), k)
            }
            panel.append(
                {
                    "image": self.split.source[data.indices[row]][embedder.modalities[0]],
                    "captions": own,
                    "retrieved": [(caption, score, caption in own) for caption, score in retrieved.items()],
                }
            )
        return panel

    def caption_panel(self, embedder: BoundEmbedder, *, rows: Sequence[int], k: int = 5) -> list[dict[str, Any]]:
        """The ``k`` best images of the whole split for the first caption of each image of ``rows``.

        Each entry: ``caption``, ``image`` u8[H, W, C] (its own), ``retrieved`` [(image, cosine, is_own)].
        """
        data = self._embed(embedder)
        modality = embedder.modalities[0]
        panel = []
        for row in rows[: len(data.images)]:
            j = int(data.own[row][0])
            best = itertools.islice(_best(data.images, data.texts[j]), k)
            panel.append(
                {
                    "caption": data.captions[j],
                    "image": self.split.source[data.indices[row]][modality],
                    "retrieved": [
                        (self.split.source[data.indices[i]][modality], score, j in data.own[i]) for i, score in best
                    ],
                }
            )
        return panel

    @staticmethod
    def _counts(embedder: BoundEmbedder, data: _Data) -> dict[str, float]:
        """How much was measured; ``num_truncated`` is left out where the tokenizer cannot tell."""
        truncated = embedder.is_truncated(data.captions)
        counts = (
            len(data.images),
            len(data.captions),
            *data.num_repeated,
            None if truncated is None else truncated.sum(),
            data.num_unreadable,
        )
        return {name: float(n) for name, n in zip(COUNTS, counts, strict=True) if n is not None}

    def _embed(self, embedder: BoundEmbedder, modalities: tuple[str, ...] | None = None) -> _Data:
        read = embedder.read(self.split.source, key=self.split.key, modalities=modalities)
        images, items, indices, unreadable = read
        rows: dict[Any, int] = {}  # the first of equal pictures
        number: dict[Any, int] = {}  # of each caption
        by_id: dict[int, dict[int, None]] = {}  # captions of images with that id
        own: dict[int, dict[int, None]] = {}
        num_captions = 0
        for row, item in enumerate(items):
            captions = [clean(caption, norm=self.caption_norm) for caption in item["captions"]]
            captions = list(filter(None, captions))[: self.max_captions]
            if not captions:
                raise ValueError(f"example {row} has no captions; retrieval needs at least one for every image")
            place = num_captions
            num_captions += len(captions)
            if self.merge_repeats:
                numbers = [number.setdefault(caption, len(number)) for caption in captions]
            else:
                numbers = [number.setdefault((caption, place + i), len(number)) for i, caption in enumerate(captions)]
            first = rows.setdefault(item[DIGEST] if self.merge_repeats else row, row)
            own[first] = by_id.setdefault(items[first].get("id", first), {})
            own[first].update(dict.fromkeys(numbers))
        firsts = list(own)
        table = np.full((len(own), max(map(len, own.values()))), -1, np.int32)
        for line, numbers_of_picture in zip(table, own.values(), strict=True):
            line[: len(numbers_of_picture)] = list(numbers_of_picture)
        texts = list(number) if self.merge_repeats else [caption for caption, _ in number]
        return _Data(
            images=images[firsts],
            captions=texts,
            texts=embedder.texts(texts),
            own=table,
            indices=indices[firsts],
            num_repeated=(len(items) - len(own), num_captions - len(number)),
            num_unreadable=len(unreadable),
        )


class _Data(NamedTuple):
    images: np.ndarray  # f32[n, E]
    captions: list[str]  # m
    texts: np.ndarray  # f32[m, E]
    own: np.ndarray  # i32[n, k]: the captions of each image, then -1
    indices: np.ndarray  # i64[n]: of the images in the source
    num_repeated: tuple[int, int]  # images and captions that were merged
    num_unreadable: int


def metrics(image_to_text: Ranks, text_to_image: Ranks, *, ties: Ties = "pessimistic") -> dict[str, float]:
    """Recalls and mean ranks from counted ranks; ``Evaluator`` defines them."""
    result: dict[str, float] = {}
    for direction, ranks in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        rank, best = ranks.rank(ties), ranks.rank("optimistic")
        for k in RECALL_AT:
            result[f"{direction}_R@{k}"] = float(np.mean(rank < k))
        result[f"{direction}_mean_rank"] = float(np.mean(rank + 1))
        result[f"{direction}_median_rank"] = float(np.floor(np.median(rank)) + 1)
        result[f"{direction}_mrr"] = float(np.mean(1 / (rank + 1)))
        result[f"{direction}_R@1_optimistic"] = float(np.mean(best < 1))
        result[f"{direction}_mean_rank_optimistic"] = float(np.mean(best + 1))
        result[f"{direction}_tie_gap"] = float(np.mean(best < 1) - np.mean(ranks.rank("pessimistic") < 1))
    recalls = [result[f"{direction}_R@{k}"] for direction in ("image_to_text", "text_to_image") for k in RECALL_AT]
    result["rsum"] = 100 * sum(recalls)
    result["mean_recall@1"] = (recalls[0] + recalls[len(RECALL_AT)]) / 2
    return result


def _on_device(function: Callable[..., jax.Array], *arrays: np.ndarray) -> float:
    """``function`` of host arrays, moved explicitly, because training forbids implicit transfers."""
    return float(jax.device_get(jax.jit(function)(*map(jax.device_put, arrays))))


def _mean_row(rows: np.ndarray) -> np.ndarray:
    """f32[1, E]: averaged on the host, so that one compiled program serves splits of any size."""
    return rows.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)


def evenly_spaced(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of the rows, evenly spaced."""
    n = min(len(rows), limit)
    return rows[np.arange(n) * len(rows) // n]


def _best(gallery: np.ndarray, query: np.ndarray) -> Iterator[tuple[int, float]]:
    scores = gallery @ query
    for row in np.argsort(-scores, kind="stable"):
        yield int(row), float(scores[row])
