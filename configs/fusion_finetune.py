"""ALBEF and ViLT fine-tuned to judge statements (NLVR2, SNLI-VE), and ALBEF to find what expressions name (RefCOCO+).

ALBEF (``configs/NLVR.yaml``, ``VE.yaml`` and ``Grounding.yaml`` of the released code, on 8 GPUs as its README starts
it): images of 384 pixels, learning rate 2e-5 down to 1e-6 along a cosine after one epoch of warm-up, weight decay 0.02,
momentum 0.995 and distillation 0.4 (for NLVR2 reached over the first epoch); NLVR2 10 epochs of 86,373 examples at 16 a
GPU, SNLI-VE 5 of 529,527 at 32. ViLT (``vilt/config.py`` of its code, NLVR2 alone): learning rate 1e-4 after a tenth of
the steps, weight decay 0.01, betas 0.9 and 0.98, 10 epochs at 128.

RefCOCO+ is learned without boxes, by contrast with queues of 65,536 and matching, in which all expressions of a picture
are its own: 5 epochs of 120,191 expressions at 32 a GPU, learning rate 1e-5 down to 1e-6 without warm-up (the file's
starts at the rate itself), distillation reached over the first epoch, pictures squashed and never cropped. As in
the code the epoch that is best on val counts, given ``proposals``.

Our own choices: bfloat16; warm-up from zero, where ALBEF's starts at half of the rate; ViLT's cosine in place of a
straight line; ViLT's head for both; no dropout; RandAugment as in ``albef_b16``, and with the flip drawn once for both
pictures; texts of as many tokens as in pretraining. ALBEF's further pretraining for pairs (text assignment) is left
out: give ``init=RUN`` of a pretraining, whose blocks are taken for both pictures.

Arguments: ``method=albef|vilt``, ``task=nlvr2|snli_ve|refcoco``, ``init=RUN`` (left out: from scratch), ``train=PATH``
(as ``/data/nlvr2/data/train.json``, ``/data/refcoco+/refs(unc).p``), ``val=PATH`` (left out: no evaluation; of RefCOCO+
the same file), ``images=DIR`` (that pictures are named from), ``proposals=PATH`` (``dets.json`` of RefCOCO+).
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
    "refcoco": ((), "refcoco", 120_191, 5, 256, ("image",)),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, method="albef", task="nlvr2", init="", train="", val="", images="", proposals="")
    task = choose(args.task, TASKS, path="task")
    albef = choose(args.method, ("albef", "vilt"), path="method") == "albef"
    if not albef and task != "nlvr2":
        raise ConfigError(f"task={task}: ViLT was not fine-tuned on it; use method=albef, or task=nlvr2")
    if args.proposals and (task != "refcoco" or not args.val):
        raise ConfigError(
            f"proposals={args.proposals!r}: is for the evaluation of task=refcoco; set val, or leave it out"
        )
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
    options = {
        "random_resized_crop": {"scale": (0.5, 1.0)},
        "resize_crop": {"mode": "squash", "resample": "fast"},
        "randaugment": {"num_ops": 2, "magnitude": 21, "modalities": modalities},
    }
    crop = "random_resized_crop" if albef and answers else "resize_crop"
    transforms = f"{crop}+flip+randaugment" if albef else crop
    config.data = {
        "source": {"name": source, "path": args.train} | ({"image_root": args.images} if args.images else {}),
        "evaluation": {key: value for key, value in (("path", args.val), ("proposals", args.proposals)) if value},
        "transforms": plugin_entries(transforms, **options),
        "tokenizer": {"name": BERT},
        "groups": ("answer",) if answers else (),
        "modalities": modalities,
    }
    if answers:
        weights = {"contrastive_weight": 0.0, "matching_weight": 0.0, "words_weight": 0.0}
        config.objective = {"name": "fusion", **weights, "answers": answers}
    else:
        config.objective = {"name": "albef", "words_weight": 0.0}
    if albef:
        ramp = 0 if task == "snli_ve" else epoch
        config.objective.update(momentum=0.995, distillation=0.4, distillation_warmup_steps=ramp)
    if not albef:
        rate, last, warmup = 1e-4, 0.0, config.steps // 10
    else:
        rate, last, warmup = (2e-5, 1e-6, epoch) if answers else (1e-5, 1e-6, 0)
    config.optimizer = {
        "learning_rate": rate,
        "warmup_steps": warmup,
        "final_fraction": last / rate,
        "weight_decay": 0.02 if albef else 0.01,
        "b1": 0.9,
        "b2": 0.999 if albef else 0.98,
        "eps": 1e-8,
        "clip_norm": None,
    }
    config.mesh = {"data": -1}
    config.log = {"every_steps": 50}
    splits = ("val", "testA", "testB") if task == "refcoco" else ("val",)
    config.eval = evaluation(task if args.val else "none", batch_size=batch, every_steps=epoch, final_splits=splits)
    config.checkpoint = {"every_steps": epoch}
    if args.proposals:
        config.checkpoint["best"], config.eval["weights"] = "val/refcoco/accuracy", "best"
    return config
