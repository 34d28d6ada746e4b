"""Sequences of features, as of sound, video or signs: from what a source gives to one length with a mask."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np

from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source, SourceView


class FrameView(SourceView):
    """A source whose pictures are sequences of features, all brought to ``length`` frames (see ``pad``).

    An example has f32[T, D] with any T from 1 on, or the bytes of such an array as a file ``.npy``, or of a ``.npz``
    with this array alone. Of a mixture every part has the same D.
    """

    def __init__(self, source: Source, *, length: int):
        super().__init__(source)
        self._length = length

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        key = str(example.get("key", example["id"]))
        padded = {name: pad(read(example[name], key=key), self._length) for name in self.modalities if name in example}
        return {**example, **padded}


def read(value: bytes | np.ndarray, *, key: str) -> np.ndarray:
    """The sequence f32[T, D] in an array or in the bytes of a file of NumPy's; Unreadable if it is none."""
    if isinstance(value, bytes):
        try:
            loaded = np.load(io.BytesIO(value), allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                names = loaded.files
                if len(names) != 1:
                    raise Unreadable("bad row", f"a .npz of {len(names)} arrays; expected one", key=key)
                loaded = loaded[names[0]]
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(
                "bad row", f"no .npy or .npz file: {' '.join(str(error).split())[:100]}", key=key
            ) from None
        value = loaded
    array = np.asarray(value)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise Unreadable("bad row", f"{array.dtype}{list(array.shape)} is no sequence of features [T, D]", key=key)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise Unreadable("bad row", "a feature is not finite", key=key)
    return array


def is_sequence(value: Any) -> bool:
    """Whether what stands in place of a picture is a sequence: an array [T, D] of floats, or a file of NumPy's."""
    if isinstance(value, bytes):
        return value.startswith((b"\x93NUMPY", b"PK\x03\x04"))
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f"


def pad(sequence: np.ndarray, length: int) -> np.ndarray:
    """f32[T, D] -> f32[length, D + 1]: the last number of a frame is 1, and that of padding 0 like all of it.

    Of a longer sequence the frames ``⌊(i + ½) T / length⌋`` are kept, which are evenly spaced.
    """
    frames, features = sequence.shape
    if frames > length:
        sequence = sequence[(2 * np.arange(length) + 1) * frames // (2 * length)]
    padded = np.zeros((length, features + 1), np.float32)
    padded[: len(sequence), :-1] = sequence
    padded[: len(sequence), -1] = 1
    return padded


def size_of(padded: np.ndarray) -> tuple[int, int]:
    """How many frames and features a sequence that ``pad`` made has."""
    return int((padded[:, -1] > 0).sum()), padded.shape[1] - 1


def draw(padded: np.ndarray) -> np.ndarray:
    """A picture u8[D, T, 1] of a sequence that ``pad`` made: time to the right, gray is 0, white 3 deviations more."""
    length, _ = size_of(padded)
    features = padded[: max(length, 1), :-1].T
    scaled = features / max(float(features.std()), 1e-6)
    return np.clip(np.round(128 + scaled * 42), 0, 255).astype(np.uint8)[..., None]
