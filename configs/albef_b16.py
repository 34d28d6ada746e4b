"""ALBEF and TCL from scratch: a ViT-B/16, six layers of BERT for text and six that attend to the image.

Slice: v5e:4x8 (32 chips, 16 images each).

30 epochs of 5.1 million pairs at batch 512, images of 256 pixels, texts of 25 tokens, learning rate 1e-4 down to 1e-5
along a cosine, weight decay 0.02, words masked at 15 %, queues of 65,536, momentum 0.995 and distillation 0.4 reached
over the first epoch are ALBEF's (arXiv:2107.07651, section 3.5, and ``configs/Pretrain.yaml`` of the released code);
TCL's are the same (arXiv:2202.10401, section 4, and its ``configs/Pretrain.yaml``). Betas and eps are those of torch's
AdamW, which both run. The paper warms up over 1,000 steps, the code over 2,000, as here.

Our own choices: bfloat16; dropout of BERT's blocks is left out; RandAugment with all of its operations at magnitude 21
of 30, where the code has ten of them at 7 of 10; and how often it is evaluated and saved. ALBEF starts from DeiT-B/16
and BERT-base. ``vision=SPEC`` takes the image tower of any weights that mmjax reads; all else starts from nothing, as
no reader knows BERT's upper layers with cross-attention.

Arguments: ``method=albef|tcl``, ``train=PATH`` (as ``/data/pairs/{00000..01019}.tar``), ``val=PATH`` (left out: no
evaluation), ``vision=SPEC``, ``batch=N`` (global), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]`` (MixGen is
``transforms=random_resized_crop+flip+randaugment+mixgen``).
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.core.config import choose
from mmjax.models import presets

PAIRS = 5_100_000
EPOCHS = 30
BERT = "google-bert/bert-base-uncased"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg,
        method="albef",
        train="",
        val="",
        vision="",
        batch=512,
        augment="none",
        transforms="random_resized_crop+flip+randaugment",
    )
    epoch = max(PAIRS // args.batch, 1)
    config = ml_collections.ConfigDict()
    config.steps = EPOCHS * epoch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    if args.vision:
        config.init = {"vision": args.vision}
    config.model = presets.load("ALBEF-B-16")
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train,
        args.val,
        tokenizer=BERT,
        transforms=plugin_entries(
            args.transforms, random_resized_crop={"scale": (0.2, 1.0)}, randaugment={"num_ops": 2, "magnitude": 21}
        ),
    )
    config.objective = {
        "name": choose(args.method, ("albef", "tcl"), path="method"),
        "distillation_warmup_steps": epoch,
    }
    config.optimizer = {
        "learning_rate": 1e-4,
        "warmup_steps": 2000,
        "final_fraction": 0.1,
        "weight_decay": 0.02,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 50}
    config.eval = evaluation("retrieval" if args.val else "none", batch_size=args.batch, every_steps=epoch)
    config.checkpoint = {"every_steps": 2000}
    return config
