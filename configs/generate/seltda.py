"""Questions and answers that a teacher writes for pictures without any (SelTDA, arXiv:2306.03932), as statements.

The scores that take out statements no better than their wrong answer are ours; ``filtered=0`` leaves them out, as the
paper does. Arguments: ``backend=scenes|hf|mmjax``, ``run=SPEC`` (of ``mmjax``: a decoder that was trained on questions
with answers), ``n=N`` (questions a picture), ``most=N`` (pictures), ``filtered=0|1``.
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", run="", n=2, most=34000, filtered=1)
    config = ml_collections.ConfigDict()
    # A teacher that was trained on a few questions; this captioner has not seen any.
    teacher = {"model": "Salesforce/blip-image-captioning-base"}
    roles = ("captioner", "scorer") if args.filtered else ("captioner",)
    config.models = models(args.backend, *roles, run=args.run, captioner=teacher)
    config.stages = (
        ("ask", {"n": args.n, "top_p": 0.9, "min_tokens": 5, "max_tokens": 30}),
        ("statements", {}),
        *((("score", {}), ("score_gap", {"doubtful": True})) if args.filtered else ()),
        ("take", {"most": args.most, "originals": False}),
    )
    return config
