"""Questions and statements about scenes, classified with a fusion encoder, in minutes on two cores.

``task=questions`` asks for color, shape, texture, size, existence and the background (as VQA), ``task=entailment`` says
something of the picture that follows from it, contradicts it or is left open (as SNLI-VE), and ``task=pairs`` something
of two pictures that is true or false (as NLVR2). All come from the scene graph. Each answer of a kind is as frequent as
the others, so neither the text nor the picture alone says it. Entailment is learned beside the hidden words of its
statements: a label depends on shape and value together, and labels alone leave the loss at ln 3 for 3,000 steps. Hidden
words say what pictures show, as in the pretraining that comes before SNLI-VE. The controls see one side alone:
``hidden=image`` has gray pictures, ``hidden=question`` one text for all.

Arguments: ``task=questions|entailment|pairs``, ``kind=cross|joint`` (text attends to the image, or both are one
sequence), ``hidden=nothing|image|question``, ``transforms=NAME[+NAME]``, ``augment=NAME[+NAME]``,
``world=easy|standard|full``, ``images=N`` (for training), ``steps=N``.
"""

import ml_collections
from common import parse_arguments, plugin_entries, small_optimizer

from mmjax.core.config import choose
from mmjax.data.scenes.questions import ANSWERS
from mmjax.data.scenes.statements import ENTAILMENT_LABELS, PAIR_LABELS
from mmjax.models import presets

TASKS = {
    "questions": (ANSWERS, "vqa"),
    "entailment": (ENTAILMENT_LABELS, "snli_ve"),
    "pairs": (PAIR_LABELS, "nlvr2"),
}
"""Answers and evaluator."""


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg,
        task="questions",
        kind="cross",
        hidden="nothing",
        transforms="none",
        augment="none",
        world="standard",
        images=16384,
        steps=3000,
    )
    config = ml_collections.ConfigDict()
    answers, evaluator = TASKS[choose(args.task, TASKS, path="task")]
    config.steps = args.steps
    config.batch_size = 64
    config.model = presets.load("scenes-tiny")
    kind = choose(args.kind, ("cross", "joint"), path="kind")
    config.model.fusion = {"kind": kind, "layers": 3, "word_head": "none", "answers": len(answers)}
    if args.task == "pairs":
        config.model.fusion["images"] = 2
        config.model.vision_cfg.modality_embed = False
    config.objective = {
        "name": "fusion",
        "contrastive_weight": 0.0,
        "matching_weight": 0.0,
        "words_weight": 0.0,
        "answers": answers,
    }
    if args.task == "entailment":
        config.model.fusion["word_head"] = "tied"
        config.objective.update(words_weight=1.0, words_rate=0.4)
    config.augment = plugin_entries(args.augment)
    config.data = {
        "source": {"name": "scenes", "world": args.world, "image_size": 32, "task": args.task, "hidden": args.hidden},
        "train": {"size": args.images},
        "tokenizer": {"name": "word"},
        "transforms": plugin_entries(args.transforms),
        "groups": ("answer",),
        "modalities": ("left", "right") if args.task == "pairs" else ("image",),
    }
    config.optimizer = small_optimizer(learning_rate=1e-3, warmup_steps=100)
    config.log = {"every_steps": 50}
    config.eval = {"every_steps": 1000, "tasks": (evaluator,), "final_tasks": (evaluator,)}
    config.checkpoint = {"every_steps": 1000}
    return config
