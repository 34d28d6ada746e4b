"""The examples that a recipe starts from, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data import pictures
from mmjax.data.formats.generated_records import Record, jsonable
from mmjax.data.open_source import open_source
from mmjax.data.sample import Example, Unreadable
from mmjax.data.scenes import graph, language, signs
from mmjax.data.sequences import frames
from mmjax.data.source import Source
from mmjax.data.sources import generated, scenes

_TESTS = ("test", "zeroshot", "winoground")
_OWN = ("id", "key", "captions", "caption_weights", "negatives", "boxes", "image")


class Inputs:
    """One or several splits of a source, one after the other.

    What is made from examples that a model is tested on would leak into training, so splits for tests are refused.
    """

    def __init__(self, section: Mapping[str, Any], *, splits: Sequence[str], limit: int | None = None):
        for split in splits:
            if split.casefold().startswith(_TESTS):
                raise ConfigError(f"--split={split}: recipes make no data from what models are tested on; use train")
        self._splits: list[tuple[str, Source]] = [
            (split, open_source(section, split=split, path="--input")) for split in splits
        ]
        sizes = [min(len(source), limit) if limit else len(source) for _, source in self._splits]
        self._starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self.size = sum(sizes)
        if not self.size:
            raise ConfigError("--input: the source is empty")

    def __len__(self) -> int:
        return self.size

    @property
    def splits(self) -> list[str]:
        """The names of the splits, each once."""
        return list(dict.fromkeys(split for split, _ in self._splits))

    def read(self, index: int) -> tuple[str, Source, int]:
        """The split, source and index there of the example of that number."""
        part = max(number for number, start in enumerate(self._starts) if start <= index)
        split, source = self._splits[part]
        return split, source, index - self._starts[part]

    def image(self, index: int) -> Any:
        """The example's picture, encoded or as an array; None if it has a sequence of features in its place."""
        _, source, number = self.read(index)
        image = source.read(number).get("image")
        return None if frames.is_sequence(image) else image

    def record(self, index: int) -> Record:
        """The example as a record, whose picture stays in the source; a dropped one if it cannot be read."""
        split, source, number = self.read(index)
        try:
            if isinstance(source, generated.Source):
                record = source.record(number)
                if record.split.casefold().startswith(_TESTS):
                    raise ConfigError(f"--input: record {record.id} is of the split {record.split!r}, for tests")
                record.index = index
                return record
            example = source.read(number)
            record = _record(example, index, split)
        except Unreadable as error:
            record = Record(id=str(index), key=error.key, split=split, index=index)
            record.drop(f"unreadable: {error.reason} {error.detail}")
            return record
        if isinstance(source, scenes.Source):
            scene, _ = graph.from_json(record.fields["scene"])
            record.fields.setdefault("class_name", language.name(scene.things[0]))
            record.fields.setdefault("gloss", " ".join(signs.glosses(scene)))
        elif source.class_names is not None and "label" in record.fields:
            record.fields.setdefault("class_name", source.class_names[record.fields["label"]])
        return record


def _record(example: Example, index: int, split: str) -> Record:
    record = Record(id=str(index), key=str(example.get("key", example["id"])), split=split, index=index)
    if "image" in example and not frames.is_sequence(example["image"]):
        height, width = pictures.size_of(example["image"], key=record.key)
        record.size = (height, width)
    weights = example.get("caption_weights") or [1.0] * len(example["captions"])
    record.captions = [
        {"text": text, "source": "raw", "weight": weight}
        for text, weight in zip(example["captions"], weights, strict=True)
    ]
    for kind, true, false in example.get("negatives", ()):
        place = record.texts.index(true) if true in record.texts else 0
        record.negatives.append({"text": false, "kind": kind, "of": place})
    for name, value in example.items():
        if name not in _OWN:
            try:
                record.fields[name] = jsonable(value)
            except TypeError:
                continue  # such as further modalities
    return record
