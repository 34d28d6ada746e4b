"""Low-rank adapters of linear maps: LoRA (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core import rng
from mmjax.core.config import ConfigError
from mmjax.models.layers import Dense, uniform


class Adapter(nnx.Module):
    """``y = scale · x·A·B``, which a linear map adds to its own; A is drawn from U(±1/√inputs), and B is zero.

    Of stacked blocks each has its own: A is [layers, *inputs, rank], B is [layers, rank, *outputs].
    """

    def __init__(self, layer: Dense, *, rank: int, scale: float, key: jax.Array):
        self.scale = scale
        shape = layer.kernel.shape
        stacked = shape[: len(shape) - len(layer.inputs) - len(layer.outputs)]
        bound = math.prod(layer.inputs) ** -0.5  # Kaiming's, with torch's a = √5, as in LoRA's own code
        self.a = nnx.Param(uniform(bound)(key, (*stacked, *layer.inputs, rank)))
        self.b = nnx.Param(jnp.zeros((*stacked, rank, *layer.outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., inputs] -> [..., outputs], in the dtype of x."""
        a = self.a[...].reshape(x.shape[-1], -1).astype(x.dtype)
        b = self.b[...].reshape(a.shape[1], -1).astype(x.dtype)
        return (x @ a * self.scale) @ b


def add_adapters(model: nnx.Module, *, rank: int, scale: float, targets: Sequence[str], seed: int) -> None:
    """Gives adapters to the linear maps of ``model`` whose kernels ``targets`` match.

    Each draws from a random stream of its own, so that it does not depend on which others there are.

    Args:
        model: Already built; its other parameters stay as they are.
        rank: The number of columns of A and rows of B.
        scale: What the product is multiplied by.
        targets: Regular expressions of paths such as ``visual/blocks/attn/query/kernel``, matched from the start.
        seed: Of the random numbers.

    Raises:
        ConfigError: if a target matches no kernel, or a matrix is smaller than the rank.
    """
    layers = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model) if isinstance(module, Dense)}
    matched = {pattern: [path for path in layers if re.match(pattern, f"{path}/kernel")] for pattern in targets}
    if not targets:
        raise ConfigError("lora.targets=(): names no kernel; name some, or set lora.rank=0")
    for pattern, paths in matched.items():
        if not paths:
            raise ConfigError(
                f"lora.targets: {pattern!r} matches no kernel of a linear map; there are "
                f"{', '.join(f'{path}/kernel' for path in sorted(layers))}"
            )
    for path in sorted({path for paths in matched.values() for path in paths}):
        layer = layers[path]
        smaller = min(math.prod(layer.inputs), math.prod(layer.outputs))
        if rank > smaller:
            raise ConfigError(
                f"lora.rank={rank}: {path}/kernel is {math.prod(layer.inputs)} x {math.prod(layer.outputs)}; use at "
                f"most {smaller}, or leave it out of lora.targets"
            )
        adapter = Adapter(layer, rank=rank, scale=scale, key=rng.key(seed, stream=f"lora/{path}"))
        layer.lora = nnx.data(adapter)  # flax takes an attribute that was None for no place of parameters


class AdapterArrays(NamedTuple):
    """One adapter among the parameters of a model."""

    layer: str  # the path of the linear map
    a: np.ndarray
    b: np.ndarray


def list_adapters(params: Mapping[str, Any]) -> Iterator[AdapterArrays]:
    """The adapters among parameters by path."""
    for path, a in params.items():
        if path.endswith("/lora/a"):
            layer = path.removesuffix("/lora/a")
            yield AdapterArrays(layer, a, params[f"{layer}/lora/b"])


def merge_adapters(params: Mapping[str, np.ndarray], *, scale: float) -> dict[str, np.ndarray]:
    """The parameters of the same model without adapters, whose kernels are ``kernel + scale · A·B``."""
    merged = {path: array for path, array in params.items() if not path.endswith(("/lora/a", "/lora/b"))}
    for layer, a, b in list_adapters(params):
        kernel = merged[f"{layer}/kernel"]
        stacked = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]
        rank = a.shape[-1]
        product = a.reshape(*stacked, -1, rank) @ b.reshape(*stacked, rank, -1)
        merged[f"{layer}/kernel"] = kernel + np.float32(scale) * product.reshape(kernel.shape)
    return merged
