"""DataComp's large track: CLIP ViT-B/16, 1.28 billion samples at batch 8,192.

Slice: v5e:8x8 (64 chips, 128 images each).

Model, batch, samples, learning rate and warm-up are fixed by the benchmark (arXiv:2304.14108, scale_configs.py of
github.com/mlfoundations/datacomp), weight decay, betas, eps and no clipping of gradients are the defaults of open_clip,
which it runs. Our own choices: bfloat16, and how often it is measured and saved. Sampling differs: the benchmark draws
shards with replacement, here every picture comes once before any comes twice.

Arguments: ``train=PATH`` (as ``/data/large/shards/{00000000..00128959}.tar``), ``val=PATH`` (left out: nothing is
measured), ``tasks=retrieval[+zeroshot]`` (with both, ``val`` holds ``{split}``, which becomes ``val`` and
``zeroshot``), ``batch=N`` (global), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``, and ``filter=`` what is
learnt from:

``none``         the whole pool, or shards that were filtered before
``basic``        the benchmark's basic rules, but for the language: at least 3 words, 6 characters and 200 pixels a
                 side, and pictures at most three times as long as wide
``clip_score``   the best 30 % by CLIP's score, the ``json`` field ``score=NAME`` of each sample (the benchmark keeps
                 its scores beside the shards, in the pool's metadata: write them into the shards, or into a table)
"""

import ml_collections

from mmjax.core.config import arguments, choose, entries, measured, pairs
from mmjax.models import presets

SAMPLES = 1_280_000_000


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = arguments(
        arg, train="", val="", tasks="retrieval", batch=8192, filter="none", score="clip_l14_similarity_score",
        augment="none", transforms="none",
    )  # fmt: skip
    size = {"width": "original_width", "height": "original_height"}  # fields that img2dataset writes
    selections = {
        "none": None,
        "basic": {"min_words": 3, "min_characters": 6, "min_side": 200, "max_aspect": 3.0, **size},
        "clip_score": {"score": args.score, "top": 0.3},
    }
    config = ml_collections.ConfigDict()
    config.steps = SAMPLES // args.batch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("ViT-B-16")
    config.augment = entries(args.augment)
    config.data = pairs(
        args.train, args.val, tokenizer="openai/clip-vit-base-patch16", transforms=entries(args.transforms)
    )
    config.data.train = {"selection": selections[choose(args.filter, selections, path="filter")]}
    config.objective = {"name": "contrastive"}
    config.optimizer = {
        "learning_rate": 5e-4,
        "warmup_steps": 500,
        "weight_decay": 0.2,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-6,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 50}
    config.eval = measured(args.tasks if args.val else "none", batch_size=args.batch, every_steps=8000)
    config.checkpoint = {"every_steps": 2000}
    return config
