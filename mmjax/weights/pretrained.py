"""A model that somebody trained: its configuration, and its parameters by our paths, not yet read."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.core.config import ConfigError
from mmjax.models.config import ClipConfig
from mmjax.weights.place import read_params
from mmjax.weights.positions import resize_positions
from mmjax.weights.rules import Rule
from mmjax.weights.tensors import TensorFile, TensorInfo, WeightsError

logger = logging.getLogger(__name__)

NAMES_SHOWN = 6

_NOT_PARAMETERS = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|attn_mask|num_batches_tracked|input_resolution|context_length|vocab_size)"
)
"""Tensors of others that hold no parameter."""

_FREE = {
    "vision_cfg": {
        "image_size", "image_mean", "image_std", "image_resize", "modalities", "modality_channels", "modality_embed",
        "fusion",
    },
    "text_cfg": {
        "pad_id", "eos_id", "vocab_size", "token_init_sd", "position_init_sd", "hf_tokenizer_name", "tokenizer_clean",
        "tokenizer_strip_sep",
    },
}  # fmt: skip
"""Keys in which a model may differ from the one whose weights it takes."""

_FREE_OF_BERT = {"context_length", "pool_type", "pool_tanh", "proj_type", "proj_bias"}
"""Keys that are free too where the weights are of BERT or a relative, which was trained to embed no texts."""

_FREE_OF_MODULES = {"fusion": ("word_head", "answers", "images"), "recognizer": ("max_labels",)}
"""Keys of modules that say which heads they have, or change no parameter."""

_ROWS_OF_MODALITIES = {"visual/modality_embed", "visual/gates/modality_bias"}
"""Parameters with a row for each modality, in the order of the configuration."""

TOWERS = {"visual": "vision_cfg", "text": "text_cfg"}
MODULES = ("decoder", "fusion", "recognizer")
SECTIONS = TOWERS | {name: name for name in MODULES}


class Loaded(NamedTuple):
    """Parameters by path, and what was left."""

    params: dict[str, jax.Array]
    missing: list[str]  # paths of the model that keep their initial values
    unused: list[str]  # tensors of the file that no parameter takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights and the model that they belong to.

    Attributes:
        spec: What the user called it.
        config: The model.
        file: Its tensors.
        rules: Which of them hold which parameters.
        tokenizer: A folder or hub name for ``data.tokenizer``, if one belongs to it.
    """

    spec: str
    config: ClipConfig
    file: TensorFile
    rules: Sequence[Rule]
    tokenizer: str | None = None

    @property
    def towers(self) -> list[str]:
        """Those that the file has: ``visual``, ``text`` or both."""
        return [
            tower
            for tower in TOWERS
            if any(
                rule.ours[0].startswith((f"{tower}/blocks/", f"{tower}/patch_embed/")) and self._holds(rule)
                for rule in self.rules
            )
        ]

    @property
    def modules(self) -> list[str]:
        """Sections of the model beside the towers that the file has: ``decoder``, ``fusion``, ``recognizer``."""
        roots = dict.fromkeys(rule.ours[0].split("/")[0] for rule in self.rules if self._holds(rule))
        return [root for root in roots if root in MODULES]

    def _holds(self, rule: Rule) -> bool:
        return rule.names(1)[0] in self.file.tensors

    def check(self, model: ClipConfig, towers: Sequence[str]) -> list[str]:
        """Those of ``towers`` that the file has; raises ConfigError if there is none, or one is not ``model``'s."""
        present = [tower for tower in self.towers if tower in towers]
        if not present:
            raise ConfigError(
                f"{self.spec!r}: holds no {' and no '.join(towers)} tower; it has {' and '.join(self.towers) or 'none'}"
            )
        self._check_same(model, present)
        return present

    def read(
        self,
        model: ClipConfig,
        target: Mapping[str, jax.ShapeDtypeStruct],
        *,
        drop: Iterable[str] = (),
    ) -> Loaded:
        """The parameters of ``target`` as they are in the file.

        Args:
            model: What they are for. It may differ in its image size; position embeddings are resized then.
            target: Shapes with shardings by path, such as ``visual/proj/kernel``; those of one tower alone, if only
                that is wanted.
            drop: Regular expressions of paths to leave out, which keep their initial values.

        Raises:
            ConfigError: if the models differ, or a tower that is wanted and there has gaps.
        """
        dropped = [re.compile(pattern) for pattern in drop]
        wanted = {path: leaf for path, leaf in target.items() if not any(pattern.match(path) for pattern in dropped)}
        towers = self.check(model, [t for t in TOWERS if any(path.startswith(f"{t}/") for path in target)])
        self._check_sizes(model, wanted)
        self._check_modules(model, wanted)
        self._check_modalities(model, wanted)
        rules = [*self.rules, *self._rules_of_second_images(model)]
        params = read_params(self.file, rules, wanted, adapted=self._adapted(model, wanted))
        known = {path: rule.theirs for rule in self.rules for path in rule.ours}
        gaps = [path for path in wanted if path in known and path not in params and path.split("/")[0] in towers]
        if gaps:
            names = list(dict.fromkeys(known[path] for path in gaps))
            raise WeightsError(
                f"{self.spec!r}: {self.file.path} has no {shorten(names)}; to start these parameters at "
                f"random, set init.drop, e.g. init.drop=('{gaps[0]}',)"
            )
        missing = [path for path in target if path not in params]
        return Loaded(params, missing, self._unused(model, params))

    def _check_same(self, model: ClipConfig, towers: Sequence[str]) -> None:
        for tower in towers:
            section = TOWERS[tower]
            ours, theirs = getattr(model, section), getattr(self.config, section)
            free = _FREE[section] | (_FREE_OF_BERT if getattr(theirs, "block_norm", "") == "post" else set())
            for field in dataclasses.fields(ours):
                mine, other = getattr(ours, field.name), getattr(theirs, field.name)
                if field.name == "mlp_ratio":  # of which only the width counts that it comes to
                    same = int(theirs.width * mine) == int(theirs.width * other)
                else:
                    same = mine == other
                if field.name not in free and not same:
                    raise ConfigError(
                        f"model.{section}.{field.name}={mine!r}: the weights of {self.spec!r} are of a model "
                        f"with {other!r}; set model='init' to take theirs"
                    )

    def _check_modules(self, model: ClipConfig, wanted: Iterable[str]) -> None:
        """Raises if a module beside the towers is wanted and there, but is another's."""
        for name in self.modules:
            ours, theirs = getattr(model, name), getattr(self.config, name)
            if ours is not None:
                free = {key: getattr(ours, key) for key in _FREE_OF_MODULES.get(name, ())}
                theirs = dataclasses.replace(theirs, **free)
            if ours != theirs and any(path.startswith(f"{name}/") for path in wanted):
                raise ConfigError(
                    f"model.{name}: the weights of {self.spec!r} have another, {theirs}; set model='init' to take it, "
                    f"or init.drop=('{name}/.*',) to start at random"
                )

    def _check_modalities(self, model: ClipConfig, wanted: Iterable[str]) -> None:
        """Raises if rows of other modalities would be taken for the model's."""
        ours, theirs = model.vision_cfg.modalities, self.config.vision_cfg.modalities
        there = {path for rule in self.rules if self._holds(rule) for path in rule.ours}
        if ours != theirs and (tables := sorted(_ROWS_OF_MODALITIES & there & set(wanted))):
            raise ConfigError(
                f"model.vision_cfg.modalities={ours}: the weights of {self.spec!r} have rows for {theirs} in "
                f"{' and '.join(tables)}; name the same in their order, or set init.drop={tuple(tables)}"
            )

    def _check_sizes(self, model: ClipConfig, wanted: Mapping[str, Any]) -> None:
        text, other = model.text_cfg.vocab_size, self.config.text_cfg.vocab_size
        if "text" in self.towers and "text/token_embed/embedding" in wanted and text != other:
            raise ConfigError(
                f"model.text_cfg.vocab_size={text}: the weights of {self.spec!r} have {other} tokens; use their "
                "tokenizer, e.g. data.tokenizer.name='init'"
            )
        has_projection = any("/proj/" in path for rule in self.rules for path in rule.ours if path in wanted)
        if model.embed_dim != self.config.embed_dim and has_projection:
            raise ConfigError(
                f"model.embed_dim={model.embed_dim}: the weights of {self.spec!r} have {self.config.embed_dim}; make "
                "them equal, or leave the projections out with init.drop=('.*/proj/.*',)"
            )

    def _adapted(
        self, model: ClipConfig, wanted: Mapping[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]]:
        path, ours, theirs = "visual/pos_embed", model.vision_cfg, self.config.vision_cfg
        adapted: dict[str, tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = {}
        if self._reads_second_image(model):  # with the vector of the first one's kind, as in ViLT
            shape = (2, model.text_cfg.width)
            adapted["fusion/type_embed"] = shape, lambda table: np.concatenate([table, table[-1:]])
        if path not in wanted or ours.grid == theirs.grid:
            return adapted
        sides = f"{theirs.grid}x{theirs.grid} to {ours.grid}x{ours.grid}"
        logger.info(f"position embeddings go from {sides} patches (bicubic, as in open_clip)")
        token = ours.class_token and ours.class_position

        def resize(table: np.ndarray) -> np.ndarray:
            return resize_positions(table, ours.grid, class_token=token)

        return adapted | {path: ((theirs.grid**2 + token, theirs.width), resize)}

    def _reads_second_image(self, model: ClipConfig) -> bool:
        """Whether the fusion encoder is for two images, and that of the file for one."""
        ours, theirs = model.fusion, self.config.fusion
        return ours is not None and theirs is not None and ours.images > theirs.images

    def _rules_of_second_images(self, model: ClipConfig) -> list[Rule]:
        """The blocks for a second image start as those for the first, as in ALBEF."""
        first, second = "fusion/blocks/", "fusion/blocks_2/"
        rules = self.rules if self._reads_second_image(model) else ()
        return [
            rule._replace(ours=tuple(path.replace(first, second) for path in rule.ours))
            for rule in rules
            if rule.ours[0].startswith(first)
        ]

    def _unused(self, model: ClipConfig, params: Mapping[str, Any]) -> list[str]:
        taken: set[str] = set()
        for rule in self.rules:
            if any(path in params for path in rule.ours):
                tower = rule.ours[0].split("/")[0]
                taken.update(rule.names(getattr(model, SECTIONS[tower]).layers if rule.stacked else 1))
        return [name for name in self.file.tensors if name not in taken and not _NOT_PARAMETERS.fullmatch(name)]


class RenamedFile(TensorFile):
    """Another file's tensors under other names, each whole or one layer of it."""

    def __init__(self, file: TensorFile, names: Mapping[str, tuple[str, int | None]]):
        self.path, self._file, self._names = file.path, file, dict(names)
        self.tensors = {
            name: file.tensors[original]
            if layer is None
            else TensorInfo(file.tensors[original].shape[1:], file.tensors[original].dtype)
            for name, (original, layer) in names.items()
        }

    def _read(self, name: str) -> np.ndarray:
        original, layer = self._names[name]
        tensor = self._file.read(original)
        return tensor if layer is None else tensor[layer]


def strip_prefixes(file: TensorFile, prefixes: Sequence[str]) -> TensorFile:
    """The file without the prefixes that wrappers put before all names, such as ``module.``."""
    names = list(file.tensors)
    lengths = 0
    changed = True
    while changed:
        changed = False
        for prefix in prefixes:
            if names and all(name[lengths:].startswith(prefix) for name in names):
                lengths += len(prefix)
                changed = True
    return RenamedFile(file, {name[lengths:]: (name, None) for name in names}) if lengths else file


def shorten(names: Sequence[str]) -> str:
    """The first of very many names."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
