"""A recipe: its stages and models, from the sections of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from mmjax.core import plugins
from mmjax.core.config import Between, ConfigError, Ge, bind, call, choose
from mmjax.data.preparing.reencoding import Format
from mmjax.generate.block import FOLDER, GlobalBlock, RecordBlock

BACKENDS = "mmjax.generate.backends"
_OF_THE_MACHINE = {"device", "concurrency", "cache", "timeout", "retries", "batch_size", "url", "key_env"}
"""Options of models that do not change their results; another value continues the same output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The keys of a recipe's file.

    Attributes:
      stages: pairs of a block's name and its options, in order.
      models: for each name that the stages use, a section: the backend's ``name`` and options.
      seed: of all draws.
      batch_size: records that a stage gets at once, and at least twice the ``concurrency`` of a model.
      shard: examples of the input in a shard of the output, what a kill can cost.
      format: of stored pictures: jpeg, png, webp; ``keep`` keeps those of the source, and makes png of others.
      quality: of jpeg and webp.
      image_size: shrinks stored pictures until their shorter side has that many pixels; 0 does not.
      captions: also writes ``captions-SPLIT.jsonl``, the made captions that have a weight, for ``data.positives``.
      conversations: also writes ``conversations.jsonl``, the kept records' turns, for tuning language models.
    """

    stages: tuple[Any, ...]
    models: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: Annotated[int, Between(0, (1 << 32) - 1)] = 0
    batch_size: Annotated[int, Ge(1)] = 16
    shard: Annotated[int, Ge(1)] = 256
    format: Format = "keep"
    quality: Annotated[int, Between(1, 100)] = 90
    image_size: Annotated[int, Ge(0)] = 0
    conversations: bool = False
    captions: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe: the stages by name, and of each model that they use the role and the section."""

    config: RecipeConfig
    blocks: tuple[tuple[str, RecordBlock | GlobalBlock], ...]
    models: Mapping[str, tuple[type, Mapping[str, Any]]]

    def identity(self) -> dict[str, Any]:
        """What decides the output, as plain values; keys name what a difference is about."""
        identity: dict[str, Any] = {}
        for number, (name, options) in enumerate(self.config.stages):
            identity[f"stages.{number}.{name}"] = dict(options)
        for name, (_, section) in self.models.items():
            identity[f"models.{name}"] = results_of(section)
        for _, block in self.blocks:
            identity |= {f"prompt {prompt.name}": prompt.sha for prompt in getattr(block, "prompts", ())}
        fixed = ("seed", "shard", "format", "quality", "image_size", "conversations", "captions")
        return identity | {name: getattr(self.config, name) for name in fixed}


def results_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model that decide its results."""
    return {key: value for key, value in section.items() if key not in _OF_THE_MACHINE}


def make_recipe(sections: Mapping[str, Any]) -> Recipe:
    """Checks the sections of a recipe's file; constructs its blocks, but loads no model."""
    config = call(RecipeConfig, bind(RecipeConfig, sections, path=""), path="")
    blocks = []
    for number, stage in enumerate(config.stages):
        if not isinstance(stage, (list, tuple)) or len(stage) != 2 or not hasattr(stage[1], "items"):
            raise ConfigError(f"stages[{number}]={stage!r}: expected a block's name and its options, ('caption', {{}})")
        name, options = stage
        section = {"name": name, **dict(options.items())}
        blocks.append((name, plugins.make(FOLDER, "Block", section, path=f"stages.{name}")))
    if not blocks:
        raise ConfigError("stages=(): the recipe has none; name blocks")
    models: dict[str, tuple[type, Mapping[str, Any]]] = {}
    for name, block in blocks:
        for model, role in block.uses.items():
            if model not in config.models:
                raise ConfigError(f"models.{model} is missing: {name!r} asks a {role.__name__}; name a backend")
            section = dict(config.models[model].items())
            if models.setdefault(model, (role, section))[0] is not role:
                raise ConfigError(f"models.{model}: {name!r} asks a {role.__name__} of that name; use two names")
            # Imports the backend's module and binds its options; a missing library is found at the first call.
            target = plugins.load_class(BACKENDS, role.__name__, section.get("name", ""), path=f"models.{model}.name")
            bind(target, {k: v for k, v in section.items() if k != "name"}, path=f"models.{model}")
    for name in config.models:
        choose(name, models, path="models")
    return Recipe(config, tuple(blocks), models)
