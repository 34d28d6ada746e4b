"""Names, keywords and classes of emoji from emojibase-data, and which of them belong together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError, nearest
from mmjax.data.fetching.emoji_styles import code
from mmjax.data.fetching.packages import members

_FRACTIONS = {"val": 0.10, "test": 0.15}  # of the families; the others are in train
_KEYWORDS = 6  # besides the name
_NO_NAMES = "component"  # the group of what is only a piece of emoji
_FLAGS = "flags"

# What makes no other family: skin tones, gender signs, direction, hair, and the joiner. A person may be a man or woman.
_VARIANTS = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
_JOINER = "200D"
_PERSON = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji, without skin tones."""

    hexcode: str
    emoji: str
    name: str
    tags: Sequence[str]
    group: str
    subgroup: str
    translations: Mapping[str, str]  # names by locale; empty where a language has none

    @property
    def family(self) -> str:
        """The same for all that differ in tone, gender, hair or direction alone."""
        points = (_PERSON.get(point, point) for point in code(self.hexcode).split("-"))
        return "-".join(point for point in points if point not in _VARIANTS and point != _JOINER)

    @property
    def partition(self) -> str:
        """``train``, ``val`` or ``test``, by a hash of the family; names do not say what an unseen flag looks like."""
        place = 1.0 if self.group == _FLAGS else fraction(self.family)
        for name, size in _FRACTIONS.items():
            if place < size:
                return name
            place -= size
        return "train"

    def captions(self) -> dict[str, str]:
        """Three forms of what it is called: short, with keywords, and as a sentence with its classes."""
        new = [tag for tag in self.tags if tag not in self.name.lower().split() and tag[:1].isalnum()]
        return {
            "name": self.name,
            "keywords": ", ".join([self.name, *new[:_KEYWORDS]]),
            "caption": f"an emoji of {self.name}, one of {self.subgroup} in {self.group}",
        }


def fraction(text: str) -> float:
    """A number in [0, 1) that is even over texts and the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def load(path: Path, locales: Sequence[str]) -> list[Emoji]:
    """All emoji but skin tones, in Unicode's order, with names in further languages."""
    wanted = lambda name: name == "meta/groups.json" or name.endswith("/data.json")  # noqa: E731
    files = dict(members(path, wanted))
    known = sorted(name.partition("/")[0] for name in files if name.endswith("/data.json"))
    for locale in locales:
        if locale not in known:
            raise ConfigError(f"--locales={locale}: {nearest(locale, known)}")
    content = {locale: json.loads(files[f"{locale}/data.json"]) for locale in ("en", *locales)}
    groups = json.loads(files["meta/groups.json"])
    names = {
        locale: {code(entry["hexcode"]): _one_line(entry["label"]) for entry in content[locale]} for locale in locales
    }
    return [
        Emoji(
            hexcode=code(entry["hexcode"]),
            emoji=entry["emoji"],
            name=_one_line(entry["label"]),
            tags=entry.get("tags", ()),
            group=_class(groups["groups"], entry["group"]).replace("-", " and ", 1),
            subgroup=_class(groups["subgroups"], entry["subgroup"]).replace("-", " "),
            translations={locale: names[locale].get(code(entry["hexcode"]), "") for locale in locales},
        )
        for entry in sorted(content["en"], key=lambda entry: entry.get("order", 0))
        if "group" in entry and _class(groups["groups"], entry["group"]) != _NO_NAMES
    ]


def _class(names: Mapping[str, Any], number: int) -> str:
    return names[str(number)]


def _one_line(text: str) -> str:
    return " ".join(text.split())
