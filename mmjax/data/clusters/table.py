"""A table of nearest neighbors, and whose examples of a source they are.

A row has ``key`` and ``index`` of an example, and ``neighbors``: rows of the table, the nearest first, -1 for none. The
file's metadata says of how many examples the source was, and has the fingerprint of the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError
from mmjax.data.clusters.config import ClusterConfig
from mmjax.data.source import Source
from mmjax.data.storage import filesystem

_OPTION = "data.clusters.path"
_EXAMPLES, _ID = b"examples", b"id"
_CHECKED = 8  # examples whose keys are compared with the table's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clusters:
    """The neighbors of a source's examples.

    Attributes:
      config: with the table's id.
      neighbors: i32[n, K], examples of the source, the nearest first; -1: none.
    """

    config: ClusterConfig
    neighbors: np.ndarray


def make_table(keys: list[str], indices: np.ndarray, neighbors: np.ndarray, *, examples: int) -> pa.Table:
    """The table of some of a source's ``examples``."""
    columns = {
        "key": pa.array(keys, pa.string()),
        "index": pa.array(indices, pa.int64()),
        "neighbors": pa.FixedSizeListArray.from_arrays(pa.array(neighbors.ravel(), pa.int32()), neighbors.shape[1]),
    }
    metadata = {_EXAMPLES: str(examples), _ID: _fingerprint(keys, neighbors)}
    return pa.table(columns).replace_schema_metadata(metadata)


def no_neighbors(config: ClusterConfig, source: Source) -> Clusters:
    """Clusters without any neighbors, whose batches are random."""
    _check_order(source)
    if config.nearest >= len(source):
        raise ConfigError(
            f"data.clusters: size={config.size} with among={config.nearest} needs more than the {len(source)} examples "
            "that there are; use a smaller one"
        )
    return Clusters(config=config, neighbors=np.empty((len(source), 0), np.int32))


def read_clusters(config: ClusterConfig, source: Source) -> Clusters:
    """The neighbors of the examples of ``source``; those that the table does not name have none."""
    if config.path is None:
        return no_neighbors(config, source)
    _check_order(source)
    keys, indices, rows, examples, name = _read(config.path)
    if config.id not in (None, name):
        raise ConfigError(f"{_OPTION}={config.path!r}: its id is {name}, not data.clusters.id={config.id!r}")
    if rows.shape[1] < config.nearest:
        raise ConfigError(
            f"{_OPTION}={config.path!r}: has {rows.shape[1]} neighbors of an example, and size={config.size} with "
            f"among={config.nearest} needs more; write it with --count={4 * config.nearest}"
        )
    places = match_rows(keys, indices, source, path=config.path, option=_OPTION, examples=examples)
    of_row = np.append(places, -1)  # the last one is for -1
    neighbors = np.full((len(source), rows.shape[1]), -1, np.int32)
    known = places >= 0
    neighbors[places[known]] = of_row[rows[known]]
    return Clusters(config=dataclasses.replace(config, id=name), neighbors=neighbors)


def _check_order(source: Source) -> None:
    if source.group > 1 or source.components:
        raise ConfigError("data.clusters: mixtures and groups have an order of their own; use one source")


def _fingerprint(keys: list[str], neighbors: np.ndarray) -> str:
    return hashlib.blake2b(neighbors.astype("<i4").tobytes() + "\0".join(keys).encode(), digest_size=8).hexdigest()


def _read(path: str) -> tuple[list[str], np.ndarray, np.ndarray, int, str]:
    try:
        with filesystem.open_file(path) as file:
            table = pq.read_table(file)
        neighbors = table["neighbors"].combine_chunks()
        rows = neighbors.flatten().to_numpy().reshape(len(table), -1)
        keys, indices = table["key"].to_pylist(), table["index"].to_numpy()
        metadata = table.schema.metadata or {}
        examples = int(metadata[_EXAMPLES])
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{_OPTION}={path!r}: is no table of neighbors ({reason}); write it by mmjax neighbors"
        ) from None
    name = _fingerprint(keys, rows)
    if (
        not len(rows) or rows.min() < -1 or rows.max() >= len(rows)
        or indices.min() < 0 or indices.max() >= examples
        or metadata.get(_ID) not in (None, name.encode())
    ):  # fmt: skip
        raise ConfigError(f"{_OPTION}={path!r}: is damaged; write it again")
    return keys, indices, rows, examples, name


def match_rows(
    keys: list[str], indices: np.ndarray, source: Source, *, path: str, option: str, examples: int
) -> np.ndarray:
    """The example of the source that each row of a table is of; -1: none.

    Args:
      keys: of the rows.
      indices: of the rows, in the source that they were made of.
      source: the examples.
      path: of the table, for errors.
      option: that names the path.
      examples: of the source that the rows were made of; if this one has as many, it must be the same.
    """
    if len(source) == examples:
        for row in np.unique(np.linspace(0, len(keys) - 1, _CHECKED).astype(int)).tolist():
            example = source.read(int(indices[row]))
            if str(example.get("key", example["id"])) != keys[row]:
                raise ConfigError(
                    f"{option}={path!r}: names example {indices[row]} {keys[row]!r}, here it is "
                    f"{example.get('key', example['id'])!r}; embed this data"
                )
        return indices
    try:
        place_of = {str(key): place for place, key in enumerate(source.column("key").tolist())}
    except ConfigError:
        raise ConfigError(
            f"{option}={path!r}: is of {examples} examples, the source has {len(source)} and no column of keys; embed "
            "this data with the same options"
        ) from None
    places = np.array([place_of.get(key, -1) for key in keys], np.int64)
    if (places < 0).all():
        raise ConfigError(f"{option}={path!r}: names none of the {len(source)} examples; embed this data")
    return places
