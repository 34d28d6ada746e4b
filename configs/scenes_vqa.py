"""Questions about scenes, answered by classification with a fusion encoder, in minutes on two cores.

Questions are for color, shape, texture, size, existence and the background, made from the scene graph. Each answer of a
kind is as frequent as the others, so neither the question nor the picture alone says it. The controls train and measure
without one of them: ``hidden=image`` has gray pictures, ``hidden=question`` one question for all.

Arguments: ``kind=cross|joint`` (text attends to the image, or both are one sequence),
``hidden=nothing|image|question``, ``transforms=NAME[+NAME]``, ``augment=NAME[+NAME]``, ``world=easy|standard|full``,
``images=N`` (for training), ``steps=N``.
"""

import ml_collections
from common import parse_arguments, plugin_entries

from mmjax.core.config import choose
from mmjax.data.scenes.questions import ANSWERS
from mmjax.models import presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg,
        kind="cross",
        hidden="nothing",
        transforms="none",
        augment="none",
        world="standard",
        images=16384,
        steps=3000,
    )
    config = ml_collections.ConfigDict()
    config.steps = args.steps
    config.batch_size = 64
    config.model = presets.load("scenes-tiny")
    kind = choose(args.kind, ("cross", "joint"), path="kind")
    config.model.fusion = {"kind": kind, "layers": 3, "word_head": "none", "answers": len(ANSWERS)}
    config.objective = {
        "name": "fusion",
        "contrastive_weight": 0.0,
        "matching_weight": 0.0,
        "words_weight": 0.0,
        "answers": ANSWERS,
    }
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {"name": "scenes", "world": args.world, "image_size": 32, "questions": True, "hidden": args.hidden},
        "train": {"size": args.images},
        "tokenizer": {"name": "word"},
        "transforms": plugin_entries(args.transforms),
        "groups": ("answer",),
    }
    config.optimizer = {
        "learning_rate": 1e-3,
        "b2": 0.98,
        "weight_decay": 0.05,
        "warmup_steps": 100,
        "final_fraction": 0.02,
    }
    config.log = {"every_steps": 50}
    config.eval = {"every_steps": 1000, "tasks": ("vqa",), "final_tasks": ("vqa",)}
    config.checkpoint = {"every_steps": 1000}
    return config
