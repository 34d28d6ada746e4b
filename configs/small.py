"""A ViT-S/16 and DistilBERT with low-rank adapters, for tens of thousands of pictures on one card.

The image tower starts from augreg's weights (arXiv:2106.10270), a file that anybody can fetch from
``gs://vit_models/augreg``; the text tower from DistilBERT (arXiv:1910.01108), on the Hugging Face hub. Both projections
are new and train as a whole, as the temperature does. All else keeps its bits beside adapters (LoRA, arXiv:2106.09685).

Rank 4 on all linear maps of both towers' blocks and on the patch embedding is TSVLC's choice (arXiv:2211.11733, and its
code). Our own choices: a scale of 1, batch, epochs, learning rate, weight decay, warm-up, texts of 64 tokens of which
the first is pooled, bfloat16, and to keep the best by recall. ``--config.model=init`` takes towers of other sizes.

Arguments: ``train=PATH``, ``val=PATH`` (left out: that one's own splits), ``vision=SPEC``, ``text=SPEC``, ``rank=N``
(0: all parameters train), ``images=N`` (in an epoch; by default those of Flickr30k, Karpathy's split), ``batch=N``
(global), ``epochs=N``, ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``.
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

AUGREG = "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz"
DISTILBERT = "distilbert/distilbert-base-uncased"
HALF = (0.5, 0.5, 0.5)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, train="", val="", vision=AUGREG, text=DISTILBERT, rank=4, images=29_000, batch=256, epochs=30,
        augment="none", transforms="random_resized_crop+flip",
    )  # fmt: skip
    epoch = max(args.images // args.batch, 1)
    config = ml_collections.ConfigDict()
    config.steps = args.epochs * epoch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.init = {"vision": args.vision, "text": args.text}
    config.lora = {
        "rank": args.rank,
        "targets": (".*/blocks/.*", "visual/patch_embed/.*"),
        "train": ("(visual|text)/proj/.*", "logit_scale"),
    }
    config.model = presets.load("ViT-S-16")
    config.model.vision_cfg.update(
        patch_bias=True, no_ln_pre=True, activation="gelu_tanh", ln_eps=1e-6, image_mean=HALF, image_std=HALF,
        image_resize="squash",
    )  # fmt: skip
    config.model.text_cfg.update(
        width=768, heads=12, layers=6, context_length=64, num_positions=512, vocab_size=30522, ln_eps=1e-12,
        block_norm="post", embed_norm=True, no_causal_mask=True, mask_padding=True, pool_type="first",
    )  # fmt: skip
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train, args.val, tokenizer=args.text,
        transforms=plugin_entries(args.transforms, random_resized_crop={"scale": (0.5, 1.0)}),
    )  # fmt: skip
    config.objective = {"name": "contrastive"}
    config.optimizer = {
        "learning_rate": 5e-4,
        "warmup_steps": epoch,
        "weight_decay": 0.1,
        "b2": 0.98,
        "clip_norm": 1.0,
    }
    config.log = {"every_steps": 20}
    config.eval = evaluation("retrieval", batch_size=args.batch, every_steps=epoch, final_splits=["test"])
    config.eval.weights = "best"
    config.checkpoint = {"every_steps": epoch, "best": "val/mean_recall@1"}
    return config
