"""OpenAI's files of CLIP (``ViT-B-32.pt``, ``RN50.pt``): what model their arrays belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mmjax.core.config import ConfigError
from mmjax.models import open_clip_json
from mmjax.models.config import ClipConfig
from mmjax.weights.tensors import TensorFile, TensorInfo, one_line_errors

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's own list of merges, as OpenAI's and open_clip's repositories have it."""

_SCALARS = {"input_resolution", "context_length", "vocab_size"}  # OpenAI's alone; open_clip and others do not save them
_HEAD_WIDTH = 64


def recognizes(file: TensorFile) -> bool:
    """Whether OpenAI wrote it."""
    return file.tensors.keys() >= _SCALARS


def read_config(file: TensorFile) -> ClipConfig:
    """The model of the arrays' shapes; its activation is QuickGELU, as of all that OpenAI published."""
    with one_line_errors(file.path):
        return open_clip_json.convert(_model_cfg(file.tensors), path=str(file.path))


def check_activation(config: ClipConfig, file: TensorFile) -> None:
    """Raises if a model that was named computes with another activation: shapes do not tell, and scores would fall."""
    sections = ("text_cfg",) if _is_resnet(file.tensors) else ("vision_cfg", "text_cfg")
    for name in sections:
        if (used := getattr(config, name).activation) != "quick_gelu":
            raise ConfigError(
                f"model.{name}.activation={used!r}: {file.path} was trained with quick_gelu; set it to 'quick_gelu', "
                "or leave the model to the weights (model=init)"
            )


def _is_resnet(tensors: Mapping[str, TensorInfo]) -> bool:
    return "visual.layer1.0.conv1.weight" in tensors


def _model_cfg(tensors: Mapping[str, TensorInfo]) -> dict[str, object]:
    """As open_clip writes it: what CLIP's ``build_model`` finds out from a state dict."""
    text_width = tensors["ln_final.weight"].shape[0]
    if _is_resnet(tensors):
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
        stages = [_count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
        vision: dict[str, object] = {"image_size": 32 * grid, "layers": stages, "width": width, "patch_size": None}
    else:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
        layers = _count(tensors, r"visual\.transformer\.resblocks\.(\d+)\.")
        vision = {"image_size": patch * grid, "layers": layers, "width": width, "patch_size": patch}
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": tensors["positional_embedding"].shape[0],
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // _HEAD_WIDTH,
            "layers": _count(tensors, r"transformer\.resblocks\.(\d+)\."),
        },
    }


def _count(tensors: Mapping[str, TensorInfo], pattern: str) -> int:
    """The number of different blocks."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
