"""Rules: which tensors of a layout hold which parameters of ours, written once for reading and for writing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

LAYER = "{layer}"
"""In the name of a tensor: the number of its block. Ours are stacked, one array for all blocks of a tower."""


class Op(NamedTuple):
    """Between one tensor of theirs and one of ours; ``read`` is given the shape that ours must have."""

    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """``theirs`` holds ``ours``: one parameter, or several of equal shape one after another on its first axis."""

    ours: tuple[str, ...]
    theirs: str
    op: Op

    @property
    def stacked(self) -> bool:
        """Whether each block has a tensor of its own."""
        return LAYER in self.theirs

    def names(self, layers: int) -> list[str]:
        """The names of the tensors, one for each of the tower's blocks if there are several."""
        return [self.theirs.replace(LAYER, str(k)) for k in range(layers)] if self.stacked else [self.theirs]

    def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
        """The arrays of ``ours``, each of ``shape``; raises ValueError if the tensor cannot hold them."""
        if tensor.ndim == 0 and len(self.ours) == 1:
            return [self.op.read(tensor, shape)]
        if not len(tensor) or len(tensor) % len(self.ours):
            raise ValueError(f"its first axis does not divide in {len(self.ours)}")
        arrays = [self.op.read(piece, shape) for piece in np.split(tensor, len(self.ours))]
        for array in arrays:
            if array.shape != shape:
                raise ValueError(f"it holds {list(array.shape)}")
        return arrays

    def write(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The tensor that holds ``arrays``."""
        pieces = [self.op.write(array) for array in arrays]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


SAME = Op(lambda x, shape: x, lambda x: x)
SCALAR = Op(lambda x, shape: x.reshape(shape), lambda x: x)
"""One number; some write it as an array of length 1."""
FLAT = Op(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
"""A vector of theirs, heads apart in ours; or one number of ours as an array of length 1."""
CONV = Op(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""torch's [out, in, height, width] and ours [height, width, in, out]."""


def linear(input_axes: int = 1) -> Op:
    """torch's [out, in], of which ours has the inputs on the first ``input_axes`` axes and the outputs on the rest."""
    return Op(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(math.prod(x.shape[:input_axes]), -1).T)


def leading(axes: int) -> Op:
    """Theirs has ``axes`` more axes of length 1 before ours."""
    return Op(lambda x, shape: x.reshape(x.shape[axes:]), lambda x: x.reshape((1,) * axes + x.shape))


def norm(ours: str, theirs: str) -> Iterator[Rule]:
    """A layer norm of torch."""
    yield Rule((f"{ours}/scale",), f"{theirs}.weight", SAME)
    yield Rule((f"{ours}/bias",), f"{theirs}.bias", SAME)


def dense(ours: str, theirs: str, *, input_axes: int = 1, bias: bool = True) -> Iterator[Rule]:
    """A linear layer of torch."""
    yield Rule((f"{ours}/kernel",), f"{theirs}.weight", linear(input_axes))
    if bias:
        yield Rule((f"{ours}/bias",), f"{theirs}.bias", FLAT)


def qkv(ours: str, weight: str, bias: str, *, names: tuple[str, ...] = ("query", "key", "value")) -> Iterator[Rule]:
    """Queries, keys and values in one tensor of torch."""
    yield Rule(tuple(f"{ours}/{name}/kernel" for name in names), weight, linear())
    yield Rule(tuple(f"{ours}/{name}/bias" for name in names), bias, FLAT)
