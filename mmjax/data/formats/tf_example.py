"""``tf.train.Example`` messages without TensorFlow: a dictionary of lists of bytes, floats or integers.

The wire format is that of protocol buffers. An Example holds Features (field 1), these a map (field 1) whose entries
are a name (1) and a Feature (2); a Feature is one of BytesList (1), FloatList (2), Int64List (3), each with its values
in field 1, numbers packed or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data.sample import Unreadable

Value = list[bytes] | np.ndarray
"""bytes, f32[n] or i64[n]; a feature without values is an empty list."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1


def parse(record: bytes) -> dict[str, Value]:
    """The features of a serialised Example; Unreadable("bad row") where the bytes are none."""
    features: dict[str, Value] = {}
    try:
        for field, entries in _fields(memoryview(record)):
            if field != 1 or isinstance(entries, int):
                continue
            for number, entry in _fields(entries):
                if number == 1 and not isinstance(entry, int):
                    name, value = _entry(entry)
                    features[name] = value
    except (IndexError, ValueError) as error:
        raise Unreadable("bad row", f"no tf.train.Example: {error}") from None
    return features


def encode(features: Mapping[str, Sequence[bytes] | Sequence[str] | np.ndarray]) -> bytes:
    """An Example of lists of bytes or texts, or arrays of numbers; equal features are equal bytes.

    Booleans and integers become 64-bit integers, floating point numbers 32-bit ones.
    """
    entries = b"".join(
        _tagged(1, _tagged(1, name.encode()) + _tagged(2, _feature(name, features[name]))) for name in sorted(features)
    )
    return _tagged(1, entries)


def _entry(entry: memoryview) -> tuple[str, Value]:
    name = ""
    value: Value = []
    for field, content in _fields(entry):
        if isinstance(content, int):
            continue
        if field == 1:
            name = bytes(content).decode()
        elif field == 2:
            value = _values(content)
    return name, value


def _values(feature: memoryview) -> Value:
    value: Value = []
    for kind, content in _fields(feature):
        if isinstance(content, int):
            continue
        if kind == 1:
            value = _contents(content)
        elif kind == 2:
            # Floats that are not packed come as the four bytes of each.
            value = np.frombuffer(b"".join(_contents(content)), "<f4").astype(np.float32)
        elif kind == 3:
            numbers: list[int] = []
            for field, v in _fields(content):
                if field == 1:
                    numbers += [v] if isinstance(v, int) else _varints(v)
            value = np.array(numbers, np.uint64).astype(np.int64)
    return value


def _contents(values: memoryview) -> list[bytes]:
    return [bytes(value) for field, value in _fields(values) if field == 1 and not isinstance(value, int)]


def _fields(message: memoryview) -> list[tuple[int, int | memoryview]]:
    """Number and content of each field: an integer for a varint, the bytes for all others."""
    found: list[tuple[int, int | memoryview]] = []
    place, end = 0, len(message)
    while place < end:
        tag = message[place]
        place += 1
        if tag > 127:  # rare; a call for each of the common ones would take half of the time
            tag, place = _varint(message, place - 1)
        kind = tag & 7
        if kind == _BYTES:
            length = message[place]
            place += 1
            if length > 127:
                length, place = _varint(message, place - 1)
        elif kind == _VARINT:
            number, place = _varint(message, place)
            found.append((tag >> 3, number))
            continue
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        after = place + length
        if after > end:
            raise ValueError(f"a field of {length} bytes where {end - place} are left")
        found.append((tag >> 3, message[place:after]))
        place = after
    return found


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & _MASK, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _varints(packed: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(packed):
        number, place = _varint(packed, place)
        numbers.append(number)
    return numbers


def _feature(name: str, values: Sequence[bytes] | Sequence[str] | np.ndarray) -> bytes:
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        if values.dtype.kind == "f":
            return _tagged(2, _tagged(1, values.ravel().astype("<f4").tobytes()))
        numbers = values.ravel().astype(np.int64).tolist()
        return _tagged(3, _tagged(1, b"".join(_number(v & _MASK) for v in numbers)))
    if isinstance(values, (bytes, str)) or not all(isinstance(v, (bytes, str)) for v in values):
        raise TypeError(f"feature {name!r}: must be a list of bytes or texts, or an array of numbers")
    return _tagged(1, b"".join(_tagged(1, v.encode() if isinstance(v, str) else v) for v in values))


def _tagged(field: int, content: bytes) -> bytes:
    return _number(field << 3 | _BYTES) + _number(len(content)) + content


def _number(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
