"""The smallest experiment that goes through every part: a few steps of a very small model on scenes."""

import copy
from typing import Any

from mmjax.experiment import Experiment
from mmjax.models import presets

_MODEL = presets.load("scenes-tiny")
_MODEL["embed_dim"] = 16
_MODEL["vision_cfg"] |= {"width": 16, "head_width": 8, "stem_widths": (8, 8, 16)}
_MODEL["text_cfg"] |= {"width": 16, "heads": 2}

VIT: dict[str, Any] = {
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 22, "vocab_size": None, "width": 16, "heads": 2, "layers": 2},
    "embed_dim": 16,
}
"""A model that other libraries can hold."""

_SECTIONS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 16,
    "model": _MODEL,
    "data": {
        "source": {"name": "scenes", "world": "easy", "image_size": 32},
        "train": {"size": 48},
        "tokenizer": {"name": "word"},
    },
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "mesh": {"data": -1, "fsdp": 1},
    "log": {"every_steps": 1},
    "eval": {"every_steps": 3, "batch_size": 64, "tasks": ("retrieval",), "final_tasks": ("retrieval",)},
    "checkpoint": {"every_steps": 3},
}


def sections(**overrides: Any) -> dict[str, Any]:
    """The configuration with dotted keys (``optimizer__warmup_steps=0``) overridden."""
    config = copy.deepcopy(_SECTIONS)
    for key, value in overrides.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return config


def experiment(**overrides: Any) -> Experiment:
    return Experiment.from_dict(sections(**overrides))


CONFIG_FILE = """
from support import tiny

def get_config(arg=""):
    return tiny.sections()
"""
