"""Folders of the ``datasets`` library: Arrow (``save_to_disk``) or parquet; the library is not needed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats.caption_table import CaptionTable
from mmjax.data.formats.columnar import Arrow, Columns, Parquet
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.formats.row_builder import place
from mmjax.data.formats.tables import CAPTIONS, ColumnMapping, columnar_rows, names_images, others_of, picture_in
from mmjax.data.sample import Example, Unreadable
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm

_STATE, _DICT = "state.json", "dataset_dict.json"
_SHARD = re.compile(r"(?P<split>.+?)(?:-\d+-of-\d+)?(?:-[0-9a-f]{16})?\.parquet")
_NOT_A_SPLIT = re.compile(r"data-\d+-of-\d+\.parquet|\d+\.parquet")


class Source(source.Source):
    """One split of a saved data set: images are cells of {bytes, path}, captions are texts or lists of texts.

    ``path`` is a folder that ``save_to_disk`` wrote (of one data set or of several splits), or a repository's folder of
    parquet files such as ``data/train-00000-of-00005.parquet`` or ``train/0.parquet``. Arrow is memory-mapped and
    fast in any order; parquet is read a row group at a time, which is slow in shuffled order.

    Args:
      split: the folder's or the files' name for it.
      path: the folder.
      modalities: names for the images; of several one is ``image``, the others are columns of their own.
      image_column: the first with pictures if left out, else one of the usual names.
      caption_columns: one or more; the first usual one if left out. Without one the class name is the caption.
      label_column: a class label, whose names become ``class_names``; without captions the only one if left out.
      image_root: the folder of pictures that the table only names; the data set's own if left out.
      columns: further fields of each example.
      negative_column: false captions, a list; ``neg_caption`` if left out and there is one.
      caption_norm: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``).
      max_captions: captions an example, the first ones; all if left out.
      protocols: of URLs that rows may name besides the table's own protocol, such as ``https``. None by default: a
        table from elsewhere could have any address read. Every part of ``zip://a.png::https://…`` counts.
      max_mib: largest picture in MiB; a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        modalities: tuple[str, ...] = ("image",),
        image_column: str | None = None,
        caption_columns: tuple[str, ...] | None = None,
        label_column: str | None = None,
        image_root: str | None = None,
        columns: tuple[str, ...] = (),
        negative_column: str | None = None,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        protocols: tuple[str, ...] = (),
        max_mib: MaxMib = MAX_MIB,
    ):
        self.modalities = tuple(modalities)
        folder = filesystem.local_path(path).rstrip("/")
        if not filesystem.is_folder(folder):
            raise ConfigError(f"path={path!r}: no such folder; nothing is downloaded, copy or save the data set there")
        self._files = ImageFiles.from_options([f"{folder}/"], image_root, protocols, max_mib)
        self._cells, self.ignores_split = _cells(folder, split)
        schema, others = self._cells.schema, others_of(modalities)
        labels = class_labels(schema)
        if (
            label_column is None
            and caption_columns is None
            and not set(CAPTIONS) & set(schema.names)
            and len(labels) == 1
        ):
            label_column = next(iter(labels))
        if image_column is None:
            pictures = (field.name for field in schema if _is_picture(field.type) and field.name not in others)
            image_column = next(pictures, None)
        wanted = ColumnMapping(image_column, caption_columns, negative_column, label_column, tuple(columns), others)
        wanted = wanted.among(schema.names, folder)
        names = labels.get(label_column or "")
        # The column of each modality, and whether it holds names.
        image = next(name for name in self.modalities if name not in wanted.others)
        self._columns = {image: wanted.image or ""} | {name: name for name in wanted.others}
        self._named = {name: names_images(schema, column) for name, column in self._columns.items()}
        self._table = CaptionTable(
            columnar_rows(self._cells, wanted, named=False, class_names=names),
            named=False,
            fields=wanted.fields,
            has_labels=label_column is not None,
            class_names=names,
            norm=caption_norm,
            most=max_captions,
        )
        self._table.check_not_empty(path)
        self.unreadable = self._table.unreadable
        if self._table.class_names is not None:
            self.class_names = self._table.class_names

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        row = int(self._table.numbers[index])
        key = place(*self._cells.place(row))
        example = self._table.example(index, key=key)
        for modality, column in self._columns.items():
            value = self._cells.cell(column, row)
            example[modality] = picture_in(value, self._files, key=key, named=self._named[modality])
        return example

    def column(self, name: str) -> np.ndarray:
        """A field of all examples: ``id``, ``key``, ``captions``, ``label`` or one of ``columns``."""
        if name == "key":
            return np.array([place(*self._cells.place(row)) for row in self._table.numbers.tolist()], object)
        return self._table.column(name)


