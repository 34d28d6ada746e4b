"""Expressions that refer to one object of a picture, with its box: the files of RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from mmjax.core import plain_pickle
from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats.image_files import ImageFiles, one_modality
from mmjax.data.sample import Example
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib

MOST_INSTRUCTIONS = 50_000_000  # fifty thousand objects with three expressions each take some five million

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in fractions of the picture."""


class _Expression(NamedTuple):
    picture: dict[str, Any]  # of instances.json
    text: str
    split: str
    box: Box


class Source(source.Source):
    """An example for each expression: it is the caption, and ``box`` is the object's.

    ``path`` is ``refs(unc).p`` of the authors (Yu et al. 2016, arXiv:1608.00272), a pickle of which only plain lists,
    dictionaries, texts and numbers are read: one that names any class or function is refused. Boxes and names of
    pictures stand in ``instances.json`` beside it. ``kind`` is the split. Boxes are (left, top, right, bottom) in
    fractions of the picture; evaluation moves them as it crops it. Expressions of one picture share its ``id``.

    Args:
      split: ``train``, ``val``, ``testA`` (people) or ``testB`` (other objects); ``test`` is both.
      path: the pickle of expressions.
      instances: COCO's annotations; left out: ``instances.json`` beside ``path``.
      proposals: ``dets.json``, boxes that a detector gave, [left, top, width, height, …] for each picture's number:
        ``proposals`` of an example, of which evaluation chooses one. Left out: examples have none.
      image_root: the folder of COCO's ``train2014``; that of ``path`` if left out.
      modalities: one name, for the images.
      max_mib: largest picture in MiB; a larger one is unreadable.
    """

    rows_share_images = True

    def __init__(
        self,
        split: str,
        *,
        path: str,
        instances: str | None = None,
        proposals: str | None = None,
        image_root: str | None = None,
        modalities: tuple[str, ...] = ("image",),
        max_mib: MaxMib = MAX_MIB,
    ):
        self.modalities = one_modality(modalities)
        self._files = ImageFiles.from_options([path], image_root, (), max_mib)
        instances = instances or f"{path.rpartition('/')[0] or '.'}/instances.json"
        content = _json(instances, "instances")
        try:
            pictures = {entry["id"]: entry for entry in content["images"]}
            boxes = {entry["id"]: entry["bbox"] for entry in content["annotations"]}
        except (KeyError, TypeError):
            raise ConfigError(
                f"instances={instances!r}: no annotations of COCO; expected {{images, annotations}}"
            ) from None
        self._proposals = None if proposals is None else _proposals(proposals, pictures)
        self._examples: list[_Expression] = []
        self.unreadable: list[UnreadableEntry] = []
        splits = ("testA", "testB") if split == "test" else (split,)
        for number, entry in enumerate(_plain_pickle(path)):
            try:
                if entry["split"] not in splits:
                    continue
                picture = pictures[entry["image_id"]]
                box = _fractions(boxes[entry["ann_id"]], picture)
                texts = [str(sentence["sent"]).strip() for sentence in entry["sentences"]]
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                self.unreadable.append((f"{path}:{number}", "bad row", f"no expression of a box ({error!r})"))
                continue
            self._examples += [_Expression(picture, text, entry["split"], box) for text in texts if text]
        if not self._examples:
            raise ConfigError(f"split={split!r}: {path!r} has no expressions of it; use train, val, testA or testB")
        self._numbers = {
            name: i for i, name in enumerate(dict.fromkeys(e.picture["file_name"] for e in self._examples))
        }
        self._files.check_root(list(self._numbers)[:4])

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        one = self._examples[self.check_index(index)]
        name = one.picture["file_name"]
        example = {"id": self._numbers[name], "key": name, "captions": [one.text], "kind": one.split, "box": one.box}
        if self._proposals is not None:
            boxes = self._proposals.get(str(one.picture["id"]), [])
            example["proposals"] = [_fractions(box, one.picture) for box in boxes]
        return {**example, self.modalities[0]: self._files.read(name, key=name)}

    def column(self, name: str) -> np.ndarray:
        """A field of all examples: ``id`` or ``kind``."""
        if name == "id":
            return np.array([self._numbers[one.picture["file_name"]] for one in self._examples])
        return np.array([one.split for one in self._examples]) if name == "kind" else super().column(name)


def _plain_pickle(path: str) -> list[Any]:
    try:
        machine = plain_pickle.Machine()
        content = plain_pickle.load(io.BytesIO(filesystem.read(path)), machine, most_instructions=MOST_INSTRUCTIONS)
    except OSError as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); name refs(unc).p") from None
    except Exception as error:  # a damaged pickle fails in any way
        raise ConfigError(
            f"path={path!r}: no pickle of plain values ({error}); use refs(unc).p of the authors"
        ) from None
    if not isinstance(content, list):
        raise ConfigError(f"path={path!r}: no list of expressions; use refs(unc).p of the authors")
    return content


def _json(path: str, key: str) -> Any:
    try:
        return json.loads(filesystem.read(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={path!r}: cannot be read ({error}); name a JSON file") from None


def _proposals(path: str, pictures: Collection[int]) -> dict[str, list[list[float]]]:
    """The boxes of each picture's number; those of other data sets, or in another form, would be no error later."""
    content = _json(path, "proposals")
    if not isinstance(content, dict) or content.keys().isdisjoint(map(str, pictures)):
        raise ConfigError(
            f"proposals={path!r}: has boxes of none of the pictures; expected {{picture's number: [[left, top, width, "
            "height], …]}, as in ALBEF's dets.json, or leave it out"
        )
    return content


def _fractions(box: list[float], picture: dict[str, Any]) -> Box:
    """(left, top, right, bottom) in fractions, of left, top, width and height in pixels."""
    left, top, width, height = (float(number) for number in box[:4])
    across, down = float(picture["width"]), float(picture["height"])
    return left / across, top / down, (left + width) / across, (top + height) / down
