"""CapPa ViT-B/16 from scratch: captions alone, three quarters of them predicted in parallel.

Slice: v5e:8x8 (64 chips, 128 images each).

366,500 steps at batch 8,192 (3 billion samples), images of 224 pixels squashed to a square, texts of 64 tokens out of
32,000, the decoder of six layers with one MLP each, three quarters of the captions in parallel, the mean over captions,
learning rate 1e-3 along a cosine after 10,000 steps of warm-up, weight decay 1e-4 on matrices and clipping at 1 are
CapPa's (Tschannen et al. 2023, arXiv:2306.07915; ``configs/proj/cappa/pretrain.py`` of big_vision).

Our own choices: Adam (b2 = 0.999) where big_vision has Adafactor; SigLIP's tokenizer, which has the same vocabulary, in
lower case and without punctuation; bfloat16; and how often it is saved. Models here have a text tower: it has one layer
and is frozen, for a tower that is trained on the finished image tower later (``--config.init.vision=RUN``).

Arguments: ``train=PATH`` (as ``/data/pairs/{00000..41407}.tar``), ``batch=N`` (global), ``parallel=FRACTION`` (0: Cap,
the paper's other model), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``.
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

SAMPLES = 366_500 * 8192


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, train="", batch=8192, parallel=0.75, augment="none", transforms="resize_crop")
    config = ml_collections.ConfigDict()
    config.steps = SAMPLES // args.batch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("CapPa-B-16")
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train,
        "",
        tokenizer="timm/ViT-B-16-SigLIP",
        transforms=plugin_entries(args.transforms, resize_crop={"mode": "squash", "resample": "fast"}),
    )
    config.objective = {
        "name": "caption",
        "contrastive_weight": 0.0,
        "caption_weight": 1.0,
        "parallel_fraction": args.parallel,
        "mean": "caption",
    }
    config.optimizer = {
        "learning_rate": 1e-3,
        "warmup_steps": 10_000,
        "weight_decay": 1e-4,
        "weight_decay_pattern": ".*kernel",
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 1.0,
        "unlocked_text_groups": 0,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 100}
    config.eval = evaluation("none", batch_size=args.batch, every_steps=10_000)
    config.checkpoint = {"every_steps": 2000}
    return config
