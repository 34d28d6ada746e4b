"""Explanations of answers, with or without a plan, by which a student errs less (T-SciQ, arXiv:2305.03453).

Give both splits: ``--split=train,val``. Arguments: ``backend=scenes|hf|openai``, ``val=NAME`` (whose errors decide).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", val="val")
    config = ml_collections.ConfigDict()
    config.models = models(args.backend, "writer", "student")
    config.stages = (
        ("questions", {}),
        ("plans", {"demonstrations": 5}),
        ("rationales", {"method": "cot"}),
        ("rationales", {"method": "pcot"}),
        ("answers", {"splits": (args.val,)}),
        ("policy_mix", {"split": args.val}),
    )
    return config
