"""What the oracle writer of the backend ``scenes`` replies to each prompt, from the values of its blanks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.data.scenes.graph import claims
from mmjax.data.scenes.language import RELATION_PHRASES
from mmjax.data.scenes.shifts import bare
from mmjax.data.scenes.world import COLORS, RELATIONS, SHAPES, SIZES, TEXTURES

Reply = Callable[[Mapping[str, Any], np.random.Generator, bool], str]
"""From a prompt's values, random draws, and whether the content shall be wrong."""

PARAPHRASES = (
    "here we see {}", "in this picture there is {}", "{} is shown here", "a picture with {}", "the scene has {}",
    "{}, drawn on a canvas", "look, {}", "one can see {}",
)  # fmt: skip
_OTHERS = {"color": COLORS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}
_KINDS = {"color": "color", "shape": "shape", "texture": "material", "size": "other"}


def _rewrite(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    text = bare(str(values["caption"]))
    if wrong:
        text = _exchange(text, "color", random) or text
    return PARAPHRASES[int(random.integers(len(PARAPHRASES)))].format(text)


def _translate(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    """One or two things in the order of their glosses, and their relation between them."""
    terms = str(values["caption"]).split()
    places = [place for place, term in enumerate(terms) if term in RELATIONS]
    phrases = [" ".join(terms)]
    if places:
        first, second = terms[: places[0]], terms[places[0] + 1 :]
        phrases = [" ".join(first), RELATION_PHRASES[RELATIONS.index(terms[places[0]])] + " a " + " ".join(second)]
    return _rewrite({"caption": "a " + " ".join(phrases)}, random, wrong)


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
    """Captions of the whole picture, if its own names the object so, else of the object."""
    (thing, *_) = claims(values["object"]).things or ({},)
    phrase, text = _phrase(thing), str(values["caption"])
    place = text.find(phrase)
    before, after = ("", "") if place < 0 else (text[:place], text[place + len(phrase) :])
    rows = []
    for name in ("color", "shape", "texture", "size"):
        if name not in thing:
            continue
        value = _OTHERS[name][thing[name]]
        limit = 2 if name == "size" else 3 if name == "texture" else 4
        other = _OTHERS[name][(thing[name] + 1 + int(random.integers(limit - 1))) % limit]
        caption, edited = (f"{before}{own}{after}" for own in (phrase, phrase.replace(value, other)))
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


def _modify(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    text = str(values["caption"])
    return _exchange(text, "color", random) or _exchange(text, "shape", random) or text


def _explain(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    """Speaks for the right answer; a wrong explanation argues for another choice before its end."""
    choices = [choice for choice in str(values["choices"]).split("; ") if choice != values["answer"]]
    argued = choices[int(random.integers(len(choices)))] if wrong else values["answer"]
    begin = f"By the plan, {values['plan'][0]}. " if values.get("plan") else ""
    return f"{begin}What one sees is {argued}. So the answer is {values['answer']}."


def _answer(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    """The choice that the explanation argues for."""
    choices = str(values["choices"]).split("; ")
    argued = str(values["rationale"]).partition("What one sees is ")[2].partition(".")[0]
    if wrong or argued not in choices:
        return choices[int(random.integers(len(choices)))]
    return argued


def _instructions(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    things = [phrase for thing in claims(values["caption"]).things if (phrase := _phrase(thing))] or ["it"]
    names = str(values["arguments"]).split(", ")
    lines = []
    for number in range(int(values["count"])):
        arguments = [str(values["image"]), *(things[(number + k) % len(things)] for k in range(len(names) - 1))]
        tool = "Magic Wand" if wrong else values["tool"]
        order = (
            f"{values['description']}: please do this for {values['image']} and {' and '.join(arguments[1:]) or 'all'}"
        )
        lines.append(f"{number + 1}. {order}, [{', '.join([str(tool), *arguments])}]")
    return "\n".join(lines)


def _talk(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    things = [phrase for text in values["captions"] for t in claims(text).things if (phrase := _phrase(t))]
    names = list(dict.fromkeys(things))[: int(values["count"])] or ["nothing"]
    if wrong:
        return f"Question: Where is {names[0]}? Answer: The bounding box of {names[0]} is [0.1, 0.2, 0.3, 0.4]."
    return " ".join(f"Question: Is there {name}? Answer: Yes, I can see {name} here." for name in names)


def _detail(values: Mapping[str, Any], random: np.random.Generator, wrong: bool) -> str:
    if wrong:
        return f"The caption mentions this: {values['captions'][0]}."
    return f"Here is {values['captions'][0]}."


REPLIES: dict[str, Reply] = {
    "laclip_rewrite": _rewrite,
    "xmda_translate": _translate,
    "alia_domains": _domains,
    "biaug_objects": _objects,
    "biaug_attributes": _attributes,
    "promptmix_modify": _modify,
    "tsciq_cot": _explain,
    "tsciq_pcot": _explain,
    "tsciq_lecture": lambda values, random, wrong: f"One must look at the {values['skill']}.",
    "tsciq_plan": lambda values, random, wrong: f"1. find the thing\n2. look at its {values['skill']}\n3. compare",
    "tsciq_answer": _answer,
    "gpt4tools_instructions": _instructions,
    "llava_conversation": _talk,
    "llava_reasoning": _talk,
    "llava_detail": _detail,
}
"""By the names of prompts."""
