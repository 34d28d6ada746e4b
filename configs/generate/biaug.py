"""Pictures and captions that are wrong in one attribute, as each other's negatives (BiAug, arXiv:2310.01330).

Arguments: ``backend=scenes|hf|openai``, ``most=N`` (edits of a picture).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", most=2)
    config = ml_collections.ConfigDict()
    inpainting = {"model": "stable-diffusion-v1-5/stable-diffusion-inpainting"}
    roles = ("writer", "detector", "image_generator", "scorer")
    config.models = models(args.backend, *roles, image_generator=inpainting)
    config.stages = (
        ("objects", {"count": 3}),
        ("detect", {"threshold": 0.35}),
        ("attributes", {"kinds": ("color", "shape", "material", "other")}),
        ("inpaint", {"most": args.most}),
        ("score", {}),
        ("score_gap", {}),
    )
    return config
