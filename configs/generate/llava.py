"""Conversations, descriptions and reasoning about pictures (LLaVA, arXiv:2304.08485), in ``conversations.jsonl``.

The descriptions are also captions. Arguments: ``backend=scenes|hf|openai``, ``count=N`` (questions of a conversation).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", count=3)
    config = ml_collections.ConfigDict()
    config.models = models(args.backend, "detector", "writer")
    config.conversations = True
    config.stages = (
        ("detect", {}),
        ("converse", {"role": "conversation", "count": args.count}),
        ("converse", {"role": "detail"}),
        ("converse", {"role": "reasoning", "count": 1}),
        ("dedup", {"dialogs": True}),
    )
    return config