def class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of each column that the library knows as a class label."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(one) for one in feature["names"]]
            for name, feature in features.items()
            if name in schema.names and isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):  # a table that the library has not written
        return {}


def _cells(folder: str, split: str) -> tuple[Columns, bool]:
    """The rows of a split, and whether they are those of any split."""
    entries = filesystem.list_entries(folder)
    names = [name for name, _ in entries]
    if _STATE in names:
        return Arrow(_saved(folder)), True
    if _DICT in names:
        splits = [name for name, is_folder in entries if is_folder]
        if split not in splits:
            raise _no_split(split, folder, splits)
        return Arrow(_saved(f"{folder}/{split}")), False
    files_by_split = _parquet(folder, entries)
    if not files_by_split:
        raise ConfigError(
            f"path={folder!r}: neither saved by save_to_disk (no {_STATE}) nor a folder of parquet files; check it"
        )
    if split in files_by_split:
        return Parquet(files_by_split[split]), False
    if list(files_by_split) == [""]:
        return Parquet(files_by_split[""]), True
    raise _no_split(split, folder, sorted(files_by_split))


def _saved(folder: str) -> list[str]:
    """The Arrow files of one saved split, in the order that its state has them."""
    try:
        state = json.loads(filesystem.read(f"{folder}/{_STATE}"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"path={folder!r}: its {_STATE} is damaged ({error}); save the data set again") from None
    if state.get("_indices_data_files"):
        raise ConfigError(f"path={folder!r}: its rows were chosen but not copied; save it after flatten_indices()")
    try:
        paths = [filesystem.join(folder, name) for name in names]
    except Unreadable as error:
        raise ConfigError(f"path={folder!r}: its {_STATE} names no file of the folder ({error.detail})") from None
    missing = [path for path in paths if not filesystem.exists(path)]
    if missing or not paths:
        raise ConfigError(f"path={folder!r}: the file {(missing or ['of its rows'])[0]!r} is missing; copy it")
    return paths


def _parquet(folder: str, entries: Sequence[tuple[str, bool]]) -> dict[str, list[str]]:
    """Parquet files by split: that of their names, or of the folder that they are in."""
    files_by_split: dict[str, list[str]] = {}
    for name, is_folder in entries:
        if is_folder and not name.startswith("."):
            inner = f"{folder}/{name}"
            for split, paths in _parquet(inner, filesystem.list_entries(inner)).items():
                files_by_split.setdefault(split or ("" if name == "data" else name), []).extend(paths)
        elif name.endswith(".parquet"):
            match = None if _NOT_A_SPLIT.fullmatch(name) else _SHARD.fullmatch(name)
            files_by_split.setdefault(match["split"] if match else "", []).append(f"{folder}/{name}")
    return {split: sorted(paths, key=path_patterns.natural_key) for split, paths in files_by_split.items()}


def _is_picture(kind: Any) -> bool:
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def _no_split(split: str, folder: str, there: Sequence[str]) -> ConfigError:
    return ConfigError(f"split={split!r}: {folder!r} has no such split; there are {', '.join(there) or 'none'}")
