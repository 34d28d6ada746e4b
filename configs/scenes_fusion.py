"""ALBEF, TCL and ViLT in small, on scenes: models with a fusion encoder that train in minutes on two cores.

Arguments: ``method=albef|tcl|vilt|clip`` (clip: the same towers without the encoder), ``transforms=NAME[+NAME]`` (of
which ``mixgen`` is one), ``augment=NAME[+NAME]``, ``world=easy|standard|full``, ``images=N`` (for training),
``steps=N``. The encoder is two blocks deep, on the towers of ``scenes-tiny``; ViLT has four blocks and towers without
any. Queue and momentum are as short as the run. Retrieval is among 250 images. ALBEF and TCL are also asked where they
look for an object that a text names (``refcoco``).
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer

from mmjax.core.config import choose
from mmjax.models import presets

SHORT = {"momentum": 0.98, "queue_size": 512, "distillation": 0.4, "distillation_warmup_steps": 300}
OBJECTIVES = {
    "clip": {"name": "contrastive"},
    "albef": {"name": "albef", **SHORT},
    "tcl": {"name": "tcl", **SHORT},
    "vilt": {"name": "fusion", "contrastive_weight": 0.0, "negatives": "random"},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, method="albef", transforms="none", augment="none", world="standard", images=4096, steps=1200
    )
    objective = OBJECTIVES[choose(args.method, OBJECTIVES, path="method")]
    config = ml_collections.ConfigDict()
    config.steps = args.steps
    config.batch_size = 64
    config.model = presets.load("scenes-tiny")
    if args.method == "vilt":
        config.model.vision_cfg.update(layers=0, final_ln_after_pool=True)
        config.model.text_cfg.update(layers=0)
        config.model.fusion = {"kind": "joint", "layers": 4, "pool_tanh": True, "word_head": "own"}
    elif args.method != "clip":
        config.model.fusion = {"layers": 2}
    config.objective = dict(objective)
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {"name": "scenes", "world": args.world, "image_size": 32},
        "train": {"size": args.images},
        "evaluation": {"size": 250},
        "tokenizer": {"name": "word"},
        "transforms": plugin_entries(args.transforms),
    }
    config.optimizer = small_optimizer()
    config.log = {"every_steps": 20}
    searches = args.method != "vilt"  # by embeddings; ViLT scores every pair
    embedded = ("retrieval", "reranking", "refcoco")
    config.eval = {
        "every_steps": 400,
        "tasks": ("retrieval",) if searches else (),
        "final_tasks": {"clip": ("retrieval",), "vilt": ("reranking",)}.get(args.method, embedded),
        "options": {
            "reranking": {"k": 32 if searches else None},
            "refcoco": {"source": {"task": "expressions"}},
        },
    }
    config.checkpoint = {"every_steps": 400}
    return config
