"""SigLIP ViT-B/16 from scratch: the sigmoid loss, 9 billion samples at batch 32,768.

Slice: v5e:16x16 (256 chips, 128 images each).

Batch, samples, the two B towers, images of 224 pixels, b2 = 0.95, the scale of 10 and the bias of -10 at the start are
SigLIP's (arXiv:2303.15343, Sections 4.2, 4.7 and 4.9, Figure 2). That paper does not print its learning rate, weight
decay, clipping and warm-up; these are SigLIP 2's (arXiv:2502.14786, Section 2.1), with its Adam where SigLIP had
Adafactor. Matrices alone decay, which is the default of big_vision, where both were trained. Texts have 64 tokens, as
in the released models (Section 4.6); the experiments of Section 4.2 had 16. Our own choices: the data (WebLI is not
public; any large set of English pairs will do), bfloat16, pictures squashed to their size as in evaluation, captions as
they are (the released models' were lower-case and without punctuation), and how often it is evaluated and saved.

Arguments: ``train=PATH`` (as ``/data/pairs/{00000..41407}.tar``), ``val=PATH`` (left out: no evaluation),
``tasks=retrieval[+zeroshot]`` (with both, ``val`` holds ``{split}``, which becomes ``val`` and ``zeroshot``),
``batch=N`` (global), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``.
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets

SAMPLES = 9_000_000_000
WHOLE = {"mode": "squash", "resample": "fast"}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, train="", val="", tasks="retrieval", batch=32768, augment="none", transforms="resize_crop"
    )
    config = ml_collections.ConfigDict()
    config.steps = SAMPLES // args.batch
    config.batch_size = args.batch
    config.precision = "bfloat16"
    config.model = presets.load("ViT-B-16-SigLIP")
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train,
        args.val,
        tokenizer="timm/ViT-B-16-SigLIP",
        transforms=plugin_entries(args.transforms, resize_crop=WHOLE),
    )
    config.objective = {"name": "sigmoid"}
    config.optimizer = {
        "learning_rate": 1e-3,
        "warmup_steps": 20_000,
        "weight_decay": 1e-4,
        "weight_decay_pattern": ".*kernel",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 100}
    config.eval = evaluation(args.tasks if args.val else "none", batch_size=args.batch, every_steps=10_000)
    config.checkpoint = {"every_steps": 2000}
    return config
