"""Fine-tuning OpenAI's CLIP ViT-B/16 on the captions of COCO.

Slice: v5e:4x4 (16 chips, 16 images each).

Five epochs at batch 256: the plain control beside NegCLIP and its kind. The weights come from the Hugging Face hub, or
from a folder that ``init=PATH`` names.

Batch, learning rate, epochs and warm-up are NegCLIP's (arXiv:2210.01936, the command in the README of
github.com/mertyg/vision-language-models-are-bows, there a ViT-B/32 of OpenAI's on one GPU), weight decay, betas, eps
and no clipping of gradients the defaults of open_clip, which it runs. Our own choices: the B/16, an epoch in which each
picture comes once with a random one of its captions, bfloat16, and to keep the best by recall.

Arguments: ``train=PATH`` (Karpathy's ``dataset_coco.json`` beside its pictures), ``val=PATH`` (another file, left out:
that one's own splits), ``init=SPEC``, ``batch=N`` (global), ``epochs=N``, ``augment=NAME[+NAME]``,
``transforms=NAME[+NAME]``.
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

OPENAI = "openai/clip-vit-base-patch16"
IMAGES = 113_287  # Karpathy's train and restval


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, train="", val="", init=OPENAI, batch=256, epochs=5, augment="none", transforms="none")
    epoch = max(IMAGES // args.batch, 1)
    config = ml_collections.ConfigDict()
    config.steps = args.epochs * epoch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.init = args.init
    config.model = presets.load("ViT-B-16")
    for tower in ("vision_cfg", "text_cfg"):
        config.model[tower]["activation"] = "quick_gelu"  # as OpenAI trained it
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(args.train, args.val, tokenizer=OPENAI, transforms=plugin_entries(args.transforms))
    config.objective = {"name": "contrastive"}
    config.optimizer = {
        "learning_rate": 1e-6,
        "warmup_steps": 50,
        "weight_decay": 0.2,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-6,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 20}
    config.eval = evaluation("retrieval", batch_size=args.batch, every_steps=epoch, final_splits=["test"])
    config.eval.weights = "best"
    config.checkpoint = {"every_steps": epoch, "best": "val/mean_recall@1"}
    return config
