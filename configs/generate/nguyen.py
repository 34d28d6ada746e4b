"""Synthetic captions where raw ones fit badly ("Improving Multimodal Datasets with Image Captioning", 2023).

Arguments: ``backend=scenes|hf|openai|mmjax``, ``run=SPEC`` (of ``mmjax``: captions and cosines of one run, such as
CoCa's), ``fraction=F`` (of raw captions that are kept), ``filtered=0|1``, ``english=0|1`` (raw captions must pass
the filter of DataComp's image-based baseline: English, two words, six characters).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", run="", fraction=0.3, filtered=1, english=0)
    config = ml_collections.ConfigDict()
    blip2 = {"model": "Salesforce/blip2-opt-2.7b"}
    config.models = models(args.backend, "captioner", "scorer", run=args.run, captioner=blip2)
    raw = {"sources": ("raw",)}
    english = (("language", {"languages": ("en",)}), ("length", {"min_words": 2, "min_characters": 6} | raw))
    config.stages = (
        ("caption", {"top_k": 50, "temperature": 0.75, "min_tokens": 5, "max_tokens": 40}),
        *(english if args.english else ()),
        ("score", {}),
        ("caption_mix", {"fraction": args.fraction, "filtered": bool(args.filtered)}),
    )
    return config
