"""The yardstick: how well an augmentation generalizes from few images of the standard world of scenes.

Arguments: ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``, ``modalities=image[+depth][+thermal]``,
``fusion=views|channels|tokens|gated`` (of several modalities), ``size=small|medium|large`` (1,024, 4,096 or 16,384
training images), ``model=NAME`` (a preset), ``world=easy|standard|full``. The last checkpoint and the one that is best
on the validation split are kept, and the best one is evaluated; where it can do with some of the modalities, with each
subset of them. With ``medium`` twice the steps, ``--config.steps=2400``, end higher.
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer

from mmjax.core.config import choose
from mmjax.models import presets

SIZES = {"small": (1024, 600), "medium": (4096, 1200), "large": (16384, 2400)}  # images, steps


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg,
        augment="none",
        transforms="none",
        modalities="image",
        fusion="views",
        size="small",
        model="scenes-tiny",
        world="standard",
    )
    images, steps = SIZES[choose(args.size, SIZES, path="size")]
    config = ml_collections.ConfigDict()
    config.steps = steps
    config.batch_size = 64
    config.model = args.model if args.fusion == "views" else presets.load(args.model)
    if args.fusion != "views":
        config.model.vision_cfg.fusion = args.fusion
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {"name": "scenes", "world": args.world, "image_size": 32},
        "train": {"size": images},
        "tokenizer": {"name": "word"},
        "transforms": plugin_entries(args.transforms),
        "modalities": tuple(args.modalities.split("+")),
    }
    config.optimizer = small_optimizer()
    config.log = {"every_steps": 20}
    config.eval = {"every_steps": 100, "weights": "best"}
    if args.fusion in ("gated", "tokens"):
        config.eval["final_tasks"] = ("retrieval", "missing_modalities")
    config.checkpoint = {"every_steps": steps, "best": "val/rsum"}
    return config
