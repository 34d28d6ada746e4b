"""Both towers as programs for others: ONNX graphs, and StableHLO as ``jax.export`` writes it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.config import ConfigError
from mmjax.core.state import flatten
from mmjax.models.clip import make_tower
from mmjax.models.config import ClipConfig
from mmjax.weights.export.folders import Exported, write_json, write_rest
from mmjax.weights.export.tensors import save_safetensors

logger = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "tpu")
_BATCH = "batch"  # the name of the axis of any length
_TOLERANCE = 1e-4  # of embeddings in another runtime
_MAX_MIB = 1500  # of one ONNX file; protobuf ends at 2 GiB, so that larger weights go beside it


class Encoder(NamedTuple):
    """One tower as a function.

    Attributes:
        name: ``image`` or ``text``.
        input: The name of its input: ``pixels`` u8[batch, H, W, 3] or ``tokens`` i32[batch, L].
        shape: Of one row of it.
        dtype: Of it.
        params: Its parameters by path, NumPy arrays.
        apply: ``apply(params, rows)`` is f32[batch, E], a unit row for each.
    """

    name: str
    input: str
    shape: tuple[int, ...]
    dtype: Any
    params: dict[str, np.ndarray]
    apply: Callable[[dict[str, Any], jax.Array], jax.Array]

    def example(self, rows: int, *, vocab_size: int) -> np.ndarray:
        """Some input; the same at each call."""
        numbers = np.random.default_rng(0)
        high = 256 if self.name == "image" else vocab_size
        return numbers.integers(0, high, (rows, *self.shape)).astype(self.dtype)


def write_onnx(model: Exported, folder: Path) -> None:
    """``image.onnx`` and ``text.onnx``, each compared with ours in ONNX Runtime."""
    if importlib.util.find_spec("jax2onnx") is None:
        raise ConfigError("--format=onnx: needs jax2onnx; pip install 'mmjax[onnx]'")
    if model.dtype != "float32":
        raise ConfigError(f"--dtype={model.dtype}: ONNX graphs compute in float32; leave it out")
    for encoder in make_encoders(model, scan=False):
        _write_graph(encoder, folder / f"{encoder.name}.onnx", vocab_size=model.config.text_cfg.vocab_size or 1)
    _write_description(model, folder, files="image.onnx and text.onnx")
    write_rest(model, folder, library="onnx")


def write_stablehlo(model: Exported, folder: Path) -> None:
    """``image.stablehlo`` and ``text.stablehlo`` beside ``model.safetensors``, whose tensors they take."""
    if model.dtype != "float32":
        raise ConfigError(f"--dtype={model.dtype}: the programs take float32; leave it out")
    encoders = make_encoders(model, scan=True)
    for encoder in encoders:
        (batch,) = jax.export.symbolic_shape(_BATCH)
        rows = jax.ShapeDtypeStruct((batch, *encoder.shape), encoder.dtype)
        exported = jax.export.export(jax.jit(encoder.apply), platforms=PLATFORMS)(encoder.params, rows)
        (folder / f"{encoder.name}.stablehlo").write_bytes(exported.serialize())
    tensors = {path: array for encoder in encoders for path, array in encoder.params.items()}
    save_safetensors(tensors, folder / "model.safetensors", dtype=model.dtype)
    _write_description(model, folder, files="image.stablehlo and text.stablehlo")
    window = (
        f"\nThe programs were written by jax {jax.__version__}. Other versions of jax read them for about six months; "
        "model.safetensors stays readable.\n"
    )
    write_rest(dataclasses.replace(model, card=model.card + window), folder, library="jax")


def make_encoders(model: Exported, *, scan: bool) -> tuple[Encoder, Encoder]:
    """Both towers; ``scan`` makes a loop of their blocks."""
    config = dataclasses.replace(model.config, remat="none", scan=scan, matmul_precision="full")
    vision, text = config.vision_cfg, config.text_cfg
    if len(vision.modalities) > 1 and vision.fusion != "views":
        raise ConfigError(
            f"model.vision_cfg.fusion={vision.fusion!r}: the image tower takes {', '.join(vision.modalities)} "
            "together, and an exported one takes pictures alone"
        )
    if vision.stem == "frames":
        raise ConfigError(
            "model.vision_cfg.stem='frames': an exported image tower takes pictures; use mmjax.load for sequences"
        )
    channels = vision.modality_channels[0]
    shapes = {"visual": (vision.image_size, vision.image_size, channels), "text": (text.context_length,)}
    image, text_encoder = (
        Encoder(
            name=name,
            input=input,
            shape=shapes[tower],
            dtype=dtype,
            params={path: array for path, array in model.params.items() if path.startswith(f"{tower}/")},
            apply=functools.partial(_apply, config, tower),
        )
        for name, input, tower, dtype in (
            ("image", "pixels", "visual", np.uint8),
            ("text", "tokens", "text", np.int32),
        )
    )
    return image, text_encoder


def _apply(config: ClipConfig, tower: str, params: dict[str, Any], rows: jax.Array) -> jax.Array:
    graph, state = nnx.split(nnx.eval_shape(lambda: make_tower(config, tower, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    shapes = {tower: nnx.to_pure_dict(state)}
    # The leaves stay NumPy arrays where they are: jax2onnx takes the length of a slice of a traced one for the batch's.
    tree = jax.tree.unflatten(jax.tree.structure(shapes), [params[path] for path in flatten(shapes)])
    inputs = {config.vision_cfg.modalities[0]: rows} if tower == "visual" else rows
    embedded = nnx.merge(graph, nnx.State(tree[tower]))(inputs)
    return embedded / jnp.maximum(jnp.linalg.norm(embedded, axis=-1, keepdims=True), 1e-12)


def _write_graph(encoder: Encoder, path: Path, *, vocab_size: int) -> None:
    import jax2onnx
    import onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # says of each shape that it has no type
    rows = jax.ShapeDtypeStruct((_BATCH, *encoder.shape), encoder.dtype)
    try:
        # Its own versions of jnp's functions mix dtypes, and warn of it.
        with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            graph = jax2onnx.to_onnx(
                lambda rows: encoder.apply(encoder.params, rows),
                inputs=[rows],
                model_name=f"mmjax_{encoder.name}",
                input_names=[encoder.input],
                output_names=["embeddings"],
            )
    except Exception as error:  # it has no error of its own for what it cannot convert
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--format=onnx: jax2onnx cannot convert the {encoder.name} tower: {reason}") from error
    size = sum(array.nbytes for array in encoder.params.values()) / 2**20
    onnx.save_model(graph, path, save_as_external_data=size > _MAX_MIB, location=f"{path.name}.data")
    _check_graph(encoder, path, vocab_size=vocab_size)


def _check_graph(encoder: Encoder, path: Path, *, vocab_size: int) -> None:
    """Raises ConfigError unless ONNX Runtime computes the same, for two batch sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        rows = encoder.example(count, vocab_size=vocab_size)
        (theirs,) = session.run(None, {encoder.input: rows})
        ours = np.asarray(encoder.apply(encoder.params, jnp.asarray(rows)))
        difference = float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else np.inf
        if not difference <= _TOLERANCE:
            raise ConfigError(
                f"--format=onnx: ONNX Runtime computes other embeddings than ours ({encoder.name} tower, "
                f"{count} rows, difference {difference:.1e}); try another version of jax2onnx"
            )
        logger.info(f"{path.name}: {count} rows in ONNX Runtime differ by {difference:.1e} at most")


def _write_description(model: Exported, folder: Path, *, files: str) -> None:
    """What the programs do not say: how pictures are brought to their size, and what makes logits of cosines."""
    vision, text = model.config.vision_cfg, model.config.text_cfg
    scalars = {name: float(model.params[name]) for name in ("logit_scale", "logit_bias") if name in model.params}
    section = {
        "programs": files,
        "pixels": {"size": vision.image_size, "resize": vision.image_resize, "channels": "RGB",
                   "type": "uint8, 0 to 255", "normalized": "inside"},
        "tokens": {"length": text.context_length, "padding": text.pad_id, "type": "int32"},
        "embeddings": {"dimension": model.config.embed_dim, "length": 1},
        **scalars,
    }  # fmt: skip
    write_json(folder / "mmjax_model.json", section)
