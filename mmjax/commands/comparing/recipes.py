"""Recipes: named overrides of one configuration, from plug-ins, from a file, or from the command line."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.config_file import load_config
from mmjax.core import plugins
from mmjax.core.config import ConfigError, nearest
from mmjax.data.token_format import TokenFormat
from mmjax.data.transform_chain import TransformChain
from mmjax.data.transforms.common.base import STAGES
from mmjax.experiment import Experiment
from mmjax.train.augmentation import bind_options

NONE = "none"
"""The recipe that adds nothing to the configuration."""

ADD = "add"
"""The key of an own recipe that names built-in ones, whose overrides come first."""

KINDS = {
    "augment": "mmjax.augment",
    "data.transforms": "mmjax.data.transforms",
    "objective": "mmjax.objectives",
}
"""Keys of a configuration whose plug-ins are recipes by their own names, with the folders of these."""

Overrides = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A name and what it changes; ``common`` holds for all recipes of a comparison and comes first."""

    name: str
    spec: str
    common: Overrides = ()
    own: Overrides = ()

    def experiment(self, *further: tuple[str, str]) -> Experiment:
        """The checked experiment, with further overrides."""
        return Experiment.from_dict(load_config(self.spec, (*self.common, *self.own, *further)))


def make_recipes(
    spec: str,
    overrides: Sequence[tuple[str, str]],
    *,
    names: Sequence[str] = (),
    file: str | None = None,
    variants: Sequence[str] = (),
) -> list[Recipe]:
    """The recipes of a comparison; the first is the baseline.

    Args:
        spec: A config file with its arguments.
        overrides: Pairs of key and value that hold for all recipes.
        names: Recipes by name: ``none``, those of ``file`` and ``variants``, a plug-in of ``KINDS``, or several joined
            by ``+``. If empty: ``none``, and all of ``file``.
        file: A TOML or JSON file: a table of overrides for each name.
        variants: ``NAME:KEY=VALUE;…``: further recipes. Those that are not among ``names`` come last.
    """
    common = tuple(overrides)
    sections = load_config(spec, common)
    own_recipes = read_recipes(file) if file else {}
    of_flags = [_parse_variant(text) for text in variants]
    names = list(names) or [NONE, *own_recipes]
    names += [name for name, _ in of_flags if name not in names]
    defined = [NONE, *own_recipes, *(name for name, _ in of_flags)]
    if twice := [name for number, name in enumerate(defined) if name in defined[:number]]:
        raise ConfigError(f"--variant={twice[0]}:…: is the name of another recipe, too; call it something else")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ConfigError(f"--recipes: names {twice[0]} twice; name it once")
    own_recipes |= dict(of_flags)
    result = [
        Recipe(name=name, spec=spec, common=common, own=tuple(_overrides_of(name, own_recipes, sections)))
        for name in names
    ]
    for recipe in result:
        if not recipe.name or "/" in recipe.name or recipe.name.startswith("."):
            raise ConfigError(
                f"--recipes, --variant: {recipe.name!r} is no name of a folder; use another one for that recipe"
            )
    return result


def read_recipes(file: str) -> dict[str, dict[str, Any]]:
    """The recipes of a TOML or JSON file, as values by dotted key."""
    try:
        content = Path(file).read_text(encoding="utf-8")
        recipes = tomllib.loads(content) if Path(file).suffix == ".toml" else json.loads(content)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--recipes-file={file}: cannot be read as TOML or JSON ({error})") from None
    if not isinstance(recipes, dict):
        raise ConfigError(f"--recipes-file={file}: expected a table of recipes, each with its overrides")
    for name, values in recipes.items():
        if not isinstance(values, dict) or not values:
            raise ConfigError(
                f"--recipes-file={file}: {name!r} must be a table of KEY = VALUE, as of --config.KEY=VALUE"
            )
        if "+" in name or "," in name:
            raise ConfigError(f"--recipes-file={file}: {name!r} has a '+' or ',' in its name; use another one")
    return {name: dict(_flatten(values)) for name, values in recipes.items()}


