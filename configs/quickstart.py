"""The first run: CLIP on the easy world of scenes, from nothing to a report in under three minutes on two cores.

Arguments: ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``, ``modalities=image[+depth][+thermal]``, ``model=NAME``
(a preset; ``scenes-tiny-clip`` is one that ``mmjax export`` writes for any library).
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, augment="none", transforms="none", modalities="image", model="scenes-tiny")
    config = ml_collections.ConfigDict()
    config.steps = 2200
    config.batch_size = 64
    config.model = args.model
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {"name": "scenes", "world": "easy", "image_size": 32},
        "train": {"size": 16384, "twins": True},
        "tokenizer": {"name": "word"},
        "transforms": plugin_entries(args.transforms),
        "modalities": tuple(args.modalities.split("+")),
    }
    config.optimizer = small_optimizer()
    config.log = {"every_steps": 20}
    config.eval = {"every_steps": 550}
    config.checkpoint = {"every_steps": 550}
    return config
