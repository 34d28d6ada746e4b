"""What few layouts have: options of towers by which they differ from CLIP's and SigLIP's."""

from __future__ import annotations

from mmjax.models.config import ClipConfig

_BLOCKS = ("block_norm", "mlp_type", "qkv_bias", "scale_attn_inner", "scale_fc", "ls_init_value")
_VISION = (*_BLOCKS, "rope", "class_position", "map_heads", "map_mlp_ratio", "stem_norm")
_TEXT = (*_BLOCKS, "mask_padding", "num_positions", "positions_from_pad", "token_types", "embed_norm", "pool_tanh")


def uncommon_options(config: ClipConfig) -> list[str]:
    """Those that a model uses, as ``model.section.key=value``."""
    towers = (("vision_cfg", config.vision_cfg, _VISION), ("text_cfg", config.text_cfg, _TEXT))
    return [
        f"model.{section}.{key}={getattr(tower, key)!r}"
        for section, tower, keys in towers
        for key in keys
        if getattr(tower, key) != type(tower).__dataclass_fields__[key].default
    ]
