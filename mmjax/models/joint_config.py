"""The schema of the modules that join the two towers' tokens. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Literal

from mmjax.models.block_config import BlockConfig, Layers, Size, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig(BlockConfig):
    """The fusion encoder over both towers' tokens; ``fusion.py`` says what its kinds compute.

    It is as wide as the text tower. ALBEF and TCL have ``block_norm="post"``, ViLT ``kind="joint"`` with ``pool_tanh``
    and ``word_head="own"``.
    """

    kind: Literal["cross", "joint"] = "cross"  # text attends to the image, or both are one sequence
    layers: Layers = 6
    heads: Size | None = None  # None: those of the text tower
    pool_tanh: bool = False  # BERT's pooler before the matching head
    word_head: Literal["tied", "own", "none"] = (
        "tied"  # vectors that predict words: the text tower's, others, or no head
    )

    def __post_init__(self) -> None:
        require(
            self.attention in (None, "xla"),
            f"model.fusion.attention={self.attention!r}: its masks need the compiler's products; leave it out",
        )
