"""Sequences of features against captions, on scenes told in signs: XmDA, TMMDA and mixup beyond images, in a minute.

An example is a sequence of 16 features a frame, two to four frames for each of its glosses, with noise. Arguments:
``objective=contrastive|ctc``, ``augment=NAME[+NAME]``, ``world=easy|standard|full``, ``images=N`` (sequences for
training), ``steps=N``. With ``objective=ctc`` the tower also learns to name the glosses, which ``sequence_labels``
measures. With ``augment=xmda`` the alignment is CTC's, as in the paper.
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer

from mmjax.core.config import choose
from mmjax.data.scenes.signs import GLOSSES
from mmjax.models import presets

MOST_GLOSSES = 9  # four for each of two things, and their relation
FRAMES = 4 * MOST_GLOSSES


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, objective="contrastive", augment="none", world="standard", images=2048, steps=400)
    config = ml_collections.ConfigDict()
    config.steps = args.steps
    config.batch_size = 64
    config.model = presets.load("scenes-tiny")
    config.model.vision_cfg.update(
        stem="frames", max_frames=FRAMES, stem_widths=(), class_token=False, pool_type="avg",
        pos_embed_type="learnable", modalities=("frames",), modality_channels=(16,),
    )  # fmt: skip
    config.objective = {"name": choose(args.objective, ("contrastive", "ctc"), path="objective")}
    config.augment = plugin_entries(args.augment, xmda={"alignment": "ctc"})
    config.data = {
        "source": {"name": "scenes", "world": args.world},
        "train": {"size": args.images},
        "tokenizer": {"name": "word"},
        "modalities": ("frames",),
    }
    config.optimizer = small_optimizer()
    config.log = {"every_steps": 20}
    config.eval = {"every_steps": args.steps, "final_splits": ("val", "test")}
    if args.objective == "ctc":
        config.model.recognizer = {"labels": GLOSSES, "max_labels": MOST_GLOSSES}
        config.eval["final_tasks"] = ("retrieval", "zeroshot", "pairwise", "winoground", "sequence_labels")
    config.checkpoint = {"every_steps": args.steps}
    return config
