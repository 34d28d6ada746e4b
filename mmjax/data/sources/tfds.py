"""Prepared folders of TensorFlow Datasets, in array_record or tfrecord format, read without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError, nearest
from mmjax.data import source
from mmjax.data.formats import example_features, record_files, tf_example
from mmjax.data.preparing import split_folder
from mmjax.data.sample import Example, Unreadable
from mmjax.data.sources.arrayrecord import truncations
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm

_INFO = "dataset_info.json"
_STORED = (np.int64, np.float32, np.object_, np.str_)  # types that TFDS stores unchanged; the last two are texts
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Source(source.Source):
    """One split of a prepared data set; nothing is ever downloaded or generated.

    Pictures are given as they are encoded. What ``mmjax data prepare`` wrote has all that its own source gave, ids and
    keys included; of others, captions and class names are found among the features. Examples are in the order of the
    files, which TFDS shuffles when it writes them.

    Args:
      split: of the data set, slices and sums included: ``train[:90%]``, ``train+test``; or a key of ``splits``.
      path: the version's folder, the data set's (its highest version is taken), or with ``dataset`` the folder of all.
      dataset: ``name``, ``name:1.0.0`` or ``name/config:1.0.0``.
      modalities: names of images; by default those of ``image``, ``depth``, ``thermal`` that exist, or the only one.
      splits: names for splits: ``{"val": "train[90%:]"}``.
      image_key: the feature that is ``image``, if it is called otherwise.
      caption_keys: one or more features with texts, ``outer/inner`` for one in a sequence; the first usual one if left
        out, and without one the class name is the caption.
      label_key: the feature with the class; the only or first class label if left out.
      columns: further features to give; if left out all of what ``mmjax data prepare`` wrote, none of others.
      caption_norm: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``).
      max_captions: captions an example, the first ones; all if left out.
      max_mib: largest record in MiB; a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        dataset: str | None = None,
        modalities: tuple[str, ...] | None = None,
        splits: Mapping[str, str] | None = None,
        image_key: str | None = None,
        caption_keys: tuple[str, ...] | None = None,
        label_key: str | None = None,
        columns: tuple[str, ...] | None = None,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        max_mib: MaxMib = MAX_MIB,
    ):
        import tensorflow_datasets as tfds  # takes a second or two, only for this source

        self._norm, self._most = caption_norm, max_captions
        folder = _folder(filesystem.local_path(path), dataset)
        try:
            for name in () if filesystem.is_url(folder) else filesystem.list_names(folder):
                if name.endswith((".json", ".txt")):
                    filesystem.size(f"{folder}/{name}")  # OSError for a pipe, which TFDS would wait for
            info = tfds.builder_from_directory(folder).info
            features = info.features
        except Exception as error:  # a damaged description can fail in any way
            raise ConfigError(f"path={path!r}: {folder} is damaged ({_line(error)}); prepare it again") from None
        self._wanted = dict(splits or {}).get(split, split)
        self._open(split, self._wanted, info, folder, max_mib)
        flat = dict(_flat(features, tfds))
        labels = [name for name, feature in flat.items() if isinstance(feature, tfds.features.ClassLabel)]
        if label_key is None and labels:
            label_key = "label" if "label" in labels else labels[0]
        names = flat[label_key].names if label_key is not None and label_key in labels else None
        self._roles = example_features.roles(
            list(flat),
            [name for name, feature in flat.items() if _is_picture(feature, tfds)],
            texts=[name for name, feature in flat.items() if _is_text(feature, tfds)],
            modalities=modalities,
            image_key=image_key,
            caption_keys=caption_keys,
            label_key=label_key,
            columns=columns,
            class_names=names,
        )
        self.modalities = tuple(self._roles.pictures)
        self._id_limit: int | None = None
        if self._roles.ours:
            self._id_limit = split_folder.id_limit(folder) or example_features.ID_LIMIT
        if names is not None:
            self.class_names = list(names)
        tops = {flat_name: top for top in features for flat_name in _names(top, features[top], tfds)}
        self._features = tfds.features.FeaturesDict({tops[n]: features[tops[n]] for n in self._roles.wanted()})
        pictures = [n for n in self._roles.pictures.values() if isinstance(flat[n], tfds.features.Image)]
        self._decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
        self._shapes = None
        if self._roles.ours and len(pictures) == len(self._roles.pictures):
            self._shapes = _shapes({name: flat[name] for name in self._roles.fields})

    @property
    def id_limit(self) -> int:
        """What ``mmjax data prepare`` wrote has the ids of the source it was made from, which have gaps."""
        return len(self) if self._id_limit is None else self._id_limit

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        file, number = self._spans[index]
        place = f"{self._files.paths[file].rpartition('/')[2]}:{number}"
        record = self._files.read(file, number)
        try:
            if self._shapes is not None:
                values = _parsed(record, self._shapes)
            else:
                values = dict(_values(self._features.deserialize_example_np(record, decoders=self._decoders)))
        except Unreadable as error:
            raise Unreadable(error.reason, error.detail, key=place) from None
        except Exception as error:  # TFDS may fail in any way on a damaged record
            raise Unreadable("bad row", _line(error), key=place) from None
        return example_features.example(
            values, self._roles, number=index, place=place, norm=self._norm, most=self._most
        )

    def column(self, name: str) -> np.ndarray:
        """``key``, ``id``, ``label`` or a further field of all examples; reads all records, once.

        Numbers are nan, and texts empty, where an example has none or cannot be read.
        """
        return example_features.column(self, name, paths=self._files.paths, part=self._wanted)

    def _open(self, split: str, wanted: str, info: Any, folder: str, max_mib: int) -> None:
        kind = info.file_format.value
        if kind not in ("array_record", "tfrecord"):
            raise ConfigError(
                f"path={folder!r}: its format is {kind}; prepare it as array_record (parquet: the source 'tables')"
            )
        try:
            instructions = info.splits[wanted].file_instructions
        except (ValueError, KeyError, AssertionError) as error:
            known = f"there are {', '.join(info.splits)}, and slices such as 'train[:90%]'"
            raise ConfigError(f"split={split!r}: no such split; {known}; or map it in splits") from error
        paths = list(dict.fromkeys(filesystem.local_path(str(i.filename)) for i in instructions))
        missing = [p for p in filesystem.map_paths(lambda p: "" if filesystem.exists(p) else p, paths) if p]
        if missing:
            raise ConfigError(
                f"path={folder!r}: {len(missing)} of {len(paths)} files are missing, such as {missing[0]!r}; copy them"
            )
        self._files = record_files.open_records(paths, kind, max_mib=max_mib)
        self.unreadable: list[source.UnreadableEntry] = truncations(self._files)
        spans = []
        for instruction in instructions:
            file = paths.index(filesystem.local_path(str(instruction.filename)))
            there = int(self._files.counts[file])
            if there < instruction.examples_in_shard and file not in self._files.truncated:
                raise ConfigError(
                    f"path={paths[file]!r}: has {there} records where {instruction.examples_in_shard} are announced; "
                    "copy it again"
                )
            end = min(instruction.skip + instruction.take, there)
            spans.append((file, instruction.skip, max(end - instruction.skip, 0)))
            first_gone = max(there + 1, instruction.skip)  # the truncated one is listed already
            for number in range(first_gone, instruction.skip + instruction.take):
                key = f"{paths[file].rpartition('/')[2]}:{number}"
                self.unreadable.append((key, "truncated archive", "comes after the damage"))
        self._spans = record_files.Spans(spans)


