"""Culture mixup (EMNLP 2023, "Cultural Concept Adaptation on Multimodal Reasoning"): concepts change culture.

Texts switch codes at three levels (whole captions, phrases, words), and pictures take up the objects of another
culture, box for box. Which concepts stand for each other, and where they are, comes from tables that the user supplies.
"""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data import lookup, pictures
from mmjax.data.sample import Crop, Sample, Unreadable
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.transforms.base import Stage

_WORD = re.compile(r"[^\W_]+")
_GAP = re.compile(r"[\s_'’-]*")  # what may stand between the words of one concept

Edges = tuple[float, float, float, float]  # left, top, right, bottom


class Donor(NamedTuple):
    """Where a picture of a concept is."""

    path: str
    box: Edges


class Transform:
    """Switches concepts of captions, and pastes other cultures' objects over theirs in pictures.

    A caption that ``sentences`` translates is exchanged as a whole with probability ``sentence``. Otherwise it is read
    from left to right; at each place the longest concept of the table counts as one match, which becomes one of its
    targets (each as likely) with probability ``phrase``, or ``word`` where it is one word. Case, underscores and
    hyphens in concepts mean nothing.

    Each box of a concept is pasted over with probability ``paste``: a target with donors and one of its donors are
    drawn, and the donor's box is resized onto it, without blending, as far as the view shows it. Boxes follow the crop,
    but not a flip: name this transform before one. Captions and pixels are changed independently of each other. The
    paper's code for all this is not public: probabilities and the hard paste are our choice.

    Args:
      data_modalities: the keys of the pictures; pasting needs a single one, because donors have no depth.
      concepts: tables (csv, tsv, jsonl) with ``source``, ``target`` and perhaps ``distance``, also written as
        ``Source Concept``; one file or several, such as one a language.
      max_distance: leaves out rows that are further apart.
      sentences: jsonl, csv or tsv with ``caption`` and ``switched``.
      boxes: jsonl with ``key`` or ``id`` of an example, ``concept``, and ``box``: left, top, right, bottom in pixels of
        the original picture.
      by: whether ``boxes`` names examples by ``key`` or ``id``.
      donors: jsonl with ``concept`` (a target), ``image`` (relative to this file) and ``box`` in pixels of that image.
      sentence: probability for a caption.
      phrase: for a match of several words; 0 leaves these concepts out.
      word: for a match of one word; 0 leaves these out.
      paste: for a box.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        data_modalities: tuple[str, ...] = ("image",),
        concepts: str | tuple[str, ...] = (),
        max_distance: float | None = None,
        sentences: str | None = None,
        boxes: str | None = None,
        by: lookup.By = "key",
        donors: str | None = None,
        sentence: float = 0.5,
        phrase: float = 0.5,
        word: float = 0.5,
        paste: float = 0.5,
    ):
        for name, value in (("sentence", sentence), ("phrase", phrase), ("word", word), ("paste", paste)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value}: a probability; set it between 0 and 1")
        if not concepts:
            raise ConfigError("concepts=(): culture_mixup needs a table of concepts; name a csv, tsv or jsonl file")
        if (boxes is None) != (donors is None):
            raise ConfigError(f"boxes={boxes!r}: donors={donors!r}; pasting needs both files, switching texts neither")
        if boxes is not None and len(data_modalities) > 1:
            raise ConfigError(
                f"boxes={boxes!r}: what is pasted has no {' or '.join(data_modalities[1:])}; leave both out, "
                "or use one modality"
            )
        self._by = by
        choose(by, get_args(lookup.By), path="by")
        self._modality = data_modalities[0]
        self._sentence, self._phrase, self._word, self._paste = sentence, phrase, word, paste
        targets = _concepts(path_patterns.expand(concepts, key="concepts"), max_distance)
        self._targets = {words: names for words, names in targets.items() if (word if len(words) == 1 else phrase) > 0}
        self._longest = max(map(len, self._targets), default=0)
        self._sentences = {} if sentences is None else _sentences(sentences)
        self._donors: dict[str, list[list[Donor]]] = {}
        self._boxes = lookup.Texts([])
        if boxes is not None and donors is not None:
            known = _donors(donors)
            for words, names in targets.items():
                if there := [known[name] for name in map(_folded, names) if name in known]:
                    self._donors[" ".join(words)] = there
            self._boxes = lookup.Texts(_boxes(boxes, self._by, self._donors))
            if not len(self._boxes):
                raise ConfigError(
                    f"boxes={boxes!r}: no box is of a concept with donors; compare with donors={donors!r}"
                )

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with some of its concepts exchanged."""
        captions = [self.switched(caption, random) for caption in sample.captions]
        sample = dataclasses.replace(sample, captions=captions)
        found = self._boxes[sample.key if self._by == "key" else sample.id] if len(self._boxes) else []
        if not found:
            return sample
        picture = sample.images[self._modality]
        for concept, *box in map(json.loads, found):
            if random.random() < self._paste:
                of_target = self._donors[concept][int(random.integers(len(self._donors[concept])))]
                donor = of_target[int(random.integers(len(of_target)))]
                picture = pasted(picture, donor, tuple(box), crop=sample.crop)
        return dataclasses.replace(sample, images={**sample.images, self._modality: picture})

    def switched(self, caption: str, random: np.random.Generator) -> str:
        """A caption with some of its concepts, or all of it, exchanged."""
        whole = self._sentences.get(_folded(caption), [])
        if whole and random.random() < self._sentence:
            return whole[int(random.integers(len(whole)))]
        words = list(_WORD.finditer(caption))
        out, done, at = [], 0, 0
        while at < len(words):
            match = self._match(caption, words, at)
            if not match:
                at += 1
                continue
            start, end = words[at].start(), words[at + len(match) - 1].end()
            if random.random() < (self._word if len(match) == 1 else self._phrase):
                targets = self._targets[match]
                target = targets[int(random.integers(len(targets)))]
                # A concept that stands for itself keeps its spelling.
                if _words(target) != match:
                    out += [caption[done:start], target]
                    done = end
            at += len(match)
        return "".join([*out, caption[done:]])

    def _match(self, caption: str, words: list[re.Match[str]], at: int) -> tuple[str, ...]:
        """The longest concept that begins at word ``at``; empty where none does."""
        longest: tuple[str, ...] = ()
        so_far: tuple[str, ...] = ()
        for place in range(at, min(at + self._longest, len(words))):
            if place > at and not _GAP.fullmatch(caption, words[place - 1].end(), words[place].start()):
                break
            so_far = (*so_far, words[place][0].casefold())
            if so_far in self._targets:
                longest = so_far
        return longest


