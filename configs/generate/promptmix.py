"""Pictures drawn from changed captions, labeled by a large model, for a small one (PromptMix, IJCNN 2023).

Arguments: ``backend=scenes|hf|openai``, ``ratio=F`` (of made pictures to real ones).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", ratio=1.0)
    config = ml_collections.ConfigDict()
    config.models = models(args.backend, "captioner", "writer", "image_generator", "labeler", "scorer")
    asked = {"prompt": "promptmix_modify", "demos": ("modify",), "source": "edit", "sources": ("caption",)}
    config.stages = (
        ("caption", {}),
        ("rewrite", {**asked, "prompts": True}),
        ("edit", {"mode": "text", "sources": ("edit",)}),
        ("classify", {"caption": "a {}"}),
        ("semantic", {"positives": ("a {}",), "field": "predicted"}),
        ("score", {}),
        ("best_label", {}),
        ("take", {"ratio": args.ratio}),
    )
    return config
