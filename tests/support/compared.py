"""Run folders as training leaves them, with recorded metrics in place of a training."""

import dataclasses
import json
from pathlib import Path

from mmjax.commands.comparing.recipes import Recipe
from mmjax.commands.comparing.runs import ComparedRun


def write_run(run: ComparedRun, workdir: Path, *, curve: dict[int, float], final: dict[str, float]) -> Path:
    """A finished run with ``val/rsum`` at some steps and its last measurements."""
    folder = run.folder(workdir)
    experiment = run.experiment()
    (folder / "checkpoints" / str(experiment.steps)).mkdir(parents=True)
    text = dataclasses.replace(experiment.model.text_cfg, vocab_size=99, pad_id=0, eos_id=2)  # as of a tokenizer
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, text_cfg=text))
    (folder / "config.json").write_text(json.dumps(experiment.to_dict()))
    (folder / "report.html").write_text("")
    lines = [{"step": step, "val/rsum": value, "train/loss": 1 / step} for step, value in curve.items()]
    lines.append({"step": experiment.steps, "final/weights_of_step": float(experiment.steps)} | final)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(name: str, spec: str, **own: str) -> Recipe:
    """A recipe with overrides (``optimizer__learning_rate="1e-9"``)."""
    return Recipe(name=name, spec=spec, own=tuple((key.replace("__", "."), value) for key, value in own.items()))
