"""Culture mixup (EMNLP 2023, "Cultural Concept Adaptation on Multimodal Reasoning"): replaces concepts across cultures.

Captions are code-switched at three levels (whole captions, phrases, words), and objects in pictures are replaced by
objects of another culture, box by box. The user supplies tables of corresponding concepts and of boxes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup, pictures
from mmjax.data.pictures.channels import WHITE, Color
from mmjax.data.sample import Crop, Sample, Unreadable
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.transforms.common.base import Probability, Stage

_WORD = re.compile(r"[^\W_]+")
_GAP = re.compile(r"[\s_'’-]*")  # between the words of one concept

Edges = tuple[float, float, float, float]  # left, top, right, bottom


class Donor(NamedTuple):
    """A box of a picture that shows a concept."""

    path: str
    box: Edges


class Transform:
    """Replaces concepts in captions, and pastes objects of other cultures over them in pictures.

    A caption that ``sentences`` translates is replaced as a whole with probability ``sentence``. Otherwise it is read
    from left to right, and the longest concept of the table at each place is a match. It is replaced by one of its
    targets, drawn uniformly, with probability ``phrase``, or ``word`` for a single word. Case, underscores and hyphens
    in concepts are ignored.

    Each box of a concept is pasted over with probability ``paste``: a target that has donors and one of its donors are
    drawn, and the donor's box is resized onto it, without blending, where the view shows it. Boxes follow the crop but
    not a flip, so this transform must come before ``flip``. Captions and pixels are changed independently. The paper's
    code is not public: the probabilities and the pasting without blending are our choice.

    Args:
      data_modalities: the modalities of the data; pasting needs a single one, because donors have no depth.
      concepts: one or more tables (csv, tsv, jsonl) with ``source``, ``target`` and optionally ``distance``, also
        written as ``Source Concept``.
      max_distance: skips rows of a larger distance.
      sentences: jsonl, csv or tsv with ``caption`` and ``switched``.
      boxes: jsonl with ``key`` or ``id`` of an example, ``concept``, and ``box``: left, top, right, bottom in pixels of
        the original picture.
      by: whether ``boxes`` names examples by ``key`` or ``id``.
      donors: jsonl with ``concept`` (a target), ``image`` (relative to this file) and ``box`` in pixels of that image.
      sentence: probability of replacing a whole caption.
      phrase: probability of replacing a match of several words; 0 ignores these concepts.
      word: probability of replacing a match of one word; 0 ignores these concepts.
      paste: probability of pasting over a box.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        data_modalities: tuple[str, ...] = ("image",),
        background: Color | None = WHITE,
        concepts: str | tuple[str, ...] = (),
        max_distance: float | None = None,
        sentences: str | None = None,
        boxes: str | None = None,
        by: lookup.By = "key",
        donors: str | None = None,
        sentence: Probability = 0.5,
        phrase: Probability = 0.5,
        word: Probability = 0.5,
        paste: Probability = 0.5,
    ):
        if not concepts:
            raise ConfigError("concepts=(): culture_mixup needs a table of concepts; name a csv, tsv or jsonl file")
        if (boxes is None) != (donors is None):
            raise ConfigError(f"boxes={boxes!r}: donors={donors!r}; pasting needs both files; set both or none")
        if boxes is not None and len(data_modalities) > 1:
            raise ConfigError(
                f"boxes={boxes!r}: donors have no {' or '.join(data_modalities[1:])}; leave both out, "
                "or use one modality"
            )
        self._by = by
        self._modality = data_modalities[0]
        self._background = background
        self._sentence, self._phrase, self._word, self._paste = sentence, phrase, word, paste
        targets = _concepts(path_patterns.expand(concepts, key="concepts"), max_distance)
        self._targets = {words: names for words, names in targets.items() if (word if len(words) == 1 else phrase) > 0}
        self._longest = max(map(len, self._targets), default=0)
        self._sentences = {} if sentences is None else _sentences(sentences)
        self._donors: dict[str, list[list[Donor]]] = {}
        self._boxes = lookup.Texts([])
        if boxes is not None and donors is not None:
            donors_of = _donors(donors)
            for words, names in targets.items():
                if available := [donors_of[name] for name in map(_folded, names) if name in donors_of]:
                    self._donors[" ".join(words)] = available
            self._boxes = lookup.Texts(_boxes(boxes, self._by, self._donors))
            if not len(self._boxes):
                raise ConfigError(
                    f"boxes={boxes!r}: no box is of a concept with donors; compare with donors={donors!r}"
                )

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with some of its concepts replaced."""
        captions = [self.switch_caption(caption, random) for caption in sample.captions]
        sample = dataclasses.replace(sample, captions=captions)
        boxes = self._boxes[sample.key if self._by == "key" else sample.id] if len(self._boxes) else []
        if not boxes:
            return sample
        picture = sample.images[self._modality]
        for concept, *box in map(json.loads, boxes):
            if random.random() < self._paste:
                candidates = self._donors[concept][int(random.integers(len(self._donors[concept])))]
                donor = candidates[int(random.integers(len(candidates)))]
                picture = paste_donor(picture, donor, tuple(box), crop=sample.crop, background=self._background)
        return dataclasses.replace(sample, images={**sample.images, self._modality: picture})

    def switch_caption(self, caption: str, random: np.random.Generator) -> str:
        """The caption with some of its concepts replaced, or replaced as a whole."""
        whole = self._sentences.get(_folded(caption), [])
        if whole and random.random() < self._sentence:
            return whole[int(random.integers(len(whole)))]
        words = list(_WORD.finditer(caption))
        out, done, i = [], 0, 0
        while i < len(words):
            match = self._match(caption, words, i)
            if not match:
                i += 1
                continue
            start, end = words[i].start(), words[i + len(match) - 1].end()
            if random.random() < (self._word if len(match) == 1 else self._phrase):
                targets = self._targets[match]
                target = targets[int(random.integers(len(targets)))]
                # A concept that is its own target keeps its spelling.
                if _words(target) != match:
                    out += [caption[done:start], target]
                    done = end
            i += len(match)
        return "".join([*out, caption[done:]])

    def _match(self, caption: str, words: list[re.Match[str]], first: int) -> tuple[str, ...]:
        """The longest concept that begins at word ``first``; empty if there is none."""
        longest: tuple[str, ...] = ()
        concept: tuple[str, ...] = ()
        for i in range(first, min(first + self._longest, len(words))):
            if i > first and not _GAP.fullmatch(caption, words[i - 1].end(), words[i].start()):
                break
            concept = (*concept, words[i][0].casefold())
            if concept in self._targets:
                longest = concept
        return longest


def paste_donor(
    picture: np.ndarray, donor: Donor, box: Edges, *, crop: Crop | None, background: Color | None
) -> np.ndarray:
    """A copy of ``picture`` with the donor's box resized onto ``box`` of the original, clipped to the view."""
    left, top, right, bottom = (round(edge) for edge in (box if crop is None else crop.place(box)))
    height, width = picture.shape[:2]
    first, last = (0, 0), (height, width)
    if crop is not None:
        first = crop.offset
        last = (first[0] + crop.inner[0], first[1] + crop.inner[1])
    visible = max(left, first[1]), max(top, first[0]), min(right, last[1]), min(bottom, last[0])
    if visible[0] >= visible[2] or visible[1] >= visible[3]:
        return picture
    # Only the visible region of the donor is resized.
    x, y, far_x, far_y = donor.box
    across, down = (far_x - x) / (right - left), (far_y - y) / (bottom - top)
    size = (visible[3] - visible[1], visible[2] - visible[0])
    region = Crop(
        top=y + (visible[1] - top) * down,
        left=x + (visible[0] - left) * across,
        height=size[0] * down,
        width=size[1] * across,
        size=size,
        inner=size,
        resample="bicubic" if crop is None else crop.resample,
    )
    out = picture.copy()
    out[visible[1] : visible[3], visible[0] : visible[2]] = _decode_donor(donor, region, background)
    return out