def _parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    name, colon, assignments = text.partition(":")
    pairs = [assignment.partition("=") for assignment in assignments.split(";") if assignment]
    if not colon or not pairs or any(not equals for _, equals, _ in pairs):
        raise ConfigError(f"--variant={text!r}: expected NAME:KEY=VALUE[;KEY=VALUE]")
    return name.strip(), {key.strip(): value.strip() for key, _, value in pairs}


def known_recipes() -> dict[str, list[str]]:
    """The built-in recipes: for each plug-in's name the keys of ``KINDS`` that it is a value of."""
    keys_of: dict[str, list[str]] = {}
    for key, folder in KINDS.items():
        for name in plugins.names(folder):
            keys_of.setdefault(name, []).append(key)
    return keys_of


def check_plugins(experiment: Experiment) -> None:
    """Raises ConfigError if a plug-in of the experiment cannot be made, such as a transform that needs tables."""
    data = experiment.data
    TransformChain(
        data.transforms,
        image_size=experiment.model.vision_cfg.image_size,
        modalities=data.modalities,
        token_format=TokenFormat(bos_id=1, eos_id=2, pad_id=0, vocab_size=1000, context_length=64),  # of any tokenizer
        background=data.background,
    )
    for name, options in experiment.augment:
        bind_options(name, options, towers=None)
    plugins.make(KINDS["objective"], "Objective", experiment.objective, path="objective")


def _overrides_of(
    text: str, own_recipes: Mapping[str, Mapping[str, Any]], sections: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """The overrides of recipes joined by ``+``; ``sections`` is the configuration that they are added to."""
    added: dict[str, list[Any]] = {key: list(_get(sections, key) or ()) for key in ("augment", "data.transforms")}
    # A name of --variant may hold a "+".
    for name in [text] if text in own_recipes else text.split("+"):
        if name in own_recipes:
            values = dict(own_recipes[name])
            if further := values.pop(ADD, None):
                if not isinstance(further, str) or any(word in own_recipes for word in further.split("+")):
                    raise ConfigError(f"the recipe {name!r}: {ADD}={further!r}: expected built-in recipes, as 'a+b'")
                yield from _add_all(further.split("+"), added, sections)
            yield from ((key, value if isinstance(value, str) else repr(value)) for key, value in values.items())
        elif name != NONE:
            yield from _add_all([name], added, sections, known=own_recipes)


def _add_all(
    names: Sequence[str], added: dict[str, list[Any]], sections: dict[str, Any], *, known: Mapping[str, Any] = {}
) -> Iterator[tuple[str, str]]:
    builtin = known_recipes()
    for name in names:
        keys = builtin.get(name, [])
        if len(keys) != 1:
            if keys:
                raise ConfigError(f"--recipes={name}: is a plug-in of {' and '.join(keys)}; write --variant=NAME:KEY=…")
            raise ConfigError(f"--recipes={name}: {nearest(name, [NONE, *known, *builtin])}")
        [key] = keys
        if key == "objective":
            target = plugins.load_class(KINDS[key], "Objective", name, path="--recipes")
            bare = Experiment.from_dict(sections).model.init_logit_bias is None
            yield key, repr({"name": name})
            yield from ((f"model.{k}", repr(v)) for k, v in target.model_options.items() if bare)
            continue
        entries = added[key]
        if any(entry == name for entry, _ in entries):
            raise ConfigError(
                f"--recipes={name}: the configuration has it already in {key}; leave it out there (--config.{key}=())"
            )
        place = len(entries)
        if key == "data.transforms":
            stage = STAGES.index(TransformChain.stage_of(name))
            place = sum(STAGES.index(TransformChain.stage_of(entry)) <= stage for entry, _ in entries)
        entries.insert(place, (name, {}))
        yield key, repr(tuple(entries))


def _get(sections: Any, key: str) -> Any:
    for part in key.split("."):
        sections = sections.get(part) if isinstance(sections, Mapping) else None
    return sections


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
