"""Captions that several teachers write from glosses (XmDA, arXiv:2305.11096), as further references of sequences.

Arguments: ``backend=scenes|rules|hf|openai``, ``teachers=N`` (each a section ``teacher_1``, …, so that they can be
different models), ``shots=N`` (pairs of glosses and text in a request), ``demos=NAME|FILE`` (those pairs, such as your
own training data), ``field=NAME`` (of the examples, with their glosses).
"""

import ml_collections
from common import models

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, backend="scenes", teachers=3, shots=6, demos="glosses", field="gloss")
    config = ml_collections.ConfigDict()
    teachers = [f"teacher_{number}" for number in range(1, args.teachers + 1)]
    config.models = {name: models(args.backend, "writer")["writer"] for name in teachers}
    asked = {
        "prompt": "xmda_translate", "demos": (args.demos,), "shots": args.shots, "field": args.field,
        "source": "translation", "temperature": 0.7, "top_p": 0.95, "max_tokens": 77,
    }  # fmt: skip
    config.stages = (
        *(("rewrite", {"model": name, **asked}) for name in teachers),
        ("uniform_caption", {"min_words": 1}),
    )
    config.captions = True
    return config
