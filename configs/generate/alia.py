"""Pictures edited into settings that a language model names, filtered by what they still show (ALIA, arXiv:2305.16289).

The data needs classes. Arguments: ``backend=scenes|hf|openai``, ``subject=bird``, ``mode=image|instruct``, ``n=N``.
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", subject="thing", mode="image", n=2)
    image = {"strength": 0.6, "guidance": 7.5} if args.mode == "image" else {"guidance": 5.0, "image_guidance": 1.3}
    config = ml_collections.ConfigDict()
    roles = ("captioner", "writer", "image_generator", "scorer", "labeler")
    editor = {} if args.mode == "image" else {"model": "timbrooks/instruct-pix2pix"}
    config.models = models(args.backend, *roles, image_generator=editor)
    config.stages = (
        ("caption", {}),
        ("repeat", {"most": 5}),
        ("domains", {"subject": args.subject, "sample": 20, "count": 10}),
        ("edit", {"mode": args.mode, "n": args.n, **image}),
        ("semantic", {}),
        ("classify", {}),
        ("confidence", {}),
    )
    return config
