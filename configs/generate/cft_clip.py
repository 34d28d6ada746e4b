"""Captions with exchanged names as hard negatives (CFT-CLIP, arXiv:2402.11159), for the objective ``cft``.

Arguments: ``backend=scenes|rules|hf``, ``budget=F`` (of characters that are masked), ``tries=N``.
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", budget=0.3, tries=10)
    config = ml_collections.ConfigDict()
    config.models = models(args.backend, "tagger", "mask_filler", "scorer")
    config.stages = (("entity_negatives", {"budget": args.budget, "temperature": 2.0, "tries": args.tries}),)
    return config