def _decode_donor(donor: Donor, region: Crop, background: Color | None) -> np.ndarray:
    try:
        data = filesystem.read(donor.path, max_mib=filesystem.MAX_MIB)
    except FileNotFoundError:
        raise Unreadable("missing file", "a donor of culture_mixup", key=donor.path) from None
    height, width = pictures.size_of(data, key=donor.path)
    left, top, right, bottom = donor.box
    if left < 0 or top < 0 or right > width or bottom > height:
        raise Unreadable("bad row", f"box {list(donor.box)} of a donor of {width} x {height} pixels", key=donor.path)
    return pictures.decode(data, region, key=donor.path, background=background)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(text))


def _folded(text: str) -> str:
    """The text without case, underscores and repeated spaces, to compare spellings."""
    return " ".join(text.replace("_", " ").split()).casefold()


def _concepts(paths: list[str], max_distance: float | None) -> dict[tuple[str, ...], list[str]]:
    """Words of a source concept to its distinct targets."""
    targets_of: dict[tuple[str, ...], dict[str, None]] = {}
    for path in paths:
        for number, raw in lookup.rows(path, option="concepts"):
            where = f"concepts={path!r}: line {number}"
            row = {name.strip().lower().removesuffix(" concept"): value for name, value in raw.items()}
            if max_distance is not None and _distance(row, where) > max_distance:
                continue
            source, target = (
                " ".join(lookup.text_of(lookup.field(row, name, where=where), where=where).replace("_", " ").split())
                for name in ("source", "target")
            )
            if not _words(source) or not target:
                raise ConfigError(f"{where}: an empty concept; correct that line")
            targets_of.setdefault(_words(source), {})[target] = None
    if not targets_of:
        raise ConfigError(f"concepts={paths}: hold no concepts; check the files, or raise max_distance")
    return {words: list(targets) for words, targets in targets_of.items()}


