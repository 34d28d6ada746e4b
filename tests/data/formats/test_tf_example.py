import struct

import numpy as np
import pytest

from mmjax.data.formats import tf_example
from mmjax.data.sample import Unreadable

FEATURES = {
    "image": [b"\xff\xd8\x00\x01" * 100],
    "captions": ["a red circle", "naïve 日本", ""],
    "label": np.array([7]),
    "signed": np.array([-1, 0, 1, 127, 128, -(2**63), 2**63 - 1]),
    "score": np.array([0.25, -1.5, np.inf], np.float32),
    "none": [],
}


def test_features_come_back_as_they_were_written():
    got = tf_example.parse(tf_example.encode(FEATURES))
    assert list(got) == sorted(FEATURES)
    assert got["image"] == FEATURES["image"] and got["none"] == []
    assert got["captions"] == [caption.encode() for caption in FEATURES["captions"]]
    for name, kind in (("label", np.int64), ("signed", np.int64), ("score", np.float32)):
        np.testing.assert_array_equal(got[name], FEATURES[name])
        assert got[name].dtype == kind


def test_the_bytes_are_those_that_tensorflow_writes():
    record = tf_example.encode({"b": np.array([True]), "a": ["x"], "c": np.array([1.0])})
    entries = b"".join(
        field(1, field(1, name) + field(2, value))
        for name, value in (
            (b"a", field(1, field(1, b"x"))),
            (b"b", field(3, field(1, b"\x01"))),
            (b"c", field(2, field(1, struct.pack("<f", 1.0)))),
        )
    )
    assert record == field(1, entries)


def field(number, content, kind=2):
    assert number < 16 and len(content) < 128
    return bytes([number << 3 | kind]) + (bytes([len(content)]) if kind == 2 else b"") + content


def test_numbers_that_are_not_packed_and_unknown_fields_are_read():
    floats = field(2, b"".join(field(1, struct.pack("<f", v), kind=5) for v in (1.5, -2.0)))
    integers = field(3, field(1, b"\x05", kind=0) + field(1, b"\xac\x02", kind=0))
    entries = b"".join(field(1, field(1, name) + field(2, v)) for name, v in ((b"f", floats), (b"i", integers)))
    strange = field(9, b"abc") + field(10, b"\x01", kind=0) + field(11, b"12345678", kind=1)
    got = tf_example.parse(strange + field(1, strange + entries) + strange)
    assert got["f"].tolist() == [1.5, -2.0] and got["i"].tolist() == [5, 300]


@pytest.mark.parametrize("length, fine", [(10, True), (11, False), (60, False)])
def test_numbers_have_ten_bytes_at_most(length, fine):
    number = b"\x80" * (length - 1) + b"\x01"
    record = field(1, field(1, field(1, b"i") + field(2, field(3, field(1, number, kind=0)))))
    if fine:
        assert tf_example.parse(record)["i"].tolist() == [-(2**63)]
    else:
        with pytest.raises(Unreadable, match="bad row"):
            tf_example.parse(record)


def test_booleans_and_small_integers_are_64_bit_integers():
    got = tf_example.parse(tf_example.encode({"b": np.array([True, False]), "u": np.array([[1, 2]], np.uint8)}))
    assert got["b"].tolist() == [1, 0] and got["u"].tolist() == [1, 2]


def test_equal_features_are_equal_bytes():
    assert tf_example.encode(FEATURES) == tf_example.encode(dict(reversed(FEATURES.items())))


@pytest.mark.parametrize("values", ["text", b"bytes", [1, 2], [None], np.array(["a", None], object)])
def test_other_values_are_refused(values):
    with pytest.raises(TypeError, match="'x'"):
        tf_example.encode({"x": values})


def test_damaged_records_are_bad_rows_or_other_features_and_never_crash():
    record = tf_example.encode(FEATURES)
    random = np.random.default_rng(0)
    bad = 0
    for _ in range(600):
        damaged = bytearray(record)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        damaged = damaged[: random.integers(1, len(damaged) + 1)] if random.random() < 0.5 else damaged
        try:
            got = tf_example.parse(bytes(damaged))
        except Unreadable as error:
            assert error.reason == "bad row"
            bad += 1
        else:
            assert all(isinstance(name, str) for name in got)
    assert 100 < bad < 600
    for length in range(1, len(record)):
        with pytest.raises(Unreadable, match="bad row"):
            tf_example.parse(record[:length])
