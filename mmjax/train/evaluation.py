"""Which evaluators an experiment runs, when, and under which names their metrics appear."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.checkpoints.manager import Checkpoints, StepSelector
from mmjax.core import plugins
from mmjax.core.state import Params
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import MeshConfig
from mmjax.runs import folder as run_folder
from mmjax.train import assemble
from mmjax.train.program import Program

FOLDER = "mmjax.evals"


class Evaluation:
    """The evaluators of an experiment, opened once, over towers compiled once."""

    def __init__(self, program: Program, tokenizer: Any):
        self._settings = program.experiment
        self._embedder = program.embedder(tokenizer, num_threads=assemble.threads(program.experiment.data))
        self._evaluators: dict[tuple[str, str], Any] = {}
        self._sources: dict[str, Any] = {}
        self._bound: tuple[Params, BoundEmbedder] | None = None

    def open(self) -> None:
        """Opens what training will measure on, so that a missing split is found before the first step."""
        settings = self._settings.eval
        for tasks, split in ((settings.tasks, settings.split), (settings.final_tasks, settings.final_split)):
            for task in tasks:
                self.evaluator(task, split)

    def during(self, params: Params) -> dict[str, float]:
        """What is measured while training: ``val/rsum`` and the like."""
        return self.run(params, tasks=self._settings.eval.tasks, split=self._settings.eval.split)

    def final(self, params: Params) -> dict[str, float]:
        """What is measured at the end."""
        return self.run(params, tasks=self._settings.eval.final_tasks, split=self._settings.eval.final_split)

    def run(self, params: Params, *, tasks: Sequence[str], split: str) -> dict[str, float]:
        """The metrics of ``tasks``; retrieval's carry the split alone, others their own name too."""
        bound = self._bind(params)
        metrics: dict[str, float] = {}
        for task in tasks:
            evaluator = self.evaluator(task, split)
            prefix = split if task == "retrieval" else task if evaluator.own_split else f"{split}/{task}"
            metrics |= {f"{prefix}/{name}": value for name, value in evaluator(bound).items()}
        return metrics

    def panels(self, params: Params, *, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Validation images with the captions that the model retrieves for them, and captions with images."""
        if "retrieval" not in self._settings.eval.tasks:
            return [], []
        evaluator = self.evaluator("retrieval", self._settings.eval.split)
        bound = self._bind(params)
        rows = range(count)
        return evaluator.panel(bound, rows=rows), evaluator.caption_panel(bound, rows=rows)

    def evaluator(self, task: str, split: str) -> Any:
        """The evaluator of one task, made at its first use."""
        if (task, split) not in self._evaluators:
            evaluator = plugins.load_class(FOLDER, "Evaluator", task, path="eval.tasks")
            options = {} if evaluator.own_split else {"split": split}
            self._evaluators[task, split] = evaluator(self._open, **options)
        return self._evaluators[task, split]

    def _bind(self, params: Params) -> BoundEmbedder:
        """The embedder of ``params``, and with it what was already embedded with these very arrays."""
        if self._bound is None or self._bound[0] is not params:
            self._bound = params, self._embedder.bind(params)
        return self._bound[1]

    def _open(self, split: str) -> Any:
        if split not in self._sources:
            self._sources[split] = assemble.open_view(self._settings, split)
        return self._sources[split]


def of_run(
    workdir: str | Path, *, which: StepSelector = "last", tasks: Sequence[str] | None = None, split: str | None = None
) -> dict[str, float]:
    """The metrics of a run folder's checkpoint, on whatever devices are here."""
    experiment = Experiment.from_dict(run_folder.read_config(workdir))
    settings = experiment.eval
    tasks = settings.final_tasks if tasks is None else tasks
    for task in tasks:
        plugins.check(FOLDER, task, path="--tasks")
    # The mesh that the run was trained on may not fit these devices, nor its batches; evaluation only splits them, and
    # a row's embedding does not depend on the others.
    devices = jax.device_count()
    settings = dataclasses.replace(settings, batch_size=-(-settings.batch_size // devices) * devices)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(), batch_size=devices, micro_batches=1, eval=settings)
    saved = experiment.checkpoint
    checkpoints = Checkpoints(workdir, directory=saved.directory, best=saved.best, read_only=True)
    tokenizer = assemble.saved_tokenizer(experiment, workdir)
    program = Program(experiment)
    ema = experiment.optimizer.ema_decay > 0
    params = checkpoints.restore_params(program.abstract_state.params, step=which, ema=ema)
    checkpoints.close()
    return Evaluation(program, tokenizer).run(params, tasks=tasks, split=split or settings.final_split)
