"""Evaluation in a run of several processes: which rows each one reads, and how all get all examples."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.data.sample import Unreadable
from mmjax.data.source import Source
from mmjax.parallel import collectives

Progress = Callable[[int, str], contextlib.AbstractContextManager[Callable[[int], None]]]


class HostBatch:
    """This process's rows of a global batch.

    Args:
        size: Rows of the global batch.
        row_sharding: How they lie over the devices; None: one device.

    Attributes:
        rows: i64[h], the rows on this process's devices, in order.
        owned: bool[h], the rows that this process reports. If several processes hold a row (along a mesh axis that does
            not split batches), the first one owns it.
        progress: Of a total number of ``images`` or ``texts``: shows how many are done.
    """

    def __init__(self, size: int, row_sharding: NamedSharding | None):
        self._size = size
        self._row_sharding = row_sharding
        process = jax.process_index()
        owner = np.full(size, -1, np.int64)
        local = np.zeros(size, bool)
        if row_sharding is None:
            owner[:], local[:] = process, True
        else:
            device_slices: dict[Any, Any] = dict(row_sharding.devices_indices_map((size,)))
            for device, (index, *_) in device_slices.items():
                other = owner[index]
                owner[index] = np.where(other < 0, device.process_index, np.minimum(other, device.process_index))
                local[index] |= device.process_index == process
        self.rows = np.flatnonzero(local)
        self.owned = owner[self.rows] == process
        self.progress: Progress = lambda total, unit: contextlib.nullcontext(lambda done: None)

    def starts(self, total: int, unit: str) -> Iterator[int]:
        """The first row of each batch of ``total`` images or texts."""
        with self.progress(total, unit) as show:
            for start in range(0, total, self._size):
                show(start)
                yield start

    def to_device(self, local: np.ndarray) -> jax.Array:
        """The global batch from this process's rows of it, ``local`` [h, …].

        Each shard is transferred explicitly, because the training loop forbids implicit transfers.
        """
        if self._row_sharding is None:
            return jax.device_put(local)
        shape = (self._size, *local.shape[1:])
        device_slices: dict[Any, Any] = dict(self._row_sharding.addressable_devices_indices_map(shape))
        shards = []
        for device, (index, *_) in device_slices.items():
            first, last, _ = index.indices(self._size)
            start, stop = np.searchsorted(self.rows, (first, last))
            shards.append(jax.device_put(local[start:stop], device))
        return jax.make_array_from_single_device_arrays(shape, self._row_sharding, shards)


def to_global(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """One global array from a host array that is the same in every process; the transfers are explicit."""
    device_slices: dict[Any, Any] = dict(sharding.addressable_devices_indices_map(array.shape))
    shards = [jax.device_put(array[index], device) for device, index in device_slices.items()]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


ALL_UNREADABLE = "none of the split's examples can be read; check the source with `mmjax data inspect`"


class SplitExamples(NamedTuple):
    """The examples of a split without their pictures."""

    indices: np.ndarray  # i64[n]: their indices in the source
    items: list[dict[str, Any]]
    unreadable: list[Unreadable]


class Embedded(NamedTuple):
    """An embedded split, without the examples that could not be read."""

    images: np.ndarray  # f32[n, E], unit rows
    items: list[dict[str, Any]]  # the examples without their pictures, as JSON values
    indices: np.ndarray  # i64[n]: their indices in the source
    unreadable: list[Unreadable]


Description = dict[str, Any] | list[Any]
"""An example without its pictures, or an error, as JSON values."""

DIGEST = "picture_digest"
"""The key of an example's description that is equal for equal pictures."""


def describe(example: Mapping[str, Any] | Unreadable, modalities: Sequence[str] = ()) -> Description:
    """What is kept of an example that was read, or of the error; ``modalities`` are pictures or sequences."""
    if isinstance(example, Unreadable):
        return [example.reason, example.detail, example.key]
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(example.items()):
        if isinstance(value, np.ndarray) and (name in modalities or _is_picture(value)):
            digest.update(f"{name} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
    rest = {name: value for name, value in example.items() if name not in modalities}
    return {**_to_json(rest), DIGEST: digest.hexdigest()}


def gather_examples(local: list[tuple[int, Description]]) -> SplitExamples:
    """The examples that all processes have read, ordered by index; the same in every process.

    Args:
        local: Index and description of those that this process owns.
    """
    gathered = sorted((entry for host in collectives.all_gather(local) for entry in host), key=lambda entry: entry[0])
    readable = [(index, item) for index, item in gathered if isinstance(item, dict)]
    return SplitExamples(
        np.array([index for index, _ in readable], np.int64),
        [item for _, item in readable],
        [Unreadable(error[0], error[1], key=error[2]) for _, error in gathered if isinstance(error, list)],
    )


def _to_json(value: Any) -> Any:
    """``value`` without pictures, and with Python's numbers in place of numpy's."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(inner) for key, inner in value.items() if not _is_picture(inner)}
    if isinstance(value, (list, tuple)):
        return [_to_json(inner) for inner in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim == 3)


def first_pictures(examples: Source, modalities: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The pictures of the first readable example; None if there is none."""
    for index in range(len(examples)):
        with contextlib.suppress(Unreadable):
            stacked = stack_modalities([examples.read(index)], modalities, [index])
            return {name: pictures[0] for name, pictures in stacked.items()}
    return None


def stack_modalities(
    examples: Sequence[Any], modalities: Sequence[str], indices: Sequence[int]
) -> dict[str, np.ndarray]:
    """``stack_pictures`` of each modality."""
    return {name: stack_pictures(examples, name, indices) for name in modalities}


def stack_pictures(examples: Sequence[Any], modality: str, indices: Sequence[int]) -> np.ndarray:
    """One array of the examples' pictures of a modality; ``indices`` are for messages."""
    for index, example in zip(indices, examples, strict=True):
        if modality not in example:
            raise ValueError(
                f"example {index} has no {modality!r}; it has {', '.join(map(repr, example))}: "
                "change the evaluation's modalities or the source"
            )
        shape, first = example[modality].shape, examples[0][modality].shape
        if shape != first:
            raise ValueError(
                f"example {index}: {modality!r} has the shape {shape}, others of its batch have {first}; "
                "let the source resize images to one size"
            )
    return np.stack([example[modality] for example in examples])
