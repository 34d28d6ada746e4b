"""Embeddings in a folder, as ``mmjax embed`` writes them: what they are of, and where their pictures are."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError, build, choose
from mmjax.core.files import check_regular, read_json_object
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source
from mmjax.inference.embedding import Kind, name_of
from mmjax.inference.shards import shard_name

PLAN = "embeddings.json"
VERSION = 1
_MAX_DIMENSION = 1 << 16
_TOLERANCE = 0.01  # of lengths; float16 rounds them


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorePlan:
    """What a folder of embeddings holds.

    Attributes:
        version: Of the layout.
        model: The SPEC of the model that made them.
        weights: The fingerprint of its parameters.
        precision: Of its matrix products.
        dimension: Of the embeddings.
        kinds: ``images``, ``texts`` or both.
        format: ``parquet``, or ``npy`` for embeddings beside a table of the rest.
        dtype: Of the embeddings in the files.
        examples: Of the source.
        shard_rows: Examples of a shard.
        batch_size: That they were embedded in.
        source: The section of the source.
        split: Of the source.
        modality: The name of the pictures.
    """

    version: int = VERSION
    model: str
    weights: str
    precision: str
    dimension: int
    kinds: tuple[str, ...]
    format: str
    dtype: str
    examples: int
    shard_rows: int
    batch_size: int
    source: Mapping[str, Any]
    split: str
    modality: str

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ConfigError(f"version={self.version}: this mmjax reads version {VERSION}; embed again")
        for name, number, limit in (
            ("examples", self.examples, 1 << 40),
            ("shard_rows", self.shard_rows, 1 << 40),
            ("dimension", self.dimension, _MAX_DIMENSION),
        ):
            if not 0 < number <= limit:
                raise ConfigError(f"{name}={number}: must be from 1 to {limit}")
        choose(self.format, ("parquet", "npy"), path="format")
        choose(self.dtype, ("float32", "float16"), path="dtype")
        if not self.kinds or not set(self.kinds) <= set(get_args(Kind)):
            raise ConfigError(f"kinds={self.kinds!r}: must be of images and texts")

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.examples // self.shard_rows)

    def range(self, shard: int) -> range:
        """The examples of one shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.examples))


class EmbeddingStore:
    """The embeddings of one kind in a folder; ``open_store`` opens it.

    Attributes:
        plan: What the folder holds.
        kind: ``images`` or ``texts``.
        embeddings: f32[n, E], unit rows, also where the files have float16.
        indices: i64[n], each row's example in the source.
        ids: i64[n], of the examples.
        paths: Names of the examples for people: files, members of archives, rows of tables.
    """

    def __init__(self, plan: StorePlan, kind: Kind, embeddings: np.ndarray, table: pa.Table):
        self.plan, self.kind, self.embeddings = plan, kind, embeddings
        self.indices = table["index"].to_numpy()
        self.ids = table["id"].to_numpy()
        self.paths: Sequence[str] = table["key"].to_pylist()
        self._table, self._opening = table, threading.Lock()

    def __len__(self) -> int:
        return len(self.embeddings)

    def captions(self, row: int) -> list[str]:
        """The captions of a row's example, or the text that the row is of."""
        value = self._table["captions" if self.kind == "images" else "caption"][row].as_py()
        return value if self.kind == "images" else [value]

    def read_picture(self, row: int) -> bytes | np.ndarray:
        """The picture of a row, from where it was embedded; raises ``Unreadable`` if it is no longer there."""
        with self._opening:
            try:
                source = self._source
            except ConfigError as error:
                raise Unreadable("missing file", str(error), key=self.paths[row]) from None
        key = self.paths[row]
        example = source.read(int(self.indices[row])) if len(source) == self.plan.examples else {}
        if name_of(example, int(self.indices[row])) != key or self.plan.modality not in example:
            raise Unreadable("missing file", "the source has changed since", key=key)
        return example[self.plan.modality]

    @functools.cached_property
    def _source(self) -> Source:
        plan = self.plan
        if "." in str(plan.source.get("name")):  # a folder from elsewhere must not choose code to import
            raise ConfigError(f"source.name={plan.source['name']!r}: pictures of a plug-in's source are not opened")
        return open_source(plan.source, split=plan.split, modalities=(plan.modality,), path="source")


