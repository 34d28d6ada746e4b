"""Weakly supervised grounding: where a model looks to match an expression, against the box of what it refers to."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.core.config import Between, ConfigError
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import annotated_files, first_of
from mmjax.evals.common.pairs import count_unreadable

_RASTER = 8
"""Points along a patch at which maps are read."""

_IOU = 0.5


class Evaluator(Base):
    """Grad-CAM of the matching head against boxes, on RefCOCO+ or any examples with a ``box`` (arXiv:2107.07651).

    The map of each pair (``mmjax.models.attention.grad_cam``) is enlarged by bicubic interpolation, as torch's.

    * ``accuracy``: of an example's ``proposals`` the one with the largest sum of the map over ``area ** power`` has an
      intersection over union of at least 0.5 with the box. ``accuracy_KIND`` is that of a ``kind``, such as ``testA``.
      ALBEF's code, which this follows, sums over whole pixels of the original picture.
    * ``pointing``: the map's largest value lies in the box.
    * ``mass_in_box``: the fraction of the map that lies there, and ``area_of_box`` the box's share of the picture,
      which a map without any knowledge has; ``mass_gain`` is the difference.

    The model is trained on pictures and texts alone. It needs ``model.fusion`` with ``kind="cross"``. Pictures should
    be squashed to a square (``model.vision_cfg.image_resize``), or a box may lie outside of what the model sees.
    """

    needs_head: ClassVar[str | None] = "grad_cam"
    headline: ClassVar[Collection[str]] = (
        *("accuracy", "accuracy_testA", "accuracy_testB", "pointing", "mass_gain"),
        "num_unreadable",
    )
    over_all: ClassVar[Collection[str]] = ("pointing", "mass_in_box", "area_of_box", "mass_gain")

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        power: Annotated[float, Between(0, 1)] = 0.5,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: The split to measure on.
            source: Options for ``open_source``.
            power: Of the area of proposals: 0 prefers large ones, 1 small ones.
        """
        self.split = open_split(open_source, split, source)
        self.power = power
        self._seen: tuple[BoundEmbedder, list[dict[str, Any]], np.ndarray, np.ndarray] | None = None

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """RefCOCO+ below ``root``: ``refcoco+/refs(unc).p``, ``instances.json``, ``dets.json``; ``coco/train2014``."""
        path = first_of(root, ("refcoco+/refs(unc).p", "refcoco/refcoco+/refs(unc).p"))
        images = first_of(root, ("coco/train2014", "coco/images/train2014"))
        proposals = None if path is None else first_of(path.parent, ("dets.json",))
        more = {} if proposals is None else {"proposals": str(proposals)}
        options = annotated_files("refcoco", path, images, expected="coco/train2014", **more)
        return {f"refcoco+_{split}": {"split": split, **options} for split in ("val", "test")} if options else {}

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        items, _, maps = self._look(embedder)
        rows = [self._measure(_enlarge(one), item) for one, item in zip(maps, items, strict=True)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        result = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
        for kind in sorted({str(item["kind"]) for item in items if item.get("kind")}):
            own = [row["accuracy"] for row, item in zip(rows, items, strict=True)
                   if str(item.get("kind")) == kind and "accuracy" in row]  # fmt: skip
            result |= {f"accuracy_{kind}": float(np.mean(own))} if own else {}
        num_unreadable = count_unreadable(embedder, self.split)
        return result | {"num_examples": float(len(items)), "num_unreadable": float(num_unreadable)}

    def panel(self, embedder: BoundEmbedder, *, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What a report shows of ``rows`` of the split.

        Each entry: ``image`` u8[H, W, C], ``text``, ``box``, ``heat`` f64[n, n], and metrics such as ``mass_in_box``.
        """
        items, indices, maps = self._look(embedder)
        panel = []
        for row in rows[: len(items)]:
            item, heat = items[row], _enlarge(maps[row])
            image = self.split.source[indices[row]][embedder.modalities[0]]
            shown = {"image": image, "text": item["captions"][0], "box": item["box"], "heat": heat}
            panel.append(shown | self._measure(heat, item))
        return panel

    def _look(self, embedder: BoundEmbedder) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """The examples, their indices, and their maps f32[n, side * side]; kept until other parameters are asked."""
        if self._seen is None or self._seen[0] is not embedder:
            _, items, indices, _ = embedder.read(self.split.source, key=self.split.key)
            for row, item in enumerate(items):
                if "box" not in item:
                    raise ConfigError(
                        f"example {row} ({item.get('key', item['id'])}) has no box; refcoco needs the field 'box': "
                        "name a source that has it, such as refcoco, in eval.options.refcoco.source"
                    )
            texts = [item["captions"][0] for item in items]
            maps = embedder.match(self.split.source, indices, texts, np.arange(len(items)), head="grad_cam")
            self._seen = embedder, items, indices, maps
        return self._seen[1:]

    def _measure(self, heat: np.ndarray, item: dict[str, Any]) -> dict[str, float]:
        """The metrics of one example, of its map f64[n, n]."""
        box = item["box"]
        inside = _inside(box, len(heat))
        positive = np.maximum(heat, 0)
        mass = float((positive * inside).sum() / max(positive.sum(), 1e-30))
        area = float(inside.mean())
        result = {
            "pointing": float(inside.ravel()[heat.argmax()]),
            "mass_in_box": mass,
            "area_of_box": area,
            "mass_gain": mass - area,
        }
        if item.get("proposals"):
            scores = [
                (heat * _inside(one, len(heat))).sum() / max((one[2] - one[0]) * (one[3] - one[1]), 1e-9) ** self.power
                for one in item["proposals"]
            ]
            result["accuracy"] = float(overlap(box, item["proposals"][int(np.argmax(scores))]) >= _IOU)
        return result


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(across, 0.0) * max(down, 0.0)
    total = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both
    return both / total if total > 0 else 0.0


def _inside(box: Any, size: int) -> np.ndarray:
    """bool[size, size]: the points whose centers lie in a box in fractions."""
    centers = (np.arange(size) + 0.5) / size
    across, down = ((centers >= box[k]) & (centers < box[k + 2]) for k in (0, 1))
    return down[:, None] & across[None, :]


def _enlarge(one: np.ndarray) -> np.ndarray:
    """f64[n, n] of a map f32[side * side]."""
    side = round(len(one) ** 0.5)
    weights = _bicubic(side)
    return weights @ one.reshape(side, side).astype(np.float64) @ weights.T


@functools.cache
def _bicubic(side: int) -> np.ndarray:
    """f64[side * _RASTER, side]: bicubic interpolation with a = -0.75 and repeated borders, as torch's."""
    size, a = side * _RASTER, -0.75
    place = (np.arange(size) + 0.5) / _RASTER - 0.5
    first = np.floor(place).astype(int)
    weights = np.zeros((size, side))
    for tap in range(-1, 3):
        d = np.abs(place - (first + tap))
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        np.add.at(weights, (np.arange(size), np.clip(first + tap, 0, side - 1)), np.where(d <= 1, near, far))
    return weights
