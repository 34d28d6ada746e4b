"""What every file of weights can do: list its tensors without reading them, and read one of them by name."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mmjax.core.config import ConfigError, nearest


class WeightsError(ConfigError):
    """A file of weights that cannot be used; the message is one line that names the file."""


_MOST_DIMS = 64  # of an array of numpy
_LARGEST_DIM = 2**63 - 1
_LONGEST_QUOTE = 100
_LONGEST_NAME = 255


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read; raises ValueError for a shape that no array can have."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        # Products of very many or very long numbers would take minutes.
        if len(self.shape) > _MOST_DIMS or any(n > _LARGEST_DIM for n in self.shape):
            raise ValueError(f"a shape of {len(self.shape)} numbers, or of numbers over {_LARGEST_DIM}")

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile(abc.ABC):
    """Named tensors on disk; ``open_tensors`` makes one of a path.

    ``tensors`` is complete and checked when the file is opened: names, shapes and dtypes are there, and every tensor
    lies within the file. Nothing else is read before ``read``, and nothing is kept after it.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """The tensor ``name``, contiguous and in memory of its own."""
        if name not in self.tensors:
            raise WeightsError(f"{self.path}: holds no tensor {name!r}; {nearest(name, self.tensors)}")
        with one_line_errors(self.path):
            return self._read(name)

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """The tensor of a known name."""


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turns what readers raise on a damaged file into a ``WeightsError``, which names it."""
    try:
        yield
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise WeightsError(f"{path}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise WeightsError(f"{path}: a tensor does not fit into memory") from error
    except Exception as error:  # a damaged file makes zipfile, json, numpy and Python's tokenizer raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(f"{path}: damaged ({reason}); fetch it again") from error


def read_range(path: Path, start: int, dtype: np.dtype, count: int) -> np.ndarray:
    """``count`` numbers that lie from byte ``start`` on."""
    array = np.empty(count, dtype)
    with open(path, "rb") as file:
        file.seek(start)
        if file.readinto(array.view(np.uint8).data) != array.nbytes:
            raise WeightsError(f"{path}: truncated; fetch it again")
    return array


def quote(value: object) -> str:
    """What a file says, for a message: on one line and not too long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def check_plain_name(path: Path, name: str) -> None:
    """Raises unless ``name``, which a file gives for another one, is a path in its folder."""
    pieces = name.split("/")
    if not name or "\\" in name or os.path.isabs(name) or ".." in pieces:
        raise WeightsError(f"{path}: names {quote(name)}, which lies outside of it; fetch it from who made it")
    if not name.isprintable() or max(map(len, pieces)) > _LONGEST_NAME:
        raise WeightsError(f"{path}: names {quote(name)}, which is no name of a file; fetch it from who made it")
