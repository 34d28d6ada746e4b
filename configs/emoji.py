"""The second quickstart: real pictures with human-written names, measured in a style that training never saw.

``mmjax data fetch emoji --output=data/emoji --held-out=twitter`` makes the data. Captions are an emoji's name, its name
with keywords, and a sentence with its classes; queries are names. The last checkpoint is measured on the splits
``style`` (known emoji in the held-out style), ``style_val`` (in a third style), ``test`` (unseen emoji) and ``both``.

Arguments: ``path=DIR`` (of the data), ``model=NAME`` (a preset), ``tokenizer=NAME`` (``word``, or ``bpe``, which also
knows the words of unseen names), ``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``, ``modalities=image[+STYLE]``
(further seen styles beside the first one's pictures, as aligned views of one emoji; ``cutswitch`` needs them).
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, path="data/emoji", model="scenes-tiny", tokenizer="word", augment="none", transforms="none",
        modalities="image",
    )  # fmt: skip
    modalities = tuple(args.modalities.split("+"))
    aligned = {"path": f"{args.path}/aligned_train.csv"} if len(modalities) > 1 else {}
    config = ml_collections.ConfigDict()
    config.steps = 1200
    config.batch_size = 64
    config.model = args.model
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {
            "name": "tables",
            "path": f"{args.path}/{{split}}.csv",
            "caption_columns": ("name",),
            "id_column": "hexcode",  # pictures of one emoji are positives of each other
        },
        "train": {"caption_columns": ("name", "keywords", "caption"), **aligned},
        "evaluation": {
            "label_column": "subgroup",
            "class_names": f"{args.path}/classes_subgroup.txt",
            "templates": ("an emoji of {}",),
        },
        "tokenizer": {"name": args.tokenizer},
        "transforms": plugin_entries(args.transforms),
        "modalities": modalities,
    }
    config.optimizer = small_optimizer()
    config.log = {"every_steps": 20}
    config.eval = {
        "every_steps": 300,
        "final_splits": ("style", "style_val", "test", "both"),
        "final_tasks": ("retrieval", "zeroshot"),
    }
    config.checkpoint = {"every_steps": 600}
    return config
