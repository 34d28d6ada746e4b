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


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

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
    """Turns what readers raise on a damaged file into a ``WeightsError``."""
    try:
        yield
    except WeightsError:
        raise
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


def check_plain_name(path: Path, name: str) -> None:
    """Raises unless ``name``, which a file gives for another one, stays in its folder."""
    pieces = name.split("/")
    if not name or "\\" in name or "\0" in name or os.path.isabs(name) or ".." in pieces:
        raise WeightsError(f"{path}: names {name[:100]!r}, which lies outside of it; fetch it from who made it")
