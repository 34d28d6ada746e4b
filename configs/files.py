"""Your own pictures and captions: tar shards, a table, a COCO or Flickr file, a folder, TFDS; what it is, is found out.

Arguments: ``train=PATH``, ``val=PATH`` (left out: no evaluation), ``model=NAME``, ``batch=N`` (global),
``steps=N``, ``tokenizer=NAME`` (``bpe``, trained on the captions, a folder, or a name on the hub),
``precision=float32|bfloat16``, ``augment=NAME[+NAME]`` (in the compiled step), ``transforms=NAME[+NAME]`` (on
pictures, captions and rows).
"""

import ml_collections
from common import evaluation, paired_data, parse_arguments, plugin_entries

from mmjax.models import presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, train="", val="", model="ViT-B-32", batch=256, steps=10_000, tokenizer="bpe", precision="float32",
        augment="none", transforms="none",
    )  # fmt: skip
    config = ml_collections.ConfigDict()
    config.steps = args.steps
    config.batch_size = args.batch
    config.precision = args.precision
    config.model = presets.load(args.model)
    config.augment = plugin_entries(args.augment)
    config.data = paired_data(
        args.train, args.val, tokenizer=args.tokenizer, transforms=plugin_entries(args.transforms)
    )
    sigmoid = config.model.init_logit_bias is not None
    config.objective = {"name": "sigmoid" if sigmoid else "contrastive"}
    config.optimizer = {
        "learning_rate": 5e-4,
        "b2": 0.98,
        "weight_decay": 0.2,
        "warmup_steps": min(500, args.steps // 10),
    }
    config.eval = evaluation("retrieval" if args.val else "none", batch_size=args.batch, every_steps=1000)
    config.checkpoint = {"every_steps": 1000}
    return config
