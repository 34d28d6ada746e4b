"""Sentences with marked names for pictures, and pictures for these sentences (GMDA, ACM MM 2024).

Arguments: ``backend=scenes|hf|openai``, ``n=N`` (sentences a picture).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", n=3)
    config = ml_collections.ConfigDict()
    roles = ("captioner", "tagger", "detector", "image_generator")
    config.models = models(args.backend, *roles, captioner={"model": "Salesforce/instructblip-flan-t5-xl"})
    config.stages = (
        ("detect", {}),
        ("labeled_captions", {"n": args.n, "top_k": 50, "top_p": 0.9}),
        ("length", {"min_words": 5, "sources": ("caption",)}),
        ("consistency", {}),
        ("dedup", {"sources": ("caption",)}),
        ("edit", {"mode": "text", "sources": ("caption",), "boxes": True}),
    )
    return config
