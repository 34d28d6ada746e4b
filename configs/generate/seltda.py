"""Questions and answers that a teacher writes for pictures without any (SelTDA, arXiv:2306.03932), as statements.

The scores that take out statements no better than their wrong answer are ours. Arguments: ``backend=scenes|hf``,
``n=N`` (questions a picture), ``most=N`` (pictures).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", n=2, most=34000)
    config = ml_collections.ConfigDict()
    # A teacher that was trained on a few questions; this captioner has not seen any.
    teacher = {"model": "Salesforce/blip-image-captioning-base"}
    config.models = models(args.backend, "captioner", "scorer", captioner=teacher)
    config.stages = (
        ("ask", {"n": args.n, "top_p": 0.9, "min_tokens": 5, "max_tokens": 30}),
        ("statements", {}),
        ("score", {}),
        ("score_gap", {"doubtful": True}),
        ("take", {"most": args.most, "originals": False}),
    )
    return config
