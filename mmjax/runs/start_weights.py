"""Weights to start from or to use: those of a run of ours, or of anybody else."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from mmjax.checkpoints.manager import Checkpoints, StepSelector
from mmjax.core.config import ConfigError
from mmjax.experiment import Experiment
from mmjax.models.config import ClipConfig
from mmjax.models.lora import merge_adapters
from mmjax.runs import folder as run_folder
from mmjax.weights.config import InitConfig
from mmjax.weights.open_pretrained import find, open_pretrained
from mmjax.weights.pretrained import TOWERS, Pretrained, shorten
from mmjax.weights.rules import SAME, Rule
from mmjax.weights.tensors import TensorFile, TensorInfo

logger = logging.getLogger(__name__)

Default = TypeVar("Default", None, StepSelector)


class ArrayFile(TensorFile):
    """Arrays in memory as a file."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        self.path, self._arrays = path, dict(arrays)
        self.tensors = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}

    def _read(self, name: str) -> np.ndarray:
        return self._arrays[name]


def open_weights(spec: str, *, model: ClipConfig | None = None) -> Pretrained:
    """Opens what ``spec`` names.

    Args:
        spec: A run folder, with ``@STEP``, ``@last`` or ``@best`` after it or not; or what ``open_pretrained`` takes.
        model: What a file belongs to that has no configuration beside its weights.
    """
    workdir = find_run(spec)
    if workdir is None:
        return open_pretrained(spec, model=model)
    experiment = Experiment.from_dict(run_folder.read_config(workdir))
    step = checkpoint_of(spec, default=experiment.eval.weights)
    saving = experiment.checkpoint
    checkpoints = Checkpoints(workdir, directory=saving.directory, best=saving.best, read_only=True)
    try:
        arrays = checkpoints.read_params(step=step, ema=experiment.optimizer.ema_decay > 0)
    finally:
        checkpoints.close()
    if experiment.lora.rank:
        arrays = merge_adapters(arrays, scale=experiment.lora.scale)
    return Pretrained(
        spec=spec,
        config=experiment.model,
        file=ArrayFile(workdir, arrays),
        rules=tuple(Rule((path,), path, SAME) for path in arrays),
        tokenizer=str(workdir / run_folder.TOKENIZER_FOLDER),
    )


def checkpoint_of(spec: str, *, default: Default) -> StepSelector | Default:
    """The checkpoint that stands after the ``@`` of a run folder, or ``default``."""
    selector = spec.partition("@")[2]
    if not selector:
        return default
    if not selector.isdecimal() and selector not in ("last", "best"):
        raise ConfigError(f"{spec!r}: {selector!r} is no checkpoint; use a step, 'last' or 'best'")
    return int(selector) if selector.isdecimal() else "best" if selector == "best" else "last"


def find_run(spec: str) -> Path | None:
    """The run folder that ``spec`` names; None if it names weights of another kind."""
    workdir = find(spec.partition("@")[0])
    return workdir if workdir is not None and (workdir / run_folder.STARTS).exists() else None


def load_init(init: InitConfig, model: ClipConfig, target: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The parameters of ``target`` that ``init`` names weights for, each in its place on the devices."""
    loaded: dict[str, jax.Array] = {}
    for key, spec, roots in init.specs():
        wanted = {path: leaf for path, leaf in target.items() if path.split("/")[0] in roots and path not in loaded}
        with _named(key, spec):
            result = open_weights(spec, model=model).read(model, wanted, drop=init.drop)
        logger.info(f"{len(result.params)} of {len(target)} parameters are those of {spec}")
        if result.unused:
            logger.info(f"not used of {spec}: {shorten(result.unused)}")
        loaded |= result.params
    if loaded and (left := [path for path in target if path not in loaded]):
        logger.info(f"{len(left)} parameters start at random: {shorten(left)}")
    return loaded


def read_arrays(spec: str, model: ClipConfig, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of the same model as ``params``, in the host's memory; all of them must be there."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {path: jax.ShapeDtypeStruct(array.shape, np.float32, sharding=sharding) for path, array in params.items()}
    result = open_weights(spec, model=model).read(model, target)
    if result.missing:
        raise ConfigError(f"{spec!r}: has no {shorten(result.missing)}")
    return {path: np.asarray(array) for path, array in result.params.items()}


def check_init(init: InitConfig, model: ClipConfig, paths: Iterable[str]) -> None:
    """Raises before a folder is made what ``load_init`` would raise: weights that are missing or do not fit."""
    paths = list(paths)
    for pattern in init.drop:
        if not any(re.match(pattern, path) for path in paths):
            raise ConfigError(f"init.drop={pattern!r}: matches no parameter; paths are like {paths[-1]!r}")
    for key, spec, roots in init.specs():
        with _named(key, spec):
            open_weights(spec, model=model).check(model, [root for root in roots if root in TOWERS])


@contextlib.contextmanager
def _named(key: str, spec: str) -> Iterator[None]:
    """Puts the key before messages about a SPEC, which start with it."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(repr(spec)):
            raise ConfigError(f"{key}={error}") from error
        raise