def _shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int | None, ...]] | None:
    """The shapes of features that records hold as they are; None where some need TFDS to be decoded."""
    shapes = {}
    for name, feature in fields.items():
        # The columns of the negatives are in a sequence.
        shape = (None,) if name in example_features.NEGATIVES else feature.shape
        if (
            ("/" in name and name not in example_features.NEGATIVES)
            or None in shape[1:]
            or feature.np_dtype not in _STORED
        ):
            return None
        shapes[name] = shape
    return shapes


def _parsed(record: bytes, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, Any]:
    """As TFDS decodes them, in half the time."""
    values: dict[str, Any] = dict(tf_example.parse(record))
    for name, shape in shapes.items():
        if shape == ():
            values[name] = values[name][0]
        elif len(shape) > 1:
            values[name] = np.reshape(values[name], (-1, *shape[1:]))
    return values


def _folder(path: str, dataset: str | None) -> str:
    """The folder of a version."""
    folder = path
    if dataset is not None:
        name, _, version = dataset.partition(":")
        folder = "/".join(part for part in (path.rstrip("/"), name, version) if part)
    if filesystem.exists(f"{folder}/{_INFO}"):
        return folder
    names = filesystem.list_names(folder) if filesystem.is_folder(folder) else []
    versions = [name for name in names if _VERSION.fullmatch(name) and filesystem.exists(f"{folder}/{name}/{_INFO}")]
    if versions:
        return f"{folder}/{max(versions, key=path_patterns.natural_key)}"
    option = f"path={path!r}" + (f", dataset={dataset!r}" if dataset else "")
    if filesystem.is_folder(path) and dataset is not None:
        there = [name for name in filesystem.list_names(path) if filesystem.is_folder(f"{path}/{name}")]
        raise ConfigError(f"{option}: no prepared data set; {nearest(dataset.split(':')[0].split('/')[0], there)}")
    raise ConfigError(
        f"{option}: no prepared data set there (no {_INFO}); nothing is downloaded: prepare it by `tfds build` with "
        "--file_format=array_record, or by `mmjax data prepare`"
    )


def _flat(features: Any, tfds: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Features by name, those in dictionaries and sequences of them as ``outer/inner``."""
    for name in features:
        feature = features[name]
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        if isinstance(inner, tfds.features.FeaturesDict):
            yield from _flat(inner, tfds, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", feature


def _names(top: str, feature: Any, tfds: Any) -> list[str]:
    return [name for name, _ in _flat({top: feature}, tfds)]


def _values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """As ``_flat``, of what was decoded."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _is_picture(feature: Any, tfds: Any) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    # Raw pixels.
    return type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8 and len(feature.shape) == 3


def _is_text(feature: Any, tfds: Any) -> bool:
    while isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return isinstance(feature, tfds.features.Text) or (
        type(feature) is tfds.features.Tensor and feature.np_dtype in (np.object_, np.str_, np.bytes_)
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
