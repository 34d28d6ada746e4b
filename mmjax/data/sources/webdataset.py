"""Tar shards in the WebDataset layout, with random access by a cached index of each shard."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import posixpath
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError, nearest
from mmjax.data import source
from mmjax.data.formats import classes, tar_samples
from mmjax.data.formats.tar_samples import Shard
from mmjax.data.sample import Example, Reason, Unreadable
from mmjax.data.storage import column_cache, shard_paths
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm, captions_of, negatives_of, why_not_utf8

logger = logging.getLogger(__name__)

_TEXT, _JSON, _LABEL, _METADATA = (
    ".text",
    ".json",
    ".label",
    ".metadata",
)  # members besides the modalities, whose names have no dot
_CAPTION = "caption"  # the field that img2dataset writes
_RESERVED = ("id", "key", "captions", "label")
_LOOKED_AT = 8  # texts, for how many lines they have


class Source(source.Source):
    """Samples are runs of members with one key: the path up to the first dot of its base name, as in open_clip.

    Examples have an image of each modality, ``captions``, ``label`` if there is a class, and the ``json_fields``. The
    captions are the text; without one, the json's field ``caption``; without that, prompts of the class. Samples
    without image or text, repeated keys in a shard, and what follows damage in a shard are listed in ``unreadable``.

    A folder in CLIP_benchmark's layout also gives ``class_names`` (``classnames.txt``), ``templates``
    (``zeroshot_classification_templates.txt``), the number of shards (``nshards.txt``) and, in ``dataset_type.txt``,
    whether each line of a text is a caption (``retrieval``), or a picture has several classes (``multilabel``). Then
    ``NAME.npy`` has a number for each class, and the example ``labels``, the classes whose number is above 0.

    Args:
      split: replaces ``{split}`` in ``path``, and is the name of a folder in a folder of splits.
      path: shards (``data/{00000..00331}.tar``, ``a.tar::b.tar``, globs, lists, URLs that fsspec knows) or folders.
      modalities: ``image`` and others, each a picture of its own in every sample.
      image_keys: extensions of the picture, the first that a sample has is taken.
      modality_keys: extensions of other modalities (``{"depth": "depth.png"}``); without an entry those of
        ``image_keys`` after the name and a dot.
      text_keys: extensions of the text.
      json_text_key: fields of the json that hold the captions (``a;b``: of both), instead of the text.
      json_fields: fields of the json that examples have as well (scores, captions from elsewhere). ``negatives`` are
        false versions of the first caption.
      label_key: the extension of a file with a class's number; if it is ``npy``, with a number for each class.
      metadata_key: the extension of a numpy file with further numbers, which become ``metadata``, a list.
      caption_lines: every line of a text is a caption. None: where ``dataset_type.txt`` says so; elsewhere texts of
        several lines are pointed out.
      class_names: of labels: names, or a file of them, ``.json`` or one a line.
      templates: of prompts for classes, with ``{}`` for the name: given so or as a file.
      caption_norm: how captions are cleaned: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``).
      max_captions: captions an example, the first ones; all if left out.
      max_mib: largest member in MiB; a sample with a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        modalities: tuple[str, ...] = ("image",),
        image_keys: str = "jpg;png;jpeg;webp",
        modality_keys: dict[str, str] | None = None,
        text_keys: str = "txt",
        json_text_key: str | None = None,
        json_fields: tuple[str, ...] = (),
        label_key: str | None = None,
        metadata_key: str | None = None,
        caption_lines: bool | None = None,
        class_names: str | tuple[str, ...] | None = None,
        templates: str | tuple[str, ...] | None = None,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        max_mib: MaxMib = MAX_MIB,
    ):
        self.split = split
        self.modalities = tuple(modalities)
        members = _modality_keys(self.modalities, _several(image_keys, "image_keys"), dict(modality_keys or {}))
        shards = shard_paths.find_shards(path, split)
        label_key = label_key or ("npy" if shards.multilabel else "cls")
        self._multilabel = label_key == "npy"
        members |= {_TEXT: _several(text_keys, "text_keys"), _JSON: ["json"], _LABEL: [label_key]}
        members |= {} if metadata_key is None else {_METADATA: [metadata_key]}
        self._json_text = None if json_text_key is None else _several(json_text_key, "json_text_key")
        self._json_fields = tuple(json_fields)
        for name in self._json_fields:
            if name in (*_RESERVED, *self.modalities):
                raise ConfigError(
                    f"json_fields={self._json_fields}: {name!r} is a field of every example; leave it out"
                )
        self._norm = caption_norm
        self._most = max_captions
        self._lines = shards.lines if caption_lines is None else caption_lines
        names = classes.names(class_names if class_names is not None else shards.class_names)
        if isinstance(names, dict):
            raise ConfigError(f"class_names={class_names!r}: labels are numbers; give the names as a list")
        self.class_names = names
        self.templates = classes.templates(templates if templates is not None else shards.templates, key="templates")
        self.unreadable: list[source.UnreadableEntry] = []
        self._paths, self.ignores_split = shards.paths, shards.ignores_split
        usable = [
            self._usable(path, shard)
            for path, shard in zip(shards.paths, tar_samples.scan_shards(shards.paths, members), strict=True)
        ]
        self._samples = tar_samples.Samples(shards.paths, usable, list(members), max_mib=max_mib)
        if not len(self._samples):
            first = self.unreadable[0] if self.unreadable else ("", "bad row", "the archives are empty")
            raise ConfigError(
                f"path={path!r}: no usable sample in {len(shards.paths)} shards ({': '.join(filter(None, first))}); "
                "check image_keys, text_keys and json_text_key; classes without texts need class_names"
            )

        if caption_lines is None and not self._lines and not self._json_text:
            self._warn_of_lines(path)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> Example:
        place = self.check_index(place)
        key = self._samples.key(place)
        try:
            return self._example(place, key)
        except Unreadable as error:
            raise Unreadable(error.reason, error.detail, key=key) from None
        except OSError as error:
            raise Unreadable("missing file", " ".join(str(error).split()), key=key) from None

    def column(self, name: str) -> np.ndarray:
        """``key``, or a field of the json: numbers (f64, nan where there is none) or texts (empty where there is none).

        A field is read once and kept like the index.
        """
        if name == "key":
            return np.array([self._samples.key(place) for place in range(len(self))])
        # The options decide which samples there are, and thus the column.
        return column_cache.load_or_scan(
            f"tar column {name} {self._samples.digest()}",
            self._paths,
            len(self),
            lambda place: self._record(place).get(name),
            name=name,
            threads=tar_samples.threads(self._paths),
            hint=lambda: nearest(name, self._record(0)),
        )

    def _warn_of_lines(self, path: Any) -> None:
        """Points out texts of several lines, which are often several captions, where nothing says what they are."""
        places = range(0, len(self), -(-len(self) // _LOOKED_AT))
        several = 0
        for place in places:
            with contextlib.suppress(Unreadable, OSError):  # counted when the sample itself is read
                text = self._samples.read(place, [_TEXT]).get(_TEXT, b"")
                several += len([line for line in text.splitlines() if line.strip()]) > 1
        if 2 * several > len(places):
            logger.warning(
                f"path={path!r}: texts have several lines, and each text is read as one caption; set "
                "caption_lines=True if each line is one, or False if all is well"
            )

    def _example(self, place: int, key: str) -> Example:
        samples = self._samples
        wants_json = self._json_text or self._json_fields or not samples.has(_TEXT, place)
        names = [
            *self.modalities,
            _LABEL,
            _METADATA,
            *([] if self._json_text else [_TEXT]),
            *([_JSON] if wants_json else []),
        ]
        data = samples.read(place, names)
        example: Example = {"id": place, "key": key}
        for modality in self.modalities:
            if not data[modality]:
                raise Unreadable("empty image", f"{modality} has no bytes")
            example[modality] = data[modality]
        labels: list[int] = []
        if _LABEL in data and self._multilabel:
            example["labels"] = labels = np.flatnonzero(_array(data[_LABEL], len(self.class_names or ())) > 0).tolist()
        elif _LABEL in data:
            example["label"] = self._label(data[_LABEL])
            labels = [example["label"]]
        if _METADATA in data:
            example["metadata"] = _array(data[_METADATA]).tolist()
        fields = _fields(data[_JSON]) if _JSON in data else {}
        example |= {name: fields.get(name) for name in self._json_fields}
        example["captions"] = self._captions(data, fields, labels)
        if "negatives" in self._json_fields:
            example["negatives"] = negatives_of(fields.get("negatives"), example["captions"], norm=self._norm)
        return example

    def _captions(self, data: dict[str, bytes], fields: dict[str, Any], labels: list[int]) -> list[str]:
        texts: list[Any]
        if self._json_text:
            texts = [text for name in self._json_text for text in _listed(fields.get(name))]
        elif _TEXT in data:
            texts = list(data[_TEXT].splitlines()) if self._lines else [data[_TEXT]]
        else:
            texts = _listed(fields.get(_CAPTION))
        if not texts and _LABEL in data and self.class_names:
            texts = [text for label in labels for text in classes.prompts(self.class_names[label], self.templates)]
            if not texts:  # it is of none of the classes, and still an example of what is not
                return [""]
        return captions_of(texts, norm=self._norm, most=self._most)

    def _label(self, data: bytes) -> int:
        text = data.strip()
        if not text.isdigit() or len(text) > 9:
            raise Unreadable("bad row", f"the class {data[:20]!r} is not a number")
        label = int(text)
        if self.class_names and label >= len(self.class_names):
            raise Unreadable("bad row", f"class {label} of {len(self.class_names)}")
        return label

    def _usable(self, path: str, scan: tar_samples.ScanResult) -> Shard:
        """The samples that can be used; the others are listed."""
        shard, status, name = scan.shard, scan.status, posixpath.basename(path)
        there = {member: block > 0 for member, (block, _) in shard.members.items()}
        has_text = there[_JSON] if self._json_text else there[_TEXT] | there[_JSON]
        if self.class_names:
            has_text = has_text | there[_LABEL]
        has_images = np.logical_and.reduce([there[modality] for modality in self.modalities])
        usable = (status == tar_samples.USABLE) & has_images & has_text
        for place in np.flatnonzero(~usable).tolist():
            reason, detail = _reason(int(status[place]), [m for m in self.modalities if not there[m][place]])
            if scan.truncation and place == len(shard) - 1 and status[place] == tar_samples.USABLE:
                reason, detail = "truncated archive", scan.truncation  # the missing members may have followed
            self.unreadable.append((f"{name}/{shard.key(place)}", reason, detail))
        if scan.truncation:
            self.unreadable.append((path, "truncated archive", scan.truncation))
        return shard.choose(usable)

    def _record(self, place: int) -> dict[str, Any]:
        if not self._samples.has(_JSON, place):
            return {}
        try:
            return _fields(self._samples.read(place, [_JSON])[_JSON])
        except Unreadable:  # counted when the sample itself is read
            return {}


def _array(data: bytes, length: int | None = None) -> np.ndarray:
    """The numbers of a numpy file; never an object, which could run code."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False).ravel()
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
        raise Unreadable("bad row", f"no numpy file: {' '.join(str(error).split())[:80]}") from None
    if array.dtype.kind not in "biuf" or (length and len(array) != length):
        raise Unreadable(
            "bad row", f"{len(array)} numbers of {array.dtype} in place of one for each of {length} classes"
        )
    return array


def _several(text: str, key: str) -> list[str]:
    values = [part.strip() for part in text.split(";") if part.strip()]
    if not values:
        raise ConfigError(f"{key}={text!r}: names nothing; separate several by ;")
    return values


def _modality_keys(modalities: tuple[str, ...], image: list[str], options: dict[str, str]) -> dict[str, list[str]]:
    if not modalities or len(set(modalities)) != len(modalities):
        raise ConfigError(f"modalities={modalities}: name one or more, each once")
    for name in options:
        if name not in modalities:
            raise ConfigError(f"modality_keys.{name}={options[name]!r}: no such modality; {nearest(name, modalities)}")
    keys = {name: image if name == "image" else [f"{name}.{key}" for key in image] for name in modalities}
    return keys | {name: _several(text, f"modality_keys.{name}") for name, text in options.items()}


def _reason(status: int, missing: list[str]) -> tuple[Reason, str]:
    if status == tar_samples.DUPLICATE:
        return "duplicate key", "the key was there before in this shard"
    if status == tar_samples.TRUNCATED:
        return "truncated archive", "a part of it lies beyond the end of the file"
    if missing:
        return "bad row", f"no {', '.join(missing)}"
    return "no caption", "neither a text nor what stands for it"


def _fields(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except UnicodeDecodeError:
        raise Unreadable("caption is not UTF-8", f"json: {why_not_utf8(data)}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable("bad row", f"json: {error}") from None
    if not isinstance(values, dict):
        raise Unreadable("bad row", "the json is no object")
    return values


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
