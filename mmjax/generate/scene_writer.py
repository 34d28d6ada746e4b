"""What the oracle writer of the backend ``scenes`` replies to each prompt, from the values of its blanks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.data.scenes import language
from mmjax.data.scenes.world import COLORS, SHAPES, SIZES, TEXTURES
from mmjax.generate.scene_graph import claims

Reply = Callable[[Mapping[str, Any], np.random.Generator, bool], str]
"""From a prompt's values, random draws, and whether the content shall be wrong."""

PARAPHRASES = (
    "here we see {}", "in this picture there is {}", "{} is shown here", "a picture with {}", "the scene has {}",
    "{}, drawn on a canvas", "look, {}", "one can see {}",
)  # fmt: skip
_OTHERS = {"color": COLORS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}
_KINDS = {"color": "color", "shape": "shape", "texture": "material", "size": "other"}


def _rewrite(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    text = str(values["caption"]).removeprefix("there is ").removeprefix("only ")
    if wrong:
        text = _exchange(text, "color", random) or text
    return PARAPHRASES[int(random.integers(len(PARAPHRASES)))].format(text)


def _domains(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    begin = values["prefix"]
    places = ["on a light background", "on a dark background", "in another light", "in dim light", "in the evening"]
    lines = [f"{number}. {begin} {place}" for number, place in enumerate(places, 1)]
    return "\n".join([*lines[: int(values["count"])], "I hope that this helps."])


def _objects(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    names = [phrase for thing in claims(values["caption"]).things if (phrase := _phrase(thing))]
    for _ in range(int(values["count"])):
        names.append(f"a {COLORS[int(random.integers(4))]} {SHAPES[int(random.integers(4))]}")
    return json.dumps({"objects": names})


def _attributes(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    (thing, *_) = claims(values["object"]).things or ({},)
    rows = []
    for name in ("color", "shape", "texture", "size"):
        if name not in thing:
            continue
        value, caption = _OTHERS[name][thing[name]], _phrase(thing)
        limit = 2 if name == "size" else 3 if name == "texture" else 4
        other = _OTHERS[name][(thing[name] + 1 + int(random.integers(limit - 1))) % limit]
        edited = caption.replace(value, other)
        row = {"kind": _KINDS[name], "value": value, "other": other, "caption": caption, "wrong": edited}
        if wrong:
            row = {**row, "value": other, "other": value, "caption": edited, "wrong": caption}
        rows.append(row)
    return "Here it is:\n```json\n" + json.dumps({"attributes": rows}) + "\n```"


def _phrase(thing: Mapping[str, Any]) -> str:
    terms = [_OTHERS[name][thing[name]] for name in ("size", "texture", "color", "shape") if name in thing]
    return f"a {' '.join(terms)}" if terms else ""


def _exchange(text: str, name: str, random: np.random.Generator) -> str | None:
    """The text with one value of that attribute exchanged."""
    terms = text.split()
    places = [place for place, word in enumerate(terms) if word in _OTHERS[name]]
    if not places:
        return None
    place = places[int(random.integers(len(places)))]
    others = [value for value in _OTHERS[name][:4] if value != terms[place]]
    terms[place] = others[int(random.integers(len(others)))]
    return " ".join(terms)


REPLIES: dict[str, Reply] = {
    "laclip_rewrite": _rewrite,
    "alia_domains": _domains,
    "biaug_objects": _objects,
    "biaug_attributes": _attributes,
}
"""By the names of prompts."""

assert language.SYNONYMS
