import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.formats import tf_example
from mmjax.data.sample import Unreadable


def reference():
    """The message classes as protobuf itself makes them from the published field numbers."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example_for_tests.proto", package="tests_of_mmjax", syntax="proto3")

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, (field, kind, label, type_name) in enumerate(fields, 1):
            made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name or None)
        return made

    many, one, prefix = kinds.LABEL_REPEATED, kinds.LABEL_OPTIONAL, ".tests_of_mmjax."
    message("BytesList", ("value", kinds.TYPE_BYTES, many, ""))
    message("FloatList", ("value", kinds.TYPE_FLOAT, many, ""))
    message("Int64List", ("value", kinds.TYPE_INT64, many, ""))
    lists = [(f"{k}_list", kinds.TYPE_MESSAGE, one, f"{prefix}{k.title()}List") for k in ("bytes", "float", "int64")]
    message("Feature", *lists)
    features = message("Features", ("feature", kinds.TYPE_MESSAGE, many, f"{prefix}Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=one, type_name=f"{prefix}Feature")
    message("Example", ("features", kinds.TYPE_MESSAGE, one, f"{prefix}Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests_of_mmjax.Example"))


Example = reference()

FEATURES = {
    "image": [b"\xff\xd8\x00\x01" * 100],
    "captions": ["a red circle", "naïve 日本", ""],
    "label": np.array([7]),
    "signed": np.array([-1, 0, 1, 127, 128, -(2**63), 2**63 - 1]),
    "score": np.array([0.25, -1.5, np.inf], np.float32),
    "none": [],
}


def equal(ours, theirs):
    for name, feature in theirs.features.feature.items():
        if feature.HasField("bytes_list"):
            assert ours[name] == list(feature.bytes_list.value), name
        elif feature.HasField("float_list"):
            np.testing.assert_array_equal(ours[name], np.array(feature.float_list.value, np.float32))
            assert ours[name].dtype == np.float32
        elif feature.HasField("int64_list"):
            np.testing.assert_array_equal(ours[name], np.array(feature.int64_list.value, np.int64))
            assert ours[name].dtype == np.int64
        else:
            assert ours[name] == []
    assert sorted(ours) == sorted(theirs.features.feature)


def test_what_we_write_protobuf_reads():
    record = tf_example.encode(FEATURES)
    theirs = Example.FromString(record)
    equal(tf_example.parse(record), theirs)
    assert list(theirs.features.feature["captions"].bytes_list.value) == [c.encode() for c in FEATURES["captions"]]
    assert list(theirs.features.feature["signed"].int64_list.value) == FEATURES["signed"].tolist()
    assert list(theirs.features.feature["score"].float_list.value) == FEATURES["score"].tolist()


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            st.lists(st.binary(max_size=200), max_size=4),
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4).map(lambda v: np.array(v, np.int64)),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4).map(
                lambda v: np.array(v, np.float32)
            ),
        ),
        max_size=5,
    )
)
def test_both_directions_agree_with_protobuf(features):
    theirs = Example()
    for name, values in features.items():
        feature = theirs.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif values.dtype == np.int64:
            feature.int64_list.value.extend(values.tolist())
        else:
            feature.float_list.value.extend(values.tolist())
    equal(tf_example.parse(theirs.SerializeToString()), theirs)
    again = Example.FromString(tf_example.encode(features))
    for name, values in features.items():
        if len(values):
            assert again.features.feature[name] == theirs.features.feature[name]


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
