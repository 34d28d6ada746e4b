"""CoCa ViT-B/16 from scratch: contrast and captions, 13 billion samples at batch 90,112.

Slice: v5e:16x16 (256 chips, 352 images each).

Both towers, the pooling by 256 queries, the decoder of twelve layers and the losses' weights (1 and 2) are open_clip's
``coca_ViT-B-32.json`` with patches of 16; batch, samples and learning rate those of its weights
``laion2b_s13b_b90k``, as their names and LAION's notes have them. CoCa-Base (arXiv:2205.01917, section 4.1) has images
of 288 pixels in patches of 18, a decoder as wide as the towers, batch 65,536, learning rate 8e-4 and weight decay 0.01.

Our own choices: b2 = 0.98 and weight decay 0.2, open_clip's defaults for CLIP; a warm-up of 10,000 steps; bfloat16; all
of a block is computed again in the backward pass, without which 352 images do not fit a chip; and how often it is
evaluated and saved.

Arguments: ``train=PATH`` (as ``/data/pairs/{00000..41407}.tar``), ``val=PATH`` (left out: no evaluation), ``batch=N``
(global), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``.
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

SAMPLES = 13_000_000_000


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, train="", val="", batch=90_112, augment="none", transforms="random_resized_crop")
    config = ml_collections.ConfigDict()
    config.steps = SAMPLES // args.batch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("CoCa-B-16")
    config.model.remat = "full"
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train,
        args.val,
        tokenizer="openai/clip-vit-base-patch16",
        transforms=plugin_entries(args.transforms, random_resized_crop={"scale": (0.9, 1.0)}),
    )
    config.objective = {"name": "caption"}
    config.optimizer = {"learning_rate": 1e-3, "warmup_steps": 10_000, "weight_decay": 0.2, "b2": 0.98}
    config.mesh = {"data": -1}
    config.log = {"every_steps": 100}
    config.eval = evaluation("retrieval" if args.val else "none", batch_size=args.batch, every_steps=10_000)
    config.checkpoint = {"every_steps": 2000}
    return config
