"""A mixture of several sources, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.open_source import open_source
from mmjax.data.sample import Example
from mmjax.data.source import Component

ID_LIMIT = 1 << 31
_OPENERS = 8


class Source(source.Source):
    """The examples of all ``sources``, one source after the other, with ids that do not overlap.

    A source's section says how often it is drawn: by ``weight``, relative to the others, or by ``upsample``, which is a
    weight per example as in open_clip (a source of n examples has the weight ``upsample * n``). By default all have
    ``upsample=1``, which equals concatenation. Drawing is exact, not random: at any time the number of rows from each
    source is within a few of its fraction.

    Args:
      split: passed on.
      sources: sections like ``data.source``, with ``weight`` or ``upsample``, and a ``title`` if names repeat.
      modalities: passed on.
      one_source_per_batch: each batch comes from one source; weights then hold over batches.
    """

    def __init__(
        self,
        split: str,
        *,
        sources: tuple[Mapping[str, Any], ...],
        modalities: tuple[str, ...] = ("image",),
        one_source_per_batch: bool = False,
    ):
        self.split = split
        self.modalities = tuple(modalities)
        self.one_source_per_batch = one_source_per_batch
        sections = [dict(section.items()) for section in sources]
        if not sections:
            raise ConfigError("sources=(): a mixture needs at least one source")
        weights: list[dict[str, Any]] = [
            {key: section.pop(key) for key in ("weight", "upsample") if key in section} for section in sections
        ]
        titles = _titles(sections)
        _check(weights, titles)

        def opened(number: int) -> source.Source:
            path = f"sources[{number}]"
            return open_source(sections[number], split=split, modalities=self.modalities, path=path)

        # In threads, because opening waits for files.
        with ThreadPoolExecutor(min(_OPENERS, len(sections))) as pool:
            self._sources: list[source.Source] = list(pool.map(opened, range(len(sections))))
        groups = {one.group for one in self._sources}
        if len(groups) > 1:
            raise ConfigError(f"sources: they come in groups of {sorted(groups)}; a mixture needs one size of group")
        self.group: int = groups.pop()
        sizes = [len(one) for one in self._sources]
        for title, size in zip(titles, sizes, strict=True):
            if not size:
                raise ConfigError(f"sources: {title} is empty; check its path or leave it out")
        self.unreadable = [entry for one in self._sources for entry in one.unreadable]
        self._first = np.cumsum([0, *sizes])
        limits = [one.id_limit for one in self._sources]
        self._first_id = np.cumsum([0, *limits])
        self.ignores_split = any(one.ignores_split for one in self._sources)
        self.rows_share_images = any(one.rows_share_images for one in self._sources)
        if self.id_limit > ID_LIMIT:
            known = ", ".join(f"{title} {limit:,}" for title, limit in zip(titles, limits, strict=True))
            raise ConfigError(f"sources: their ids are more than 2**31 in all ({known}); prepare them again")
        self.components = tuple(
            Component(title, size, weight["weight"] if "weight" in weight else weight.get("upsample", 1.0) * size)
            for title, size, weight in zip(titles, sizes, weights, strict=True)
        )

    @property
    def id_limit(self) -> int:
        """The sum of the sources' limits."""
        return int(self._first_id[-1])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        first = int(self._first[number])
        example = dict(self._sources[number][index - first])
        below = int(self._first_id[number + 1] - self._first_id[number])
        if example["id"] >= below:
            raise ValueError(
                f"{self.components[number].name} has {below} examples and one of id {example['id']}; ids in a mixture "
                "must be below the number of examples"
            )
        example["id"] += int(self._first_id[number])
        example["key"] = f"{self.components[number].name}/{example.get('key', index - first)}"
        return example

    def column(self, name: str) -> np.ndarray:
        """A field of all examples; keys and ids are those of the mixture."""
        columns = []
        for number, component in enumerate(self.components):
            values = self._sources[number].column(name)
            if name == "id":
                values = values + self._first_id[number]
            elif name == "key":
                values = np.array([f"{component.name}/{key}" for key in values.tolist()], object)
            columns.append(values)
        return np.concatenate(columns)


def _titles(sections: Sequence[dict[str, Any]]) -> list[str]:
    titles = [str(section.pop("title", section.get("name", "?"))) for section in sections]
    return [
        title if titles.count(title) == 1 else f"{title}#{titles[: place + 1].count(title)}"
        for place, title in enumerate(titles)
    ]


def _check(weights: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> None:
    weighted = [title for title, weight in zip(titles, weights, strict=True) if "weight" in weight]
    if weighted and len(weighted) < len(titles):
        missing = next(title for title in titles if title not in weighted)
        raise ConfigError(
            f"sources: {weighted[0]} has a weight and {missing} has none; give every source a weight, or upsample"
        )
    for title, weight in zip(titles, weights, strict=True):
        if len(weight) > 1:
            raise ConfigError(f"sources: {title} has both weight and upsample; keep one")
        for key, value in weight.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ConfigError(
                    f"sources: {key}={value!r} of {title}: must be a positive number; for no rows leave it out"
                )
