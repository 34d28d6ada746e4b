"""The blocks of a transformer as a config section describes them. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from mmjax.core.config import Between, ConfigError, Ge, Gt

PositiveInt = Annotated[int, Ge(1)]
Size = Annotated[int, Between(1, 2**16)]
MlpRatio = Annotated[float, Between(0.1, 100)]
Layers = Annotated[int, Between(1, 1000)]
PositiveFloat = Annotated[float, Gt(0)]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""Exact (erf) GELU, its tanh approximation (flax's and SigLIP's), or ``x·sigmoid(1.702 x)`` (OpenAI's CLIP)."""

Remat = Literal["none", "dots", "attention", "offload", "full"]
"""What a block keeps for its backward pass: everything (``none``), its matrix products (``dots``), those of attention
but not the MLP's hidden layer (``attention``), what ``dots`` keeps in the host's memory (``offload``), or its input
alone (``full``).
"""

Scan = Literal["auto", True, False]
"""Whether a tower's blocks run in one loop, which compiles faster, or are written out one after the other; ``auto``
writes them out on GPUs, where a loop copies what it keeps.
"""

AttentionKernel = Literal["auto", "xla", "cudnn", "pallas"]
"""What computes attention in blocks: the compiler's own products, cuDNN's fused kernel (GPUs), or ours for short
sequences (TPUs). ``auto`` takes cuDNN's where it works, see ``attention.choice``.
"""

MatmulPrecision = Literal["full", "int8", "fp8"]
"""The number format in which the blocks' linear maps multiply; see ``low_precision``."""

BlockNorm = Literal["pre", "post", "res_post"]
"""Where a block has its norms: ``x + f(norm(x))``, BERT's ``norm(x + f(x))``, or ``x + norm(f(x))``."""

MlpType = Literal["mlp", "swiglu"]
"""``fc2(act(fc1 x))``, or ``fc2(silu(gate x) · fc1 x)`` (Shazeer, arXiv:2002.05202)."""

QkvBias = Literal["qkv", "qv", "none"]
"""Which of an attention's queries, keys and values have a bias."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The blocks of a tower."""

    mlp_ratio: MlpRatio = 4.0
    activation: Activation = "gelu"
    ln_eps: PositiveFloat = 1e-5
    attention: AttentionKernel | None = None  # None: model.attention
    qk_norm: bool = False  # layer norm of each head's queries and keys
    block_norm: BlockNorm = "pre"
    mlp_type: MlpType = "mlp"
    qkv_bias: QkvBias = "qkv"
    scale_attn_inner: bool = False  # layer norm of the attention's output, before its last linear map
    scale_fc: bool = False  # layer norm of the MLP's hidden layer (Shleifer et al., arXiv:2110.09456)
    ls_init_value: PositiveFloat | None = None  # where layer scales start (Touvron et al., arXiv:2103.17239)