def read_plan(folder: str | os.PathLike[str], *, flag: str = "--in") -> StorePlan:
    """What a folder of embeddings holds, without reading them."""
    path = Path(folder)
    try:
        return build(StorePlan, read_json_object(path / PLAN), path=f"{flag}={path}: {PLAN}")
    except FileNotFoundError:
        raise ConfigError(f"{flag}={path}: has no {PLAN}; make it with mmjax embed") from None
    except NotADirectoryError:
        raise ConfigError(f"{flag}={path}: is no folder; name one that mmjax embed made") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag}={path}: {PLAN} cannot be read ({error}); embed again") from None


def open_store(folder: str | os.PathLike[str], *, kind: Kind = "images", flag: str = "--in") -> EmbeddingStore:
    """Opens a complete folder of embeddings; damaged and incomplete ones are refused."""
    path, plan = Path(folder), read_plan(folder, flag=flag)
    if kind not in plan.kinds:
        raise ConfigError(f"{flag}={path}: holds embeddings of {', '.join(plan.kinds)}, not of {kind}; embed these too")
    tables, arrays = [], []
    for number in range(plan.shards):
        name = shard_name(kind, number, plan.shards, ".parquet")
        try:
            table = _read_table(path / name, plan)
            embeddings = _read_embeddings(path, table, plan, kind=kind, number=number)
            _check(table, embeddings, plan, kind=kind, number=number)
        except FileNotFoundError:
            raise ConfigError(
                f"{flag}={path}: {name} is missing; the same mmjax embed command again writes what is left"
            ) from None
        except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{flag}={path}: {name} is damaged ({reason}); remove it and embed again") from None
        arrays.append(embeddings)
        tables.append(table.drop_columns(["embedding"]) if plan.format == "parquet" else table)
    embeddings = np.concatenate(arrays, dtype=np.float32, casting="same_kind")
    if plan.dtype != "float32":  # rounding has changed lengths
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return EmbeddingStore(plan, kind, embeddings, pa.concat_tables(tables))


def _read_table(path: Path, plan: StorePlan) -> pa.Table:
    """The table of one shard; ValueError for one that would need far more memory than its file."""
    check_regular(path)
    with pq.ParquetFile(path, memory_map=True) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        if any(column.compression != "UNCOMPRESSED" or "DICTIONARY" in str(column.encodings) for column in columns):
            raise ValueError("it is compressed, which mmjax embed does not do")
        if file.metadata.num_rows * (plan.dimension if plan.format == "parquet" else 1) > path.stat().st_size:
            raise ValueError(f"it claims {file.metadata.num_rows} rows")
        return file.read()


def _read_embeddings(path: Path, table: pa.Table, plan: StorePlan, *, kind: Kind, number: int) -> np.ndarray:
    """[n, E] of one shard."""
    if plan.format == "npy":
        file = path / shard_name(kind, number, plan.shards, ".npy")
        check_regular(file)
        return np.load(file, mmap_mode="r", allow_pickle=False)
    column = table["embedding"].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type) or column.null_count:
        raise ValueError(f"its embeddings are {column.type}")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _check(table: pa.Table, embeddings: np.ndarray, plan: StorePlan, *, kind: Kind, number: int) -> None:
    if embeddings.shape != (len(table), plan.dimension) and (len(table) or embeddings.size):
        raise ValueError(f"embeddings {list(embeddings.shape)}, expected {[len(table), plan.dimension]}")
    if embeddings.dtype != plan.dtype:
        raise ValueError(f"embeddings of {embeddings.dtype}, expected {plan.dtype}")
    lengths = np.linalg.norm(embeddings.astype(np.float32, copy=False), axis=1)
    if not ((np.abs(lengths - 1) < _TOLERANCE) | (lengths == 0)).all():  # not of NaN either
        raise ValueError("embeddings that are not of length one")
    for name, type in (("index", pa.int64()), ("id", pa.int64()), ("key", pa.string())):
        if table[name].type != type or table[name].null_count:
            raise ValueError(f"the column {name} is {table[name].type}, expected {type}")
    type = table["captions" if kind == "images" else "caption"].type
    if type != (pa.list_(pa.string()) if kind == "images" else pa.string()):
        raise ValueError(f"the column of captions is {type}")
    indices, expected = table["index"].to_numpy(), plan.range(number)
    if len(indices) and not (expected.start <= indices[0] and indices[-1] < expected.stop):
        raise ValueError("examples of another shard")
    if (np.diff(indices) < (1 if kind == "images" else 0)).any():
        raise ValueError("examples out of order")
