"""The fields of a prepared data set: their types, how examples become records, and the TFDS features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from mmjax.data.formats import tf_example
from mmjax.data.sample import Example, Unreadable

Kind = Literal["integer", "number", "text", "integers", "numbers", "texts", "integer rows", "number rows", "negatives"]

_WIDER = {"integer": "number", "integers": "numbers", "integer rows": "number rows"}
_ALWAYS = ("id", "key", "captions")
_NEGATIVE = ("kind", "true", "false")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field's type; ``width`` is the row length of the kinds ``… rows``, and 0 for the others."""

    kind: Kind
    width: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The modalities, and the fields besides ``id``, ``key`` and ``captions``.

    ``left_out`` maps fields that are not stored to the reason.
    """

    modalities: tuple[str, ...]
    fields: Mapping[str, Field]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def pack(self, example: Example, pictures: Mapping[str, bytes]) -> bytes:
        """A serialized ``tf.train.Example``; equal examples give equal bytes, and missing lists are empty ones."""
        features: dict[str, Any] = {
            "id": np.array([example["id"]], np.int64),
            # A file name may not be UTF-8.
            "key": [str(example.get("key", example["id"])).encode("utf-8", "backslashreplace")],
            "captions": list(example["captions"]),
        }
        for name, data in pictures.items():
            features[name] = [data]
        for name, field in self.fields.items():
            value = example.get(name)
            if field.kind == "negatives":
                for i, column in enumerate(_NEGATIVE):
                    features[f"{name}/{column}"] = [str(entry[i]) for entry in value or ()]
                continue
            try:
                features[name] = _packed(value, field)
            except (TypeError, ValueError, OverflowError) as error:
                key = str(example.get("key", ""))
                raise Unreadable("bad row", f"its {name!r} is not of type {field.kind}: {error}", key=key) from None
        return tf_example.encode(features)

    def unknown(self, example: Example) -> list[str]:
        """Fields of an example that are not in the schema, and so are not stored."""
        known = (*_ALWAYS, *self.modalities, *self.fields, *self.left_out)
        return [name for name in example if name not in known]

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON values."""
        fields = {name: dataclasses.asdict(field) for name, field in sorted(self.fields.items())}
        return {"modalities": list(self.modalities), "fields": fields}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        """The schema that ``to_json`` wrote."""
        fields = {name: Field(**field) for name, field in value["fields"].items()}
        return cls(modalities=tuple(value["modalities"]), fields=fields)


def infer_schema(examples: Iterable[Example], *, modalities: Sequence[str], drop: Sequence[str] = ()) -> Schema:
    """Infers the fields of ``examples``, without those in ``drop``; integers among numbers become numbers."""
    fields: dict[str, Field] = {}
    left_out: dict[str, str] = dict.fromkeys(drop, "dropped as asked")
    seen: set[str] = set()
    for example in examples:
        for name, value in example.items():
            if name in _ALWAYS or name in modalities or name in left_out:
                continue
            seen.add(name)
            if value is None or (isinstance(value, list | tuple | np.ndarray) and len(value) == 0):
                continue
            field = _field(name, value)
            if field is None:
                left_out[name] = f"{type(value).__name__}: neither text nor numbers"
            elif name in fields and fields[name] != field:
                merged = _widen(fields[name], field)
                if merged is None:
                    left_out[name] = f"{fields[name].kind} in one example, {field.kind} in another"
                else:
                    fields[name] = merged
            else:
                fields[name] = field
    left_out |= dict.fromkeys(seen - set(fields) - set(left_out), "empty in all sampled examples")
    kept = {name: field for name, field in sorted(fields.items()) if name not in left_out}
    return Schema(modalities=tuple(modalities), fields=kept, left_out=left_out)


def tfds_features(
    schema: Schema, *, class_names: Sequence[str] | None, formats: Mapping[str, str | None]
) -> dict[str, Any]:
    """The schema as TFDS features.

    Args:
      schema: the fields.
      class_names: of the field ``label``, if there are any.
      formats: by modality, ``jpeg`` or ``png`` if all pictures have that format, else None.
    """
    import tensorflow_datasets as tfds  # takes a second, and only the metadata needs it

    text = tfds.features.Text
    features: dict[str, Any] = {"id": np.int64, "key": text(), "captions": tfds.features.Sequence(text())}
    for name in schema.modalities:
        features[name] = tfds.features.Image(shape=(None, None, 3), encoding_format=formats.get(name))
    for name, field in schema.fields.items():
        dtype = np.int64 if field.kind.startswith("integer") else np.float32
        if field.kind == "negatives":
            features[name] = tfds.features.Sequence({column: text() for column in _NEGATIVE})
        elif field.kind.endswith("rows"):
            features[name] = tfds.features.Tensor(shape=(None, field.width), dtype=dtype)
        elif field.kind in ("text", "texts"):
            features[name] = text() if field.kind == "text" else tfds.features.Sequence(text())
        elif name == "label" and field.kind == "integer" and class_names is not None:
            features[name] = tfds.features.ClassLabel(names=list(class_names))
        else:
            features[name] = dtype if field.kind in ("integer", "number") else tfds.features.Sequence(dtype)
    return features


def _field(name: str, value: Any) -> Field | None:
    """The type of a value that is not empty; None if it cannot be stored."""
    if name == "negatives":
        return Field(kind="negatives")
    if isinstance(value, str):
        return Field(kind="text")
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return Field(kind="texts")
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    if array.dtype.kind not in "biuf" or array.ndim > 2:
        return None
    base = "number" if array.dtype.kind == "f" else "integer"
    kind = (base, f"{base}s", f"{base} rows")[array.ndim]
    assert kind in get_args(Kind)
    return Field(kind=kind, width=array.shape[1] if array.ndim == 2 else 0)  # type: ignore[arg-type]


def _widen(one: Field, other: Field) -> Field | None:
    if one.width == other.width:
        for field, wider in ((one, other), (other, one)):
            if _WIDER.get(field.kind) == wider.kind:
                return wider
    return None


def _packed(value: Any, field: Field) -> Any:
    if field.kind == "text":
        return ["" if value is None else _text(value)]
    if field.kind == "texts":
        return [_text(entry) for entry in value or ()]
    if field.kind == "number":
        return np.array([np.nan if value is None else value], np.float32)
    if field.kind == "integer":
        if value is None:
            raise ValueError("it is missing")
        return _integers([value])
    array = np.asarray([] if value is None else value)
    if field.kind.endswith("rows") and array.size and array.shape[1:] != (field.width,):
        raise ValueError(f"its rows do not have {field.width} entries")
    return array.astype(np.float32) if field.kind.startswith("number") else _integers(array)


def _integers(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "biu":
        raise ValueError(f"{array.ravel()[0]!r} is not an integer")
    return array.astype(np.int64)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value
