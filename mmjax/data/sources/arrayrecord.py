"""Shards of ``tf.train.Example`` records, ArrayRecord or TFRecord, without a TFDS description beside them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats import example_features, record_files, tf_example
from mmjax.data.preparing import split_folder
from mmjax.data.sample import Example, Unreadable
from mmjax.data.storage import path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm

Format = Literal["auto", "array_record", "tfrecord"]

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM")  # first bytes of image files
_TRIED = 8  # records that are tried for the names of features


class Source(source.Source):
    """Records with encoded pictures and captions; the names of features are those of the first record that can be read.

    ArrayRecord files must be on local paths. TFRecord files may be anywhere; their offsets are cached, and
    a file with a damaged length is listed in ``unreadable`` as "truncated archive".
    A prepared TFDS folder is for the source ``tfds``.

    Args:
      split: replaces ``{split}`` in ``path``.
      path: files, a list, a glob, ``a::b`` or ``{0..9}``.
      modalities: names of images; by default those of ``image``, ``depth``, ``thermal`` that exist.
      format: ``array_record`` or ``tfrecord``; ``auto`` looks at the content.
      image_key: the feature that is ``image``, if it is called otherwise.
      caption_keys: one or more features with captions, each one or several; the first usual one if left out.
      label_key: a feature with the number of a class.
      columns: further features; those of one value become that value.
      caption_norm: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``).
      max_captions: captions an example, the first ones; all if left out.
      max_mib: largest record in MiB; a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        modalities: tuple[str, ...] | None = None,
        format: Format = "auto",
        image_key: str | None = None,
        caption_keys: tuple[str, ...] | None = None,
        label_key: str | None = None,
        columns: tuple[str, ...] | None = None,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        max_mib: MaxMib = MAX_MIB,
    ):
        self._norm, self._most = caption_norm, max_captions
        paths = path_patterns.expand(path, split=split)
        self.ignores_split = not path_patterns.has_split(path)
        self._files = record_files.open_records(
            paths, record_files.sniff(paths[0]) if format == "auto" else format, max_mib=max_mib
        )
        self._spans = record_files.Spans([(file, 0, int(count)) for file, count in enumerate(self._files.counts)])
        self.unreadable = truncations(self._files)
        first = self._first()
        names = list(first)
        texts = [name for name, value in first.items() if isinstance(value, list)]
        self._roles = example_features.roles(
            names,
            [name for name in texts if _is_picture(name, first[name]) or name == image_key],
            texts=texts,
            modalities=modalities,
            image_key=image_key,
            caption_keys=caption_keys,
            label_key=label_key,
            columns=columns,
        )
        self.modalities = tuple(self._roles.pictures)
        self._id_limit: int | None = None
        if self._roles.ours:
            self._id_limit = split_folder.id_limit(paths[0].rpartition("/")[0]) or example_features.ID_LIMIT

    @property
    def id_limit(self) -> int:
        """A prepared data set has the ids of the source it was made from, which have gaps."""
        return len(self) if self._id_limit is None else self._id_limit

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        file, number = self._spans[index]
        place = f"{self._files.paths[file].rpartition('/')[2]}:{number}"
        record = self._files.read(file, number)
        try:
            values = tf_example.parse(record)
        except Unreadable as error:
            raise Unreadable(error.reason, error.detail, key=place) from None
        values |= {name: _single(value) for name, value in values.items() if name in self._roles.fields}
        return example_features.example(
            values, self._roles, number=index, place=place, norm=self._norm, most=self._most
        )

    def column(self, name: str) -> np.ndarray:
        """``key``, ``id``, ``label`` or a further field of all examples; reads all records, once.

        Numbers are nan, and texts empty, where an example has none or cannot be read.
        """
        return example_features.column(self, name, paths=self._files.paths, part="")

    def _first(self) -> dict[str, Any]:
        failure: Unreadable | None = None
        for index in range(min(len(self), _TRIED)):
            try:
                if values := tf_example.parse(self._files.read(*self._spans[index])):
                    return values
            except Unreadable as error:
                failure = error
        raise ConfigError(f"path={self._files.paths[0]!r}: no record with features ({failure}); check the files")


def truncations(files: record_files.RecordFiles) -> list[source.UnreadableEntry]:
    """An entry for each truncated file; how many records it lacks is unknown."""
    return [
        (f"{files.paths[file].rpartition('/')[2]}:{files.counts[file]}", "truncated archive", why)
        for file, why in files.truncated.items()
    ]


def _is_picture(name: str, values: list[bytes]) -> bool:
    return name in example_features.MODALITIES or (bool(values) and values[0].startswith(_PICTURES))


def _single(value: Any) -> Any:
    return value[0] if len(value) == 1 else value
