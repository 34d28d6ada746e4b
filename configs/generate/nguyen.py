"""Synthetic captions where raw ones fit badly ("Improving Multimodal Datasets with Image Captioning", 2023).

Arguments: ``backend=scenes|hf|openai|mmjax``, ``run=SPEC`` (of ``mmjax``: captions and cosines of one run, such as
CoCa's), ``fraction=F`` (of raw captions that are kept), ``filtered=0|1``.
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", run="", fraction=0.3, filtered=1)
    config = ml_collections.ConfigDict()
    blip2 = {"model": "Salesforce/blip2-opt-2.7b"}
    config.models = models(args.backend, "captioner", "scorer", run=args.run, captioner=blip2)
    config.stages = (
        ("caption", {"top_k": 50, "temperature": 0.75, "min_tokens": 5, "max_tokens": 40}),
        ("score", {}),
        ("caption_mix", {"fraction": args.fraction, "filtered": bool(args.filtered)}),
    )
    return config
