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

from mmjax.core.config import ConfigError, build
from mmjax.core.files import check_regular, read_json_object
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source
from mmjax.inference.embedding import Kind
from mmjax.inference.shards import shard_name

PLAN = "embeddings.json"
VERSION = 1
_MAX_DIMENSION = 1 << 16


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
        for name, value in (("examples", self.examples), ("shard_rows", self.shard_rows)):
            if not 0 < value < 1 << 40:
                raise ConfigError(f"{name}={value}: is no number of rows")
        if not 0 < self.dimension <= _MAX_DIMENSION:
            raise ConfigError(f"dimension={self.dimension}: is no size of an embedding")
        for name, value, known in (
            ("format", self.format, ("parquet", "npy")),
            ("dtype", self.dtype, ("float32", "float16")),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r}: must be one of {', '.join(known)}")
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
        embeddings: f32[n, E], unit rows; f16 where the files have that.
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
        return self._table["captions"][row].as_py() if self.kind == "images" else [self._table["caption"][row].as_py()]

    def read_picture(self, row: int) -> bytes | np.ndarray:
        """The picture of a row, from where it was embedded; raises ``Unreadable`` if it is no longer there."""
        with self._opening:
            try:
                source = self._source
            except ConfigError as error:
                raise Unreadable("missing file", str(error), key=self.paths[row]) from None
        if len(source) != self.plan.examples:
            raise Unreadable("missing file", "the source has changed since", key=self.paths[row])
        return source.read(int(self.indices[row]))[self.plan.modality]

    @functools.cached_property
    def _source(self) -> Source:
        plan = self.plan
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
            check_regular(path / name)
            table = pq.read_table(path / name)
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
    return EmbeddingStore(plan, kind, np.concatenate(arrays), pa.concat_tables(tables))


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
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings that are not finite")
    for name, type in (("index", pa.int64()), ("id", pa.int64()), ("key", pa.string())):
        if table[name].type != type or table[name].null_count:
            raise ValueError(f"the column {name} is {table[name].type}, expected {type}")
    type = table["captions" if kind == "images" else "caption"].type
    if type != (pa.list_(pa.string()) if kind == "images" else pa.string()):
        raise ValueError(f"the column of captions is {type}")
    indices, expected = table["index"].to_numpy(), plan.range(number)
    if len(indices) and not (expected.start <= indices.min() and indices.max() < expected.stop):
        raise ValueError("examples of another shard")
