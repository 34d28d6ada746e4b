"""Pictures laid out at random from the texts' objects, with scores for the gate in the step (SLUMA, ACM MM 2024).

Reconstructed from a summary: the paper's formulas were not at hand. Train with ``--config.gate.score=clip``.
Arguments: ``backend=scenes|hf``.
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes")
    config = ml_collections.ConfigDict()
    roles = ("writer", "image_generator", "scorer")
    config.models = models(args.backend, *roles, image_generator={"model": "masterful/gligen-1-4-generation-text-box"})
    config.stages = (
        ("objects", {"count": 0}),
        ("random_boxes", {}),
        ("edit", {"mode": "layout", "sources": ("raw",), "parents": False}),
        ("score", {}),
    )
    return config
