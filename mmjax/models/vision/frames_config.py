"""What a tower of sequences may be configured to. Imports no jax."""

from __future__ import annotations

from typing import Any

from mmjax.models.block_config import require


def check_frames(vision: Any) -> None:
    """Raises ConfigError if a ``VisionConfig`` with the stem ``frames`` has what only pictures have."""
    section = "model.vision_cfg"
    require(
        len(vision.modalities) == 1,
        f"{section}.modalities={vision.modalities}: a tower with {section}.stem='frames' takes one; leave one",
    )
    for name, value in (
        ("pool_type", "avg"),
        ("class_token", False),
        ("registers", 0),
        ("rope", "none"),
        ("attentional_pool", "none"),
        ("fusion", "views"),
        ("pos_embed_type", "learnable"),
    ):
        actual = getattr(vision, name)
        require(
            actual == value, f"{section}.{name}={actual!r}: must be {value!r} with {section}.stem='frames'; set it so"
        )
