"""ViLT-B/32 from scratch: patches and words in one transformer of twelve layers, without towers.

Slice: v5e:8x16 (128 chips, 32 images each).

200,000 steps at batch 4,096, images of 384 pixels in patches of 32, texts of 40 tokens, learning rate 1e-4, weight
decay 0.01, betas 0.9 and 0.98, and words masked at 15 % are ViLT's (arXiv:2102.03334, section 4.2, ``vilt/config.py``
of the released code). The paper warms up over a tenth of the steps and masks whole words; the code, as here, over 2,500
steps, and masks tokens.

Our own choices: bfloat16; pictures squashed to a square, where ViLT keeps their shape (384 by up to 640); a cosine in
place of its straight line down to zero; a false text and a false image for each pair, where ViLT replaces the image of
half of the pairs; no word-patch alignment (its weight is 0.1) and no dropout; and how often it is evaluated and saved.
ViLT starts from an ImageNet ViT-B/32; here all starts from nothing.

Arguments: ``train=PATH`` (as ``/data/pairs/{00000..01019}.tar``), ``val=PATH`` (left out: no evaluation), ``batch=N``
(global), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]`` (ViLT's ``randaugment``, MixGen's ``mixgen``).
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

SAMPLES = 200_000 * 4096
BERT = "google-bert/bert-base-uncased"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, train="", val="", batch=4096, augment="none", transforms="resize_crop+randaugment")
    config = ml_collections.ConfigDict()
    config.steps = SAMPLES // args.batch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("ViLT-B-32")
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train,
        args.val,
        tokenizer=BERT,
        transforms=plugin_entries(args.transforms, resize_crop={"mode": "squash", "resample": "fast"}),
    )
    config.objective = {"name": "fusion", "contrastive_weight": 0.0, "negatives": "random"}
    config.optimizer = {
        "learning_rate": 1e-4,
        "warmup_steps": 2500,
        "weight_decay": 0.01,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-8,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 50}
    config.eval = evaluation("retrieval" if args.val else "none", batch_size=args.batch, every_steps=10_000)
    config.checkpoint = {"every_steps": 2000}
    return config
