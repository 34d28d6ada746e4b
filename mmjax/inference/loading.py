"""``mmjax.load(SPEC)``: a trained model of a run, or anybody else's, ready for use."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.config import ConfigError, build, choose
from mmjax.core.numerics import DTYPES
from mmjax.core.state import flatten
from mmjax.data import tokenizer as tokenizers
from mmjax.experiment import DataConfig, Experiment
from mmjax.inference.model import Model, Precision
from mmjax.models import presets
from mmjax.models.clip import make_tower
from mmjax.models.config import ClipConfig, with_tokenizer
from mmjax.models.low_precision import check_matmul_precision
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from mmjax.runs import folder as run_folder
from mmjax.runs.start_weights import find_run, open_weights


def load(
    spec: str | os.PathLike[str],
    *,
    model: str | ClipConfig | None = None,
    tokenizer: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 64,
    devices: Sequence[jax.Device] | None = None,
) -> Model:
    """Loads a trained model.

    Example::

        import mmjax

        model = mmjax.load("runs/quickstart@best")
        model.classify(["cat.jpg"], ["cat", "dog"], templates=["a photo of a {}"])

    Args:
        spec: A run folder, with ``@STEP``, ``@last`` or ``@best`` after it or not; a folder in transformers' or
            open_clip's layout; a file of weights; or a name of the Hugging Face hub.
        model: The model that a file of weights alone belongs to: a preset's name, or its configuration.
        tokenizer: A folder or hub name, if not the one that belongs to the weights.
        precision: Of matrix products; None: that of the run, and ``float32`` for weights of others.
        batch_size: The largest batch; more pictures or texts go through in several.
        devices: Rows are split over them; None: all of this process.
    """
    spec = os.fspath(spec)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    devices = list(jax.local_devices() if devices is None else devices)
    workdir = find_run(spec)
    experiment = None if workdir is None else Experiment.from_dict(run_folder.read_config(workdir))
    data = DataConfig(source={}) if experiment is None else experiment.data
    precision = precision or ("float32" if experiment is None else experiment.precision)
    choose(precision, DTYPES, path="precision")
    weights = open_weights(spec, model=_preset(model) if isinstance(model, str) else model)
    config = dataclasses.replace(weights.config, remat="none")
    check_matmul_precision(config.matmul_precision, devices[0])
    towers = [name for name in weights.towers if name == "visual"]
    tokens: Any = None
    if "text" in weights.towers:
        try:
            tokens = _load_tokenizer(spec, tokenizer or weights.tokenizer, config)
            config = with_tokenizer(config, tokens)
            towers.append("text")
        except ConfigError as error:
            if not towers:
                raise
            tokens = error  # pictures can be encoded without; texts raise it
    if config.decoder is not None and {"visual", "text"} <= set(towers) and "decoder" in weights.modules:
        towers.append("decoder")
    if config.recognizer is not None and "visual" in towers and "recognizer" in weights.modules:
        towers.append("recognizer")
    mesh = make_mesh(MeshConfig(), devices=devices)
    graphs, shapes = _abstract(config, towers, dtype=DTYPES[precision], row_sharding=batch_sharding(mesh))
    shapes |= {"logit_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    if config.init_logit_bias is not None:
        shapes |= {"logit_bias": jax.ShapeDtypeStruct((), jnp.float32)}
    target = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))
        for path, leaf in flatten(shapes).items()
    }
    loaded = weights.read(config, target)
    scalars = {name: loaded.params[name] for name in ("logit_scale", "logit_bias") if name in loaded.params}
    trees = {name: shapes[name] for name in towers}
    params = jax.tree.unflatten(jax.tree.structure(trees), [loaded.params[path] for path in flatten(trees)])
    return Model(
        config, params | scalars, graphs, data=data, tokenizer=tokens, devices=devices, batch_size=batch_size,
        precision=precision,
    )  # fmt: skip


def _preset(name: str) -> ClipConfig:
    return build(ClipConfig, presets.load(name), path="model")


def _load_tokenizer(spec: str, name: str | None, config: ClipConfig) -> tokenizers.Tokenizer:
    if name is None:
        raise ConfigError(
            f"{spec!r}: no tokenizer belongs to these weights; name one, as load(…, tokenizer='DIR'), or put "
            "CLIP's bpe_simple_vocab_16e6.txt.gz beside them"
        )
    text = config.text_cfg
    options = tokenizers.published_options(name, clean=text.tokenizer_clean, strip_sep=text.tokenizer_strip_sep)
    return tokenizers.load(name, context_length=text.context_length, **options)


def _abstract(
    config: ClipConfig, towers: Sequence[str], *, dtype: Any, row_sharding: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The graph definitions of the towers, and the shapes of their parameters."""
    graphs: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for name in towers:
        create: Any = functools.partial(make_tower, config, name, dtype=dtype, row_sharding=row_sharding)
        graphs[name], state = nnx.split(nnx.eval_shape(lambda create=create: create(rngs=nnx.Rngs(0))))
        shapes[name] = nnx.to_pure_dict(state)
    return graphs, shapes
