"""Parameters from a file of tensors, read a tensor at a time into the shards of this process's devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.weights.rules import Rule
from mmjax.weights.tensors import TensorFile, WeightsError

_ALIGNMENT = 64  # JAX's CPU devices take memory as it is if it starts at a multiple of this, and copy it if not


def read_params(
    file: TensorFile,
    rules: Iterable[Rule],
    target: Mapping[str, jax.ShapeDtypeStruct],
    *,
    adapted: Mapping[str, tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] | None = None,
) -> dict[str, jax.Array]:
    """The parameters of ``target`` that ``rules`` find in ``file``.

    No more than one tensor and the shards of the parameters of one rule are in the host's memory beside what is already
    on the devices.

    Args:
        file: Tensors.
        rules: Of its layout.
        target: Shapes, with shardings, by path.
        adapted: For parameters that have another shape in the file: that shape, and what makes ours of them.
    """
    arrays: dict[str, jax.Array] = {}
    for rule in rules:
        wanted = [path for path in rule.ours if path in target]
        if not wanted:
            continue
        shape = target[wanted[0]].shape
        layers = shape[0] if rule.stacked else 1
        names = rule.names(layers)
        if not all(name in file.tensors for name in names):
            continue
        one = shape[1:] if rule.stacked else shape
        stored, adapt = (adapted or {}).get(wanted[0], (one, None))
        shards = {path: Shards(target[path]) for path in wanted}
        for layer, name in enumerate(names):
            tensor = file.read(name)
            try:
                pieces = rule.read(tensor, stored)
            except ValueError as error:
                raise WeightsError(
                    f"{file.path}: tensor {name!r} has the shape {list(tensor.shape)}; the model's "
                    f"{' and '.join(rule.ours)} have {list(stored)} ({error})"
                ) from None
            for path, piece in zip(rule.ours, pieces, strict=True):
                if path in shards:
                    value = piece if adapt is None else adapt(piece)
                    shards[path].fill(value, layer=layer if rule.stacked else None)
        for path, filled in shards.items():
            arrays[path] = filled.to_devices()
    return arrays


class Shards:
    """This process's pieces of an array, filled on the host before they go to their devices."""

    def __init__(self, leaf: jax.ShapeDtypeStruct):
        self._shape, self._sharding = leaf.shape, leaf.sharding
        assert self._sharding is not None
        self._places = self._sharding.addressable_devices_indices_map(leaf.shape)
        self._buffers: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
        for index in self._places.values():
            bounds = self._bounds(index)
            if bounds not in self._buffers:
                self._buffers[bounds] = _aligned(tuple(stop - start for start, stop in bounds), np.dtype(leaf.dtype))

    def fill(self, value: np.ndarray, *, layer: int | None = None) -> None:
        """Copies ``value``: all of the array, or its row ``layer``."""
        for bounds, buffer in self._buffers.items():
            if layer is None:
                buffer[...] = value[tuple(slice(*b) for b in bounds)]
            elif bounds[0][0] <= layer < bounds[0][1]:
                buffer[layer - bounds[0][0]] = value[tuple(slice(*b) for b in bounds[1:])]

    def to_devices(self) -> jax.Array:
        """The whole array."""
        on_devices = [
            jax.device_put(self._buffers[self._bounds(index)], device) for device, index in self._places.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, on_devices)

    def _bounds(self, index: Any) -> tuple[tuple[int, int], ...]:
        ranges = (piece.indices(size) for piece, size in zip(index, self._shape, strict=True))
        return tuple((start, stop) for start, stop, _ in ranges)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
