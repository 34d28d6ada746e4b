"""CoCa, CapPa and a prefix language model in small, on scenes: models that write captions, in minutes on two cores.

Arguments: ``method=coca|cappa|prefix``, ``texts=captions|questions`` (with their answers: SelTDA's teacher),
``transforms=NAME[+NAME]`` (of which ``mixgen`` is one), ``augment=NAME[+NAME]``, ``world=easy|standard|full``,
``images=N`` (for training), ``steps=N``. The decoder is two blocks deep, on the towers of ``scenes-tiny``, of which
CoCa's text tower is causal. What it writes is measured at the end (``captioning``).
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer

from mmjax.core.config import choose
from mmjax.models import presets

ALONE = {"name": "caption", "contrastive_weight": 0.0, "caption_weight": 1.0}
METHODS = {  # decoder, objective
    "coca": ({"inputs": "tower"}, {"name": "caption"}),
    "cappa": (
        {"inputs": "ids", "cross_mlp": False, "mask_token": True},
        {**ALONE, "parallel_fraction": 0.75, "mean": "caption"},
    ),
    "prefix": ({"inputs": "ids", "attend": "prefix"}, ALONE),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg,
        method="coca",
        texts="captions",
        transforms="none",
        augment="none",
        world="standard",
        images=4096,
        steps=1200,
    )
    decoder, objective = METHODS[choose(args.method, METHODS, path="method")]
    asks = choose(args.texts, ("captions", "questions"), path="texts") == "questions"
    config = ml_collections.ConfigDict()
    config.steps = args.steps
    config.batch_size = 64
    config.model = presets.load("scenes-tiny")
    config.model.decoder = {"width": 96, "heads": 4, "layers": 2, **decoder}
    contrast = args.method == "coca"
    if contrast:
        config.model.vision_cfg.update(attentional_pool="shared", attn_pooler_queries=17, attn_pooler_heads=4)
        config.model.text_cfg.update(no_causal_mask=False, pool_type="eos")
    config.objective = dict(objective)
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {"name": "scenes", "world": args.world, "image_size": 32, "task": args.texts, "answered": asks},
        "train": {"size": args.images},
        "tokenizer": {"name": "word"},
        "transforms": plugin_entries(args.transforms),
    }
    config.optimizer = small_optimizer()
    if not contrast:
        config.optimizer["unlocked_text_groups"] = 0  # nothing trains it
    config.log = {"every_steps": 20}
    tasks = ("retrieval",) if contrast else ()
    config.eval = {"every_steps": 400, "tasks": tasks, "final_tasks": (*tasks, "captioning")}
    config.checkpoint = {"every_steps": 400}
    return config
