"""CLIP ViT-L/14 from scratch on LAION-400M: 32 epochs at batch 32,768.

Slice: v5e:16x16 (256 chips, 128 images each).

Batch, epochs, learning rate, warm-up, weight decay, betas and eps are those of CLIP's own ViT-L/14 (arXiv:2103.00020,
Tables 18 and 19), with which open_clip trained on LAION-400M (its issue 100 says so; its runs at batch 38,400 and
86,016 are in docs/PRETRAINED.md and in arXiv:2212.07143). Our own choices: bfloat16, no clipping of gradients (as in
open_clip), recomputed blocks, the parameters and moments in 16 shards, and how often it is evaluated and saved.

Arguments: ``train=PATH`` (as ``/data/laion400m/{00000..41407}.tar``), ``val=PATH`` (left out: no evaluation),
``tasks=retrieval[+zeroshot]`` (with both, ``val`` holds ``{split}``, which becomes ``val`` and ``zeroshot``),
``batch=N`` (global), ``images=N`` (in an epoch), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``.
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

IMAGES = 407_332_084  # of one epoch in the table of runs beside arXiv:2212.07143
EPOCHS = 32


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, train="", val="", tasks="retrieval", batch=32768, images=IMAGES, augment="none", transforms="none"
    )
    config = ml_collections.ConfigDict()
    config.steps = EPOCHS * args.images // args.batch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("ViT-L-14")
    config.model.remat = "full"
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train, args.val, tokenizer="openai/clip-vit-large-patch14", transforms=plugin_entries(args.transforms)
    )
    config.objective = {"name": "contrastive"}
    config.optimizer = {
        "learning_rate": 4e-4,
        "warmup_steps": 2000,
        "weight_decay": 0.2,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-6,
        "clip_norm": None,
    }
    config.mesh = {"data": -1, "fsdp": 16}
    config.log = {"every_steps": 100}
    config.eval = evaluation(args.tasks if args.val else "none", batch_size=args.batch, every_steps=10_000)
    config.checkpoint = {"every_steps": 2000}
    return config
