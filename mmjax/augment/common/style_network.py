"""A trained network that draws pictures in random styles, for ``augment=style``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import ConfigError
from mmjax.core.numerics import DTYPES
from mmjax.models.style_transfer.layers import Params, from_torch
from mmjax.models.style_transfer.predictor import LEAST_SIDE, BatchNorm, predict_style
from mmjax.models.style_transfer.transformer import draw_in_style
from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.tensors import WeightsError

PATH = "augment.style.network"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleNetwork:
    """Where the network's weights are, and how it is used.

    Args:
        weights: a folder with the files of Jackson et al.'s repository: ``checkpoint_transformer``,
            ``checkpoint_embeddings`` and for ``base="predictor"`` ``checkpoint_stylepredictor``, as ``.pth``, or as
            ``.safetensors`` or ``.npz`` with the same names of tensors.
        base: P(c): the mean style of ImageNet's pictures, or what the predictor makes of each picture.
        batch_norm: of the predictor: the running statistics, or those of the batch, which the authors' code uses
            because it never leaves training mode.
        precision: of the convolutions.
    """

    weights: str
    base: Literal["mean", "predictor"] = "mean"
    batch_norm: BatchNorm = "running"
    precision: Literal["bfloat16", "float32"] = "bfloat16"


class LoadedStyleNetwork:
    """The network and the distribution of styles; its weights are constants of the program."""

    def __init__(self, config: StyleNetwork):
        self.config, self.dtype = config, DTYPES[config.precision]
        embeddings = read_tensors(config.weights, "embeddings")
        try:
            self.mean = embeddings["pbn_embedding_mean"].ravel().astype(np.float32)
            self.base_mean = embeddings["imagenet_embedding_mean"].ravel().astype(np.float32)
            values, vectors = np.linalg.eigh(embeddings["pbn_embedding_covariance"].astype(np.float64))
        except KeyError as error:
            raise WeightsError(f"{PATH}.weights={config.weights!r}: the embeddings have no tensor {error}") from None
        self.factor = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)  # A Aᵀ = Σ
        self.transformer = from_torch(read_tensors(config.weights, "transformer"))
        _check(draw_in_style, self.transformer, len(self.mean), config, side=LEAST_SIDE + 1)
        self.predictor = None
        if config.base == "predictor":
            self.predictor = from_torch(read_tensors(config.weights, "stylepredictor"))
            _check(
                lambda params, x, _: predict_style(params, x), self.predictor, len(self.mean), config, side=LEAST_SIDE
            )

    def __call__(self, x: jax.Array, strength: jax.Array, key: jax.Array) -> jax.Array:
        """Pictures f32[N, H, W, 3] on the scale of 0 to 255 in the styles of ``strength`` f32[N, 1]."""
        if x.shape[-1] != 3:
            raise ConfigError(f"{PATH}: pictures of {x.shape[-1]} channels; the network knows three")
        if self.predictor is not None and min(x.shape[1:3]) < LEAST_SIDE:
            raise ConfigError(
                f"{PATH}.base='predictor': pictures of {x.shape[1]} x {x.shape[2]} pixels vanish in the predictor, "
                f"which needs {LEAST_SIDE}; use base='mean'"
            )
        pictures = (x / 255).astype(self.dtype)
        base: jax.Array = jnp.asarray(self.base_mean)
        if self.predictor is not None:
            base = predict_style(self.predictor, pictures, batch_norm=self.config.batch_norm)
        noise = jax.random.normal(key, (len(x), len(self.mean)), jnp.float32)
        target = self.mean + jnp.matmul(noise, self.factor.T, precision=jax.lax.Precision.HIGHEST)
        z = strength * target + (1 - strength) * base
        return 255 * draw_in_style(self.transformer, pictures, z).astype(jnp.float32)


def read_tensors(folder: str, kind: str) -> dict[str, np.ndarray]:
    """The tensors of ``checkpoint_KIND`` without what names the whole, such as ``state_dict_ghiasi.``."""
    paths = sorted(p for p in Path(folder).glob(f"checkpoint_{kind}.*") if p.suffix in (".pth", ".safetensors", ".npz"))
    if not paths:
        raise WeightsError(
            f"{PATH}.weights={folder!r}: has no checkpoint_{kind}.pth; expected the checkpoints of Jackson et al.'s "
            "style-augmentation"
        )
    file = open_tensors(paths[0])
    names = {name.partition(".")[2] if name.startswith("state_dict") else name: name for name in file.tensors}
    return {name: file.read(stored) for name, stored in names.items()}


def _check(network: Callable[..., jax.Array], params: Params, width: int, config: StyleNetwork, *, side: int) -> None:
    """Raises unless ``params`` are of the network and of styles of ``width`` numbers; computes nothing."""
    x, z = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((1, width), jnp.float32)
    try:
        jax.eval_shape(network, params, x, z)
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:150]
        raise WeightsError(f"{PATH}.weights={config.weights!r}: not this network's weights ({reason})") from None
