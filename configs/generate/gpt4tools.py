"""Dialogs in which an assistant calls tools for pictures (GPT4Tools, arXiv:2305.18752), in ``conversations.jsonl``.

Arguments: ``backend=scenes|hf|openai``, ``tools=N`` (of each picture).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", tools=2)
    config = ml_collections.ConfigDict()
    config.models = models(args.backend, "captioner", "detector", "writer")
    config.conversations = True
    config.stages = (
        ("caption", {}),
        ("detect", {}),
        ("tool_instructions", {"tools": args.tools, "temperature": 0.7}),
        ("dedup", {"dialogs": True}),
    )
    return config
