"""Examples from the features of records: which feature is what, and texts from bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError, nearest
from mmjax.data.formats.row_builder import as_text
from mmjax.data.formats.tables import CAPTIONS
from mmjax.data.sample import Example, Unreadable
from mmjax.data.storage import column_cache
from mmjax.data.text import Norm, captions_of, negatives_of

OURS = ("id", "key", "captions")  # features of prepared data sets
MODALITIES = ("image", "depth", "thermal")
ID_LIMIT = 1 << 31
_THREADS = 4

_KEYS = ("key", "image/filename", "file_name", "filename", "__key__")
_CAPTIONS = ("captions", "caption", *(name for name in CAPTIONS if name not in ("captions", "caption")))
NEGATIVES = tuple(f"negatives/{part}" for part in ("kind", "true", "false"))


class Roles(NamedTuple):
    """The features by their role; nested ones are named ``outer/inner``."""

    pictures: Mapping[str, str]  # by modality
    captions: tuple[str, ...]
    label: str | None
    key: str | None
    fields: tuple[str, ...]
    ours: bool  # a prepared data set, which has the ids of its source
    class_names: list[str] | None = None

    def wanted(self) -> list[str]:
        """All features."""
        names = [*self.pictures.values(), *self.captions, *self.fields]
        names += [name for name in (self.label, self.key) if name is not None]
        return list(dict.fromkeys([*names, *(("id",) if self.ours else ())]))


def roles(
    names: Sequence[str],
    pictures: Sequence[str],
    *,
    texts: Sequence[str],
    modalities: Sequence[str] | None,
    image_key: str | None,
    caption_keys: Sequence[str] | None,
    label_key: str | None,
    columns: Sequence[str] | None,
    class_names: list[str] | None = None,
) -> Roles:
    """Assigns roles: the options, or usual names among ``pictures`` and ``texts``, which can be such."""
    ours = set(OURS) <= set(names)
    for option, names_given in (("image_key", [image_key]), ("caption_keys", caption_keys), ("label_key", [label_key])):
        for name in names_given or ():
            if name is not None and name not in names:
                raise ConfigError(f"{option}={name!r}: no such feature; {nearest(name, names)}")
    modality_features = _pictures(pictures, modalities, image_key)
    captions = caption_keys
    if captions is None:
        captions = sorted((name for name in texts if min(_rank(name)) < len(_CAPTIONS)), key=_rank)[:1]
    if not captions and not (label_key and class_names):
        raise ConfigError(f"caption_keys=None: no feature has a usual name; set it to some of {', '.join(names)}")
    if columns is None:
        reserved = {*OURS, *modality_features.values(), label_key, *pictures}
        columns = [name for name in names if ours and name not in reserved]
    for name in columns:
        if name in (*OURS, *modality_features):
            raise ConfigError(f"columns={name!r}: every example has a field of that name; leave it out")
        if name not in names:
            raise ConfigError(f"columns={name!r}: no such feature; {nearest(name, names)}")
    key = next((name for name in _KEYS if name in texts), None)
    return Roles(modality_features, tuple(captions), label_key, key, tuple(columns), ours, class_names)


def example(
    values: Mapping[str, Any], role: Roles, *, number: int, place: str, norm: Norm, most: int | None
) -> Example:
    """The example of a record's ``values``; texts are bytes, absent features are None.

    Whatever is wrong with them is Unreadable, of the record's own key or the ``place`` where it is.
    """
    try:
        return _example(values, role, number, place, norm, most)
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail, key=error.key or place) from None
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise Unreadable("bad row", f"unexpected features: {error}", key=place) from None


def column(source: Any, name: str, *, paths: Sequence[str], part: str) -> np.ndarray:
    """A field of all examples of a source, which reads ``part`` of the files."""

    def value(place: int) -> Any:
        try:
            return source.read(place).get(name)
        except Unreadable:  # counted when the example itself is read
            return None

    kind = f"record column {name} {part} {len(source)}"
    return column_cache.load_or_scan(
        kind,
        paths,
        len(source),
        value,
        name=name,
        threads=_THREADS,
        hint=lambda: nearest(name, source.first_readable()),
    )


def _example(values: Mapping[str, Any], role: Roles, number: int, place: str, norm: Norm, most: int | None) -> Example:
    key = place
    if role.key is not None and (name := _scalar(values.get(role.key))):
        key = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    made: Example = {"id": number, "key": key}
    if role.ours:
        made["id"] = int(_scalar(values["id"]))
        if not 0 <= made["id"] < ID_LIMIT:
            raise Unreadable("bad row", f"id {made['id']}", key=key)
    label = None if role.label is None else _scalar(values.get(role.label))
    if label is not None and int(label) >= 0:
        made["label"] = int(label)
    if role.captions:
        texts = [text for name in role.captions for text in _flat(values.get(name))]
    else:
        texts = [role.class_names[made["label"]]] if role.class_names and "label" in made else []
    made["captions"] = captions_of(texts, key, norm=norm, most=most)
    for modality, name in role.pictures.items():
        data = values.get(name)
        if isinstance(data, list):
            data = data[0] if data else None
        if data is None or len(data) == 0:
            raise Unreadable("empty image", f"the feature {name!r} is empty", key=key)
        made[modality] = data
    if set(NEGATIVES) <= set(role.fields):
        columns = [[as_text(text) for text in _flat(values.get(name))] for name in NEGATIVES]
        made["negatives"] = list(zip(*columns, strict=True))
    for name in role.fields:
        if name == "negatives":
            made[name] = negatives_of(_flat(values.get(name)), made["captions"], key, norm=norm)
        elif name not in NEGATIVES:
            made[name] = _plain(values.get(name))
    return made


def _pictures(pictures: Sequence[str], modalities: Sequence[str] | None, image_key: str | None) -> dict[str, str]:
    if modalities is None:
        modalities = [name for name in MODALITIES if name in pictures] or ["image"]
        if image_key is not None and "image" not in modalities:
            modalities = ["image", *modalities]
    if not modalities or len(set(modalities)) != len(modalities):
        raise ConfigError(f"modalities={tuple(modalities)!r}: name one or more of {', '.join(pictures)}, each once")
    features = {}
    for modality in modalities:
        name = image_key if modality == "image" and image_key is not None else modality
        if name not in pictures and modality == "image" and image_key is None and len(pictures) == 1:
            name = pictures[0]
        if name not in pictures:
            option = "image_key" if modality == "image" else "modalities"
            raise ConfigError(f"{option}={name!r}: no such picture; {nearest(name, pictures)}")
        features[modality] = name
    return features


def _rank(name: str) -> tuple[int, int]:
    """Sort key of caption features: by the rank of the full or outer name, then of the inner one."""
    outer, _, inner = name.rpartition("/")
    place = {usual: number for number, usual in enumerate(_CAPTIONS)}
    never = len(place)
    return min(place.get(name, never), place.get(outer, never)), place.get(inner, never)


def _scalar(value: Any) -> Any:
    if isinstance(value, list):
        return value[0] if value else None
    return value.flat[0] if isinstance(value, np.ndarray) and value.size else value


def _flat(value: Any) -> list[Any]:
    """The texts of a nested feature in one list."""
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _flat(item)]
    return [value]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return as_text(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
