"""Which kernel computes attention in a tower's blocks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import platform_of
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig

Kernel = Literal["xla", "cudnn", "pallas"]

SHORT_ATTENTION_SIZE = 300_000
"""Numbers of a sequence's queries that the kernel for short sequences has room for: 257 x 1,024 compiles for v5e."""


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """What computes attention in a tower's blocks, and why it is no other; the reason is empty if that was asked for.

    Where a block computes a single query it always is ``xla``.
    """

    kernel: Kernel
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kernel} ({self.reason})" if self.reason else self.kernel


def choose_kernel(
    model: ClipConfig, tower: VisionConfig | TextConfig, *, dtype: Any, row_sharding: NamedSharding | None
) -> KernelChoice:
    """The kernel for ``tower`` of ``model`` on the devices of ``row_sharding``; None: any, so the compiler's products.

    The devices need not be here.
    """
    wanted, platform = tower.attention or model.attention, platform_of(row_sharding)
    if wanted == "auto":
        wanted = "cudnn" if platform == "gpu" else "xla"
    if wanted == "xla":
        return KernelChoice("xla")
    if wanted == "cudnn":
        obstacle = _cudnn_obstacle(tower, dtype=dtype, platform=platform)
        return KernelChoice("xla", f"no cudnn: {obstacle}") if obstacle else KernelChoice("cudnn")
    tensor = 1 if row_sharding is None else row_sharding.mesh.shape.get("tensor", 1)
    obstacle = _pallas_obstacle(tower, platform=platform, tensor=tensor)
    if obstacle:
        return KernelChoice("xla", f"no pallas: {obstacle}")
    return KernelChoice("pallas", "" if platform == "tpu" else "emulated")


def _pallas_obstacle(tower: VisionConfig | TextConfig, *, platform: str | None, tensor: int) -> str | None:
    tokens = tower.context_length if isinstance(tower, TextConfig) else tower.max_tokens
    head_width = tower.width // tower.heads
    obstacles = {
        f"the platform is {platform or 'unknown'}": platform not in ("tpu", "cpu"),
        f"heads are {head_width} wide": platform == "tpu" and head_width % 64 != 0,
        f"{tokens} positions of width {tower.width}": tokens * tower.width > SHORT_ATTENTION_SIZE,
        "queries and keys have norms": tower.qk_norm,
        "positions are rotary": isinstance(tower, VisionConfig) and tower.rope != "none",
        "padding is masked": isinstance(tower, TextConfig) and tower.masks_padding,
        f"mesh.tensor is {tensor}": tensor > 1,
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


@functools.cache
def _cudnn_is_installed() -> bool:
    x = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x)
    except RuntimeError:
        return False
    return True


def _cudnn_obstacle(tower: VisionConfig | TextConfig, *, dtype: Any, platform: str | None) -> str | None:
    head_width = tower.width // tower.heads
    if platform != "gpu":
        return f"the platform is {platform or 'unknown'}"
    if not _cudnn_is_installed():
        return "cuDNN is not installed"
    if dtype != jnp.bfloat16:
        return "precision is not bfloat16"
    if head_width % 8 or head_width > 128:
        return f"heads are {head_width} wide"
    if isinstance(tower, TextConfig) and tower.masks_padding:
        return "padding is masked"
    return None