def pasted(picture: np.ndarray, donor: Donor, box: Edges, *, crop: Crop | None) -> np.ndarray:
    """A copy with the donor's box resized onto ``box`` of the original, as far as the view shows it."""
    left, top, right, bottom = (round(edge) for edge in (box if crop is None else crop.place(box)))
    height, width = picture.shape[:2]
    first, last = (0, 0), (height, width)
    if crop is not None:
        first = crop.offset
        last = (first[0] + crop.inner[0], first[1] + crop.inner[1])
    seen = max(left, first[1]), max(top, first[0]), min(right, last[1]), min(bottom, last[0])
    if seen[0] >= seen[2] or seen[1] >= seen[3]:
        return picture
    # Of the donor, too, only what will be seen is resized.
    x, y, far_x, far_y = donor.box
    across, down = (far_x - x) / (right - left), (far_y - y) / (bottom - top)
    size = (seen[3] - seen[1], seen[2] - seen[0])
    part = Crop(
        top=y + (seen[1] - top) * down,
        left=x + (seen[0] - left) * across,
        height=size[0] * down,
        width=size[1] * across,
        size=size,
        inner=size,
        resample="bicubic" if crop is None else crop.resample,
    )
    out = picture.copy()
    out[seen[1] : seen[3], seen[0] : seen[2]] = _decoded(donor, part)
    return out


def _decoded(donor: Donor, part: Crop) -> np.ndarray:
    try:
        data = filesystem.read(donor.path)
    except FileNotFoundError:
        raise Unreadable("missing file", "a donor of culture_mixup", key=donor.path) from None
    height, width = pictures.size_of(data, key=donor.path)
    left, top, right, bottom = donor.box
    if left < 0 or top < 0 or right > width or bottom > height:
        raise Unreadable("bad row", f"box {list(donor.box)} of a donor of {width} x {height} pixels", key=donor.path)
    return pictures.decode(data, part, key=donor.path)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(text))


def _folded(text: str) -> str:
    """What two spellings of one text have in common."""
    return " ".join(text.replace("_", " ").split()).casefold()


def _concepts(paths: list[str], max_distance: float | None) -> dict[tuple[str, ...], list[str]]:
    """Words of a source concept to its targets, each once."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
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
            found.setdefault(_words(source), {})[target] = None
    if not found:
        raise ConfigError(f"concepts={paths}: hold no concepts; check the files, or raise max_distance")
    return {words: list(targets) for words, targets in found.items()}


def _distance(row: dict[str, Any], where: str) -> float:
    value = lookup.field(row, "distance", where=where)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} is no distance; correct it, or leave max_distance out") from None


def _sentences(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, row in lookup.rows(path, option="sentences"):
        where = f"sentences={path!r}: line {number}"
        caption, switched = (
            lookup.text_of(lookup.field(row, name, where=where), where=where) for name in ("caption", "switched")
        )
        if not switched:
            raise ConfigError(f"{where}: an empty caption; correct that line")
        found.setdefault(_folded(caption), []).append(switched)
    return found


def _boxes(path: str, by: lookup.By, wanted: dict[str, Any]) -> Iterator[tuple[str | int, str]]:
    """The boxes of concepts in ``wanted``: example and ``[concept, left, top, right, bottom]``."""
    for number, row in lookup.rows(path, option="boxes"):
        where = f"boxes={path!r}: line {number}"
        name, concept, box = lookup.name_of(row, by, where=where), _concept(row, where), _box(row, where)
        if concept in wanted:
            yield name, json.dumps([concept, *box])


def _donors(path: str) -> dict[str, list[Donor]]:
    folder = posixpath.dirname(path)
    found: dict[str, list[Donor]] = {}
    for number, row in lookup.rows(path, option="donors"):
        where = f"donors={path!r}: line {number}"
        image = lookup.field(row, "image", where=where)
        try:
            donor = Donor(filesystem.join(folder, image), _box(row, where))
        except (Unreadable, TypeError):
            raise ConfigError(f"{where}: image={image!r} is no file beside this table; correct that line") from None
        concept = lookup.text_of(lookup.field(row, "concept", where=where), where=where)
        found.setdefault(_folded(concept), []).append(donor)
    return found


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
