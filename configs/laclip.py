"""CLIP ViT-B/16 from scratch on Conceptual Captions 12M or 3M: LaCLIP's recipe, 35 epochs at batch 8,192.

Slice: v5e:8x8 (64 chips, 128 images each).

Learning rate, weight decay, epochs and one epoch of warm-up are the command for training in the README of
github.com/LijieFan/LaCLIP (arXiv:2305.20088, which has 40.2 % zero-shot on ImageNet after CC12M and 15.8 % after CC3M
without rewritten captions; its Table A3 has what differs between data sets); betas, eps, the last learning rate of
1e-5, the crops of half the picture or more and no clipping of gradients are the defaults of its train.py. Our own
choices: the batch (the command has 256 a GPU and no number of GPUs), bfloat16, CLIP's own color statistics (theirs are
ImageNet's), and how often it is evaluated and saved.

Arguments: ``data=cc12m`` or ``data=cc3m``, ``train=PATH`` (as ``/data/cc12m/{00000..01242}.tar``), ``val=PATH`` (left
out: no evaluation), ``tasks=retrieval[+zeroshot]`` (with both, ``val`` holds ``{split}``, which becomes ``val`` and
``zeroshot``), ``batch=N`` (global), ``images=N`` (in an epoch; 0: as published), ``augment=NAME[+NAME]``,
``transforms=NAME[+NAME]`` (``rewrites+random_resized_crop`` with ``--config.data.transforms.rewrites.…`` is LaCLIP).
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.core.config import choose
from mmjax.models import presets

IMAGES = {  # fewer and fewer of the links still answer
    "cc12m": 10_968_539,  # as counted in the README of open_clip
    "cc3m": 3_318_333,  # published (Sharma et al. 2018)
}
EPOCHS_BETWEEN_EVALUATIONS = {"cc12m": 1, "cc3m": 2}
EPOCHS = 35
CROP = {"scale": (0.5, 1.0)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, data="cc12m", train="", val="", tasks="retrieval", batch=8192, images=0, augment="none",
        transforms="random_resized_crop",
    )  # fmt: skip
    choose(args.data, IMAGES, path="data")
    epoch = max((args.images or IMAGES[args.data]) // args.batch, 1)
    config = ml_collections.ConfigDict()
    config.steps = EPOCHS * epoch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("ViT-B-16")
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train, args.val, tokenizer="openai/clip-vit-base-patch16",
        transforms=plugin_entries(args.transforms, random_resized_crop=CROP),
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
    every_steps = EPOCHS_BETWEEN_EVALUATIONS[args.data] * epoch
    config.eval = evaluation(args.tasks if args.val else "none", batch_size=args.batch, every_steps=every_steps)
    config.checkpoint = {"every_steps": epoch}
    return config
