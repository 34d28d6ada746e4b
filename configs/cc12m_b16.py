"""CLIP ViT-B/16 from scratch on Conceptual 12M: 35 epochs at batch 8,192.

Slice: v5e:8x8 (64 chips, 128 images each).

Learning rate, weight decay, epochs and one epoch of warm-up are the command for training in the README of
github.com/LijieFan/LaCLIP (arXiv:2305.20088, 40.2 % zero-shot on ImageNet without rewritten captions); betas, eps, the
last learning rate of 1e-5, the crops of half the picture or more and no clipping of gradients are the defaults of its
train.py. Our own choices: the batch (the command has 256 a GPU and no number of GPUs), bfloat16, CLIP's own colour
statistics (theirs are ImageNet's), and how often it is measured and saved.

Arguments: ``train=PATH`` (as ``/data/cc12m/{00000..01242}.tar``), ``val=PATH`` (left out: nothing is measured),
``tasks=retrieval[+zeroshot]`` (with both, ``val`` holds ``{split}``, which becomes ``val`` and ``zeroshot``),
``batch=N`` (global), ``images=N`` (in an epoch), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``
(``rewrites+random_resized_crop`` with ``--config.data.transforms.rewrites.…`` is LaCLIP).
"""

import ml_collections

from mmjax.core.config import arguments, entries, measured, pairs
from mmjax.models import presets

IMAGES = 10_968_539  # as counted in the README of open_clip; fewer and fewer of the links still answer
EPOCHS = 35
CROP = {"scale": (0.5, 1.0)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = arguments(
        arg, train="", val="", tasks="retrieval", batch=8192, images=IMAGES, augment="none",
        transforms="random_resized_crop",
    )  # fmt: skip
    epoch = max(args.images // args.batch, 1)
    config = ml_collections.ConfigDict()
    config.steps = EPOCHS * epoch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("ViT-B-16")
    config.augment = entries(args.augment)
    config.data = pairs(
        args.train, args.val, tokenizer="openai/clip-vit-base-patch16",
        transforms=entries(args.transforms, random_resized_crop=CROP),
    )  # fmt: skip
    config.objective = {"name": "contrastive"}
    config.optimizer = {
        "learning_rate": 1e-3,
        "final_fraction": 0.01,
        "warmup_steps": epoch,
        "weight_decay": 0.5,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-8,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 50}
    config.eval = measured(args.tasks if args.val else "none", batch_size=args.batch, every_steps=epoch)
    config.checkpoint = {"every_steps": epoch}
    return config