def _distance(row: dict[str, Any], where: str) -> float:
    value = lookup.field(row, "distance", where=where)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} is not a distance; correct it, or leave max_distance out") from None


def _sentences(path: str) -> dict[str, list[str]]:
    sentences: dict[str, list[str]] = {}
    for number, row in lookup.rows(path, option="sentences"):
        where = f"sentences={path!r}: line {number}"
        caption, switched = (
            lookup.text_of(lookup.field(row, name, where=where), where=where) for name in ("caption", "switched")
        )
        if not switched:
            raise ConfigError(f"{where}: an empty caption; correct that line")
        sentences.setdefault(_folded(caption), []).append(switched)
    return sentences


def _boxes(path: str, by: lookup.By, wanted: dict[str, Any]) -> Iterator[tuple[str | int, str]]:
    """The boxes of concepts in ``wanted``: example and ``[concept, left, top, right, bottom]``."""
    for number, row in lookup.rows(path, option="boxes"):
        where = f"boxes={path!r}: line {number}"
        name, concept, box = lookup.name_of(row, by, where=where), _concept(row, where), _box(row, where)
        if concept in wanted:
            yield name, json.dumps([concept, *box])


def _donors(path: str) -> dict[str, list[Donor]]:
    folder = posixpath.dirname(path)
    donors: dict[str, list[Donor]] = {}
    for number, row in lookup.rows(path, option="donors"):
        where = f"donors={path!r}: line {number}"
        image = lookup.field(row, "image", where=where)
        try:
            donor = Donor(filesystem.join(folder, image), _box(row, where))
        except (Unreadable, TypeError):
            raise ConfigError(f"{where}: image={image!r} is not a file beside this table; correct that line") from None
        concept = lookup.text_of(lookup.field(row, "concept", where=where), where=where)
        donors.setdefault(_folded(concept), []).append(donor)
    return donors


def _concept(row: lookup.Row, where: str) -> str:
    return " ".join(_words(lookup.text_of(lookup.field(row, "concept", where=where), where=where)))


def _box(row: lookup.Row, where: str) -> Edges:
    value = lookup.field(row, "box", where=where)
    try:
        left, top, right, bottom = map(float, value)
    except (TypeError, ValueError):
        left = top = right = bottom = math.nan
    if not (-math.inf < left < right < math.inf and -math.inf < top < bottom < math.inf):
        raise ConfigError(f"{where}: box={value!r} is not [left, top, right, bottom]; correct that line")
    return left, top, right, bottom
