"""A full-size model on scenes, to time the training step.

Arguments: ``augment=NAME[+NAME]``, ``model=NAME`` (a preset), ``batch=N`` (global), ``precision=float32|bfloat16``.
"""

import ml_collections
from common import parse_arguments, plugin_entries

from mmjax.models import presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, augment="none", model="ViT-B-32", batch=32, precision="float32")
    config = ml_collections.ConfigDict()
    config.steps = 10_000
    config.batch_size = args.batch
    config.precision = args.precision
    config.model = presets.load(args.model)
    config.augment = plugin_entries(args.augment)
    size = config.model.vision_cfg.image_size
    config.data = {
        "source": {"name": "scenes", "world": "full", "image_size": size, "cache": False},
        "train": {"size": 32768},
        "tokenizer": {"name": "word"},
    }
    sigmoid = config.model.init_logit_bias is not None
    config.objective = {"name": "sigmoid" if sigmoid else "contrastive"}
    config.optimizer = {"learning_rate": 5e-4, "warmup_steps": 500}
    config.eval = {"every_steps": 2000, "batch_size": args.batch}  # whatever shares a training batch shares it too
    config.checkpoint = {"every_steps": 2000}
    return config
