"""Faces with age, gender and race: FairFace's tables, and UTKFace's file names."""

from __future__ import annotations

import os
import posixpath
import re
from typing import Literal, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup, source
from mmjax.data.formats import classes
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.sample import Example
from mmjax.data.storage import filesystem
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib

Attribute = Literal["gender", "race", "age"]

_TABLE = "fairface_label_{split}.csv"
_AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
_RACES = ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian")
_GENDERS = ("Male", "Female")
_UTK_RACES = ("White", "Black", "Asian", "Indian", "Others")
_UTK_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+(\.jpe?g|\.png)(\.chip\.jpg)?", re.IGNORECASE)
_WORDS = {"Male": "man", "Female": "woman"}  # of prompts


class Face(NamedTuple):
    """A picture's name below the folder, and what is known of the person."""

    file: str
    gender: str
    race: str
    age: str


class Source(source.Source):
    """FairFace (Kärkkäinen & Joo 2021, arXiv:1908.04913) or UTKFace (Zhang et al. 2017, arXiv:1702.08423).

    FairFace is a folder with ``fairface_label_train.csv`` and ``fairface_label_val.csv`` (``file``, ``age``,
    ``gender``, ``race``) and the pictures that these name. UTKFace is one of pictures named
    ``AGE_GENDER_RACE_TIME.jpg``, or ``….jpg.chip.jpg`` if they are aligned, at any depth; gender 0 is male, race 0 to 4
    is White, Black, Asian, Indian, Others. Pictures of other names are listed in ``unreadable``: some of the published
    ones lack a part. It has no splits, and its ages are those of FairFace's ranges here.

    An example has ``gender``, ``race`` and ``age``, for ``eval.options.fairness.groups`` and ``data.groups``. One of
    the three, ``label``, is its class, and the prompt of that class its caption. These attributes are annotators'
    guesses in coarse categories: they serve to measure a model's differences, and not to tell people apart.

    Args:
      split: ``train`` or ``val`` of FairFace.
      path: the folder.
      modalities: only ``image``.
      label: the attribute that is the class.
      templates: of prompts, with ``{}`` for the name: given so or as a file. None: ``a photo of a {}.``
      max_mib: largest file of a picture in MiB; an example with a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        modalities: tuple[str, ...] = ("image",),
        label: Attribute = "gender",
        templates: str | tuple[str, ...] | None = None,
        max_mib: MaxMib = MAX_MIB,
    ):
        self.modalities = tuple(modalities)
        if self.modalities != ("image",):
            raise ConfigError(f"modalities={self.modalities}: faces have pictures of one kind; use ('image',)")
        root = filesystem.local_path(path)
        if not filesystem.is_folder(root):
            raise ConfigError(f"path={path!r}: no such folder; name that of FairFace or UTKFace")
        self.unreadable: list[source.UnreadableEntry] = []
        tables = sorted(name for name in filesystem.list_names(root) if re.fullmatch(r"fairface_label_\w+\.csv", name))
        self.ignores_split = not tables
        races: tuple[str, ...]
        if tables:
            table = _TABLE.format(split=split)
            if table not in tables:
                known = [name.removeprefix("fairface_label_").removesuffix(".csv") for name in tables]
                raise ConfigError(f"split={split!r}: path={path!r} has no {table}; there are {', '.join(known)}")
            self._faces, races = self._of_table(posixpath.join(root, table)), _RACES
        else:
            self._faces, races = self._of_names(root), _UTK_RACES
        if not self._faces:
            raise ConfigError(
                f"path={path!r}: has neither fairface_label_{split}.csv nor pictures named AGE_GENDER_RACE_TIME.jpg"
            )
        self._image_files = ImageFiles(root, max_mib=max_mib)
        self._label = label
        self._values = {"gender": _GENDERS, "race": races, "age": _AGES}[label]
        phrase = {"gender": "{}", "race": "{} person", "age": "person aged {}"}[label]
        self._names = [phrase.format(_WORDS.get(value, value.replace("_", " "))) for value in self._values]
        self.class_names = self._names
        self.templates = classes.templates(templates) or list(classes.DEFAULT_TEMPLATES)

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        face = self._faces[index]
        label = self._values.index(getattr(face, self._label))
        return {
            "id": index,
            "key": face.file,
            "image": self._image_files.read(face.file, key=face.file),
            "label": label,
            "captions": classes.prompts(self._names[label], self.templates),
            "gender": face.gender,
            "race": face.race,
            "age": face.age,
        }

    def column(self, name: str) -> np.ndarray:
        """``key``, ``label``, ``gender``, ``race`` or ``age``."""
        if name in ("gender", "race", "age"):
            return np.array([getattr(face, name) for face in self._faces])
        if name == "label":
            return np.array([self._values.index(getattr(face, self._label)) for face in self._faces], np.int32)
        if name == "key":
            return np.array([face.file for face in self._faces])
        raise ConfigError(f"column {name!r}: this source has key, label, gender, race and age; choose one of them")

    def _of_table(self, path: str) -> list[Face]:
        faces = []
        for number, row in lookup.rows(path, option="path"):
            where = f"path={path!r}: line {number}"
            face = Face(*(str(lookup.field(row, name, where=where)).strip() for name in Face._fields))
            if face.gender in _GENDERS and face.race in _RACES and face.age in _AGES:
                faces.append(face)
            else:
                self.unreadable.append((face.file, "bad row", f"line {number}: {face.gender}, {face.race}, {face.age}"))
        return faces

    def _of_names(self, root: str) -> list[Face]:
        faces, pending = [], [""]
        while pending:
            prefix = pending.pop()
            for name, is_folder in filesystem.list_entries(posixpath.join(root, prefix) if prefix else root):
                place = posixpath.join(prefix, name)
                if is_folder:
                    if not name.startswith(".") and not os.path.islink(posixpath.join(root, place)):
                        pending.append(place)
                elif match := _UTK_NAME.fullmatch(name):
                    age, gender, race = (int(part) for part in match.groups()[:3])
                    faces.append(Face(place, _GENDERS[gender], _UTK_RACES[race], _age_range(age)))
                elif name.lower().endswith((".jpg", ".jpeg", ".png")):
                    self.unreadable.append((place, "bad row", "its name is not AGE_GENDER_RACE_TIME.jpg"))
        return sorted(faces)


def _age_range(age: int) -> str:
    """FairFace's range of an age in years."""
    return _AGES[int(np.searchsorted([3, 10, 20, 30, 40, 50, 60, 70], age, side="right"))]
