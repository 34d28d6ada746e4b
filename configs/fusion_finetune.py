"""ALBEF and ViLT fine-tuned to judge statements: NLVR2 (two pictures) and SNLI-VE (entailment).

ALBEF (``configs/NLVR.yaml`` and ``VE.yaml`` of the released code, on 8 GPUs as its README starts it): images of 384
pixels, learning rate 2e-5 down to 1e-6 along a cosine after one epoch of warm-up, weight decay 0.02, momentum 0.995 and
distillation 0.4 (for NLVR2 reached over the first epoch); NLVR2 10 epochs of 86,373 examples at 16 a GPU, SNLI-VE 5 of
529,527 at 32. ViLT (``vilt/config.py`` of its code, NLVR2 alone): learning rate 1e-4 after a tenth of the steps, weight
decay 0.01, betas 0.9 and 0.98, 10 epochs at 128.

Our own choices: bfloat16; warm-up from zero, where ALBEF's starts at half of the rate; ViLT's cosine in place of a
straight line; ViLT's head for both; no dropout; RandAugment as in ``albef_b16``, and with the flip drawn once for both
pictures; texts of as many tokens as in pretraining. ALBEF's further pretraining for pairs (text assignment) is left
out: give ``init=RUN`` of a pretraining, whose blocks are taken for both pictures.

Arguments: ``method=albef|vilt``, ``task=nlvr2|snli_ve``, ``init=RUN`` (left out: from scratch), ``train=PATH`` (as
``/data/nlvr2/data/train.json``), ``val=PATH`` (left out: no evaluation), ``images=DIR`` (that pictures are named from).
"""

import ml_collections
from common import evaluation, parse_arguments, plugin_entries

from mmjax.core.config import ConfigError, choose
from mmjax.data.sources.nlvr2 import LABELS as PAIR_LABELS
from mmjax.evals.snli_ve import LABELS as ENTAILMENT_LABELS
from mmjax.models import presets

BERT = "google-bert/bert-base-uncased"
TASKS = {  # answers, source, examples, epochs, batch, modalities
    "nlvr2": (PAIR_LABELS, "nlvr2", 86_373, 10, 128, ("left", "right")),
    "snli_ve": (ENTAILMENT_LABELS, "questions", 529_527, 5, 256, ("image",)),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, method="albef", task="nlvr2", init="", train="", val="", images="")
    task = choose(args.task, TASKS, path="task")
    albef = choose(args.method, ("albef", "vilt"), path="method") == "albef"
    if not albef and task != "nlvr2":
        raise ConfigError(f"task={task}: ViLT was not fine-tuned on it; use method=albef, or task=nlvr2")
    answers, source, examples, epochs, batch, modalities = TASKS[task]
    epoch = examples // batch
    config = ml_collections.ConfigDict()
    config.steps = epochs * epoch
    config.batch_size = batch
    config.precision = "bfloat16"
    if args.init:
        config.init = {"source": args.init}
    config.model = presets.load("ALBEF-B-16" if albef else "ViLT-B-32")
    config.model.vision_cfg.update(image_size=384, modality_embed=False)
    config.model.fusion.update(answers=len(answers), images=len(modalities), word_head="none")
    strong = {"num_ops": 2, "magnitude": 21, "modalities": modalities}
    crop = {"random_resized_crop": {"scale": (0.5, 1.0)}, "randaugment": strong}
    transforms = "random_resized_crop+flip+randaugment" if albef else "resize_crop"
    config.data = {
        "source": {"name": source, "path": args.train} | ({"image_root": args.images} if args.images else {}),
        "evaluation": {"path": args.val} if args.val else {},
        "transforms": plugin_entries(transforms, **crop, resize_crop={"mode": "squash", "resample": "fast"}),
        "tokenizer": {"name": BERT},
        "groups": ("answer",),
        "modalities": modalities,
    }
    config.objective = {
        "name": "fusion",
        "contrastive_weight": 0.0,
        "matching_weight": 0.0,
        "words_weight": 0.0,
        "answers": answers,
    }
    if albef:
        warmup = epoch if task == "nlvr2" else 0
        config.objective.update(momentum=0.995, distillation=0.4, distillation_warmup_steps=warmup)
    config.optimizer = {
        "learning_rate": 2e-5 if albef else 1e-4,
        "warmup_steps": epoch if albef else config.steps // 10,
        "final_fraction": 0.05 if albef else 0.0,
        "weight_decay": 0.02 if albef else 0.01,
        "b1": 0.9,
        "b2": 0.999 if albef else 0.98,
        "eps": 1e-8,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 50}
    config.eval = evaluation(task if args.val else "none", batch_size=batch, every_steps=epoch)
    config.checkpoint = {"every_steps": epoch}
    return config
