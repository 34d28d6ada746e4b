"""Captions in other words, by examples (LaCLIP, arXiv:2305.20088): four rewrites beside each raw caption.

Arguments: ``backend=scenes|rules|hf|openai``, ``shots=N`` (pairs in a request).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", shots=3)
    config = ml_collections.ConfigDict()
    config.models = models(args.backend, "writer")
    config.stages = (
        ("rewrite", {"shots": args.shots, "temperature": 0.9, "top_p": 0.95, "max_tokens": 77}),
        ("uniform_caption", {"min_words": 2}),
    )
    return config
