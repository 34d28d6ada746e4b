"""Tables of images and captions: csv, tsv, jsonl and parquet."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats import classes
from mmjax.data.formats.caption_table import CaptionTable
from mmjax.data.formats.columnar import Parquet
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.formats.row_builder import place
from mmjax.data.formats.tables import (
    ColumnMapping,
    columnar_rows,
    csv_rows,
    json_rows,
    names_images,
    others_of,
    picture_in,
    sniff,
)
from mmjax.data.sample import Example
from mmjax.data.storage import path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm

Format = Literal["auto", "csv", "jsonl", "parquet"]


class Source(source.Source):
    """Rows of tables that name images (or, in parquet, hold them) and have captions.

    Columns that are not set are those of open_clip (``filepath``, ``title``) or other usual ones; the separator is tab,
    comma, semicolon or bar, whichever gives these columns. Rows of one image become one example with several captions;
    a row that repeats an image and caption is left out as "duplicate key".

    Images are named relative to ``image_root``, by an absolute path (as in open_clip's tables), or by a URL; a relative
    name that leads out of the root is a bad row, and so is a URL whose protocol is not allowed. Rows of the wrong
    width, without image or caption, or not in UTF-8 are listed in ``unreadable``. Parquet files that hold images are
    read a row group at a time, which is slow in shuffled order: convert them by ``mmjax data prepare`` first.

    Args:
      split: replaces ``{split}`` in ``path``.
      path: a file, a list, a glob, ``a::b`` or ``{0..9}``; the tables have the same columns.
      modalities: names for the images; of several one is ``image``, the others are columns of their own.
      format: ``csv`` (any separator), ``jsonl``, ``parquet``; ``auto`` looks at the content.
      separator: of csv; sniffed if left out.
      image_column: sniffed if left out.
      caption_columns: one or more, each a text or a list of texts (csv: as JSON); the first usual one if left out.
      image_root: the folder that images are named from; the table's own if left out.
      columns: further fields of each example; texts become numbers if all are numbers.
      negative_column: false captions, as a list or the text of a Python list (NegCLIP); sniffed if left out. They
        become ``negatives``: ("given", first caption of the row, false caption).
      label_column: classes, by number or by name; without a caption column the name is the caption.
      class_names: of the labels, also of classes that no row has: names in the order of their numbers; or a file:
        ``.json`` a list, an object from labels to what prompts call them, or text with one a line. None: the labels
        that occur.
      templates: prompts for the classes, with ``{}`` for the name: given so or as a file. Rows whose caption is only
        their label have these prompts as captions. None: ``a photo of a {}.`` for evaluation alone.
      group: rows of one image are one example; otherwise each row is one, and those of one image share the id.
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
        path: str | tuple[str, ...],
        modalities: tuple[str, ...] = ("image",),
        format: Format = "auto",
        separator: str | None = None,
        image_column: str | None = None,
        caption_columns: tuple[str, ...] | None = None,
        image_root: str | None = None,
        columns: tuple[str, ...] = (),
        negative_column: str | None = None,
        label_column: str | None = None,
        class_names: str | tuple[str, ...] | None = None,
        templates: str | tuple[str, ...] | None = None,
        group: bool = True,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        protocols: tuple[str, ...] = (),
        max_mib: MaxMib = MAX_MIB,
    ):
        self.modalities = tuple(modalities)
        if separator is not None and len(separator) != 1:
            raise ConfigError(f"separator={separator!r}: must be one character; leave it out to have it found")
        paths = path_patterns.expand(path, split=split)
        self.ignores_split = not path_patterns.has_split(path)
        self._files = ImageFiles.from_options(paths, image_root, protocols, max_mib)
        others = others_of(modalities)
        if label_column is None and (class_names or templates):
            raise ConfigError(
                f"label_column=None: class_names={class_names!r}, templates={templates!r} are of its labels"
            )
        names, self.templates = classes.names(class_names), classes.templates(templates)
        self._displayed = dict(names.items() if isinstance(names, dict) else zip(names or (), names or (), strict=True))
        kind = sniff(paths[0]) if format == "auto" else format
        wanted = ColumnMapping(image_column, caption_columns, negative_column, label_column, tuple(columns), others)
        self._cells: Parquet | None = None
        named: dict[str, bool] = {}
        if kind == "parquet":
            cells = Parquet(paths)
            wanted = wanted.among(cells.schema.names, paths[0])
            named = {name: names_images(cells.schema, name) for name in (wanted.image or "", *wanted.others)}
            # If all are names, they are read once; otherwise each image is read with its example.
            self._cells = None if all(named.values()) else cells
            rows = columnar_rows(cells, wanted, named=self._cells is None)
        elif kind == "jsonl":
            rows = json_rows(paths, wanted)
        else:
            rows = csv_rows(paths, wanted, separator)
        # The column of each modality, and whether it holds names.
        self._image = next(name for name in self.modalities if name not in wanted.others)
        self._columns = {self._image: wanted.image or ""} | {name: name for name in wanted.others}
        self._named = {name: named.get(column, True) for name, column in self._columns.items()}
        self._table = CaptionTable(
            rows,
            named=self._cells is None,
            check_name=self._files.path_of,
            group=group,
            fields=wanted.fields,
            texts=wanted.others if self._cells is None else (),
            has_labels=label_column is not None,
            class_names=list(self._displayed) or None,
            repeats=not group,
            norm=caption_norm,
            most=max_captions,
        )
        self.rows_share_images = not group
        self._table.check_not_empty(path)
        self.unreadable = self._table.unreadable
        if self._table.class_names is not None:
            self.class_names = [self._displayed.get(name, name) for name in self._table.class_names]
        if self._table.keys is not None:
            self._files.check_root(self._table.keys[:4].to_pylist())

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        if self._cells is None:
            key = self._table.name(index)
            example = self._prompted(self._table.example(index, key=key))
            names = {modality: example.pop(modality) for modality in self._columns if modality != self._image}
            for modality, name in ({self._image: key} | names).items():
                example[modality] = self._files.read(name or "", key=key)
            return example
        row = int(self._table.numbers[index])
        key = place(*self._cells.place(row))
        example = self._prompted(self._table.example(index, key=key))
        for modality, column in self._columns.items():
            value = self._cells.cell(column, row)
            example[modality] = picture_in(value, self._files, key=key, named=self._named[modality])
        return example

    def _prompted(self, example: Example) -> Example:
        """With prompts in place of a label that stands for a caption."""
        if self.templates is None or self._table.class_names is None:
            return example
        name = self._table.class_names[example["label"]]
        if example["captions"] in ([name], [str(example["label"])]):
            example["captions"] = classes.prompts(self._displayed.get(name, name), self.templates)
        return example

    def column(self, name: str) -> np.ndarray:
        """A field of all examples: ``id``, ``key``, ``captions``, ``label`` or one of ``columns``."""
        if name == "key" and self._cells is not None:
            return np.array([place(*self._cells.place(row)) for row in self._table.numbers.tolist()], object)
        return self._table.column(name)
