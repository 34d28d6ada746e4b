"""CLIP on a track of DataComp: large (ViT-B/16, batch 8,192) or medium (ViT-B/32, batch 4,096).

Slice for ``track=large``: v5e:8x8 (64 chips, 128 images each).
Slice for ``track=medium``: v5e:4x4 (16 chips, 256 images each).

Model, batch, samples (1.28 billion and 128 million), learning rate and warm-up are fixed by the benchmark
(arXiv:2304.14108, scale_configs.py of github.com/mlfoundations/datacomp), weight decay, betas, eps and no clipping of
gradients are the defaults of open_clip, which it runs. Our own choices: bfloat16, and how often it is evaluated and
saved. Sampling differs: the benchmark draws shards with replacement, here every picture comes once before any comes
twice.

Arguments: ``track=large`` or ``track=medium``, ``train=PATH`` (as ``/data/large/shards/{00000000..00128959}.tar`` or
``/data/medium/shards/{00000000..00012895}.tar``), ``val=PATH`` (left out: no evaluation),
``tasks=retrieval[+zeroshot]`` (with both, ``val`` holds ``{split}``, which becomes ``val`` and ``zeroshot``),
``batch=N`` (global; 0: the track's), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``, and ``filter=``, the
examples to train on:

``none``         the whole pool, or shards that were filtered before
``basic``        the benchmark's basic rules, but for the language: at least 3 words, 6 characters and 200 pixels a
                 side, and pictures at most three times as long as wide
``clip_score``   the best 30 % by CLIP's score, the ``json`` field ``score=NAME`` of each sample (the benchmark keeps
                 its scores beside the shards, in the pool's metadata: write them into the shards, or into a table)
"""

import dataclasses

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.core.config import choose
from mmjax.models import presets


@dataclasses.dataclass(frozen=True)
class Track:
    """What the benchmark fixes for a track, and how often we evaluate and save."""

    model: str
    tokenizer: str
    batch: int
    samples: int
    eval_steps: int
    checkpoint_steps: int


TRACKS = {
    "large": Track("ViT-B-16", "openai/clip-vit-base-patch16", 8192, 1_280_000_000, 8000, 2000),
    "medium": Track("ViT-B-32", "openai/clip-vit-base-patch32", 4096, 128_000_000, 3000, 1000),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, track="large", train="", val="", tasks="retrieval", batch=0, filter="none",
        score="clip_l14_similarity_score", augment="none", transforms="none",
    )  # fmt: skip
    track = TRACKS[choose(args.track, TRACKS, path="track")]
    batch = args.batch or track.batch
    size = {"width": "original_width", "height": "original_height"}  # fields that img2dataset writes
    selections = {
        "none": None,
        "basic": {"min_words": 3, "min_characters": 6, "min_side": 200, "max_aspect": 3.0, **size},
        "clip_score": {"score": args.score, "top": 0.3},
    }
    config = ml_collections.ConfigDict()
    config.steps = track.samples // batch
    config.batch_size = batch
    config.precision = "bfloat16"
    config.model = presets.load(track.model)
    config.augment = plugin_entries(args.augment)
    transforms = plugin_entries(args.transforms)
    config.data = paired_data(args.train, args.val, tokenizer=track.tokenizer, transforms=transforms)
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
    config.eval = evaluation(args.tasks if args.val else "none", batch_size=batch, every_steps=track.eval_steps)
    config.checkpoint = {"every_steps": track.checkpoint_steps}
    return config
