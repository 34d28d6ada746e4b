"""Which evaluators an experiment runs, when, and under which names their metrics appear."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.checkpoints.manager import Checkpoints, StepSelector
from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind, call
from mmjax.core.state import Params
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.common.embedder import BoundEmbedder, Embedder
from mmjax.evals.common.metric_names import FOLDER, load_evaluator, prefix_of, tasks_of_splits
from mmjax.experiment import EvalConfig, Experiment
from mmjax.models.config import with_tokenizer
from mmjax.parallel.mesh import MeshConfig
from mmjax.runs import folder as run_folder
from mmjax.train import data as train_data
from mmjax.train.program import Program

logger = logging.getLogger(__name__)


class Evaluation:
    """The evaluators of an experiment, opened once, over towers compiled once."""

    def __init__(self, config: EvalConfig, embedder: Embedder, open_split: Callable[..., Source]):
        self._config = config
        self._embedder = embedder
        self._open_split = open_split
        self._evaluators: dict[tuple[str, str], Any] = {}
        self._sources: dict[tuple[str, str], Source] = {}
        self._bound: tuple[Params, BoundEmbedder] | None = None

    def open(self) -> None:
        """Opens what training will measure on, so that a missing split is found before the first step."""
        config = self._config
        for task_key, tasks, split_key, splits in (
            ("eval.tasks", config.tasks, "eval.split", [config.split]),
            ("eval.final_tasks", config.final_tasks, "eval.final_splits", config.final_splits),
        ):
            for split, tasks_of_split in tasks_of_splits(tasks, splits):
                for task in tasks_of_split:
                    own = f"{task_key}={task!r}: split" if load_evaluator(task).own_split else split_key
                    call(self.evaluator, {"task": task, "split": split}, path="", paths={"split": own})

    def run_during(self, params: Params) -> dict[str, float]:
        """What is measured while training: ``val/rsum`` and the like."""
        return self.run(params, tasks=self._config.tasks, splits=[self._config.split])

    def run_final(self, params: Params) -> dict[str, float]:
        """What is measured at the end."""
        return self.run(params, tasks=self._config.final_tasks, splits=self._config.final_splits)

    def run(self, params: Params, *, tasks: Sequence[str], splits: Sequence[str]) -> dict[str, float]:
        """The metrics of ``tasks`` on each split; retrieval's carry the split alone, others their own name too."""
        bound = self._bind(params)
        metrics: dict[str, float] = {}
        for split, tasks_of_split in tasks_of_splits(tasks, splits):
            for task in tasks_of_split:
                evaluator = self.evaluator(task, split)
                metrics |= {f"{prefix_of(task, split)}/{name}": value for name, value in evaluator(bound).items()}
        return metrics

    def panels(self, params: Params, *, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Validation images with the captions that the model retrieves for them, and captions with images."""
        if "retrieval" not in self._config.tasks:
            return [], []
        evaluator = self.evaluator("retrieval", self._config.split)
        bound = self._bind(params)
        rows = range(count)
        return evaluator.panel(bound, rows=rows), evaluator.caption_panel(bound, rows=rows)

    def evaluator(self, task: str, split: str) -> Any:
        """The evaluator of one task, made at its first use."""
        if (task, split) not in self._evaluators:
            evaluator = load_evaluator(task)
            try:
                self._evaluators[task, split] = self._make(task, None if evaluator.own_split else split)
            except ConfigError as error:
                if not evaluator.any_split or "split" in self._config.options.get(task, {}):
                    raise
                self._evaluators[task, split] = self._of_any_split(task, split, error)
        return self._evaluators[task, split]

    def _make(self, task: str, split: str | None) -> Any:
        """An evaluator with its configured options, on ``split`` or on its own one."""
        evaluator, options, path = load_evaluator(task), self._config.options.get(task, {}), f"eval.options.{task}"
        if "split" in options and not evaluator.own_split:
            raise ConfigError(
                f"{path}.split={options['split']!r}: {task} measures eval.split and eval.final_splits; set these"
            )
        injected = {"open_source": self._source} | ({} if split is None else {"split": split})
        bound = bind(evaluator, options, path=path, injected=injected)
        return call(evaluator, bound, path=path, paths={} if "split" in options else {"split": "split"})

    def _of_any_split(self, task: str, split: str, error: ConfigError) -> Any:
        """The evaluator of ``task`` on ``split``, because its own split has that ``error``."""
        try:
            evaluator = self._make(task, split)
        except ConfigError as other:
            raise ConfigError(f"{error}; {other}") from None
        logger.info("%s is measured on %r (%s)", task, split, error)
        return evaluator

    def _bind(self, params: Params) -> BoundEmbedder:
        """The embedder of ``params``, and with it what was already embedded with these very arrays."""
        if self._bound is None or self._bound[0] is not params:
            self._bound = params, self._embedder.bind(params)
        return self._bound[1]

    def _source(self, split: str, **options: Any) -> Source:
        key = split, repr(sorted(options.items()))
        if key not in self._sources:
            self._sources[key] = self._open_split(split, options)
        return self._sources[key]


def make_evaluation(experiment: Experiment, program: Program, tokenizer: Tokenizer) -> Evaluation:
    """The evaluators of an experiment over the towers of ``program``."""
    modalities = train_data.eval_modalities(experiment)
    embedder = program.make_embedder(
        tokenizer,
        batch_size=experiment.eval.batch_size,
        modalities=modalities[:1] if experiment.model.vision_cfg.fusion == "views" else modalities,
        num_threads=train_data.count_threads(experiment.data),
    )
    return Evaluation(experiment.eval, embedder, functools.partial(train_data.open_eval_split, experiment))


def evaluate_run(
    workdir: str | Path,
    *,
    checkpoint: StepSelector = "last",
    tasks: Sequence[str] | None = None,
    splits: Sequence[str] = (),
) -> dict[str, float]:
    """The metrics of a checkpoint of a run folder, on whatever devices there are.

    Args:
      workdir: the run folder.
      checkpoint: a step, ``last`` or ``best``.
      tasks: evaluators; ``eval.final_tasks`` if left out.
      splits: ``eval.final_splits`` if left out.
    """
    experiment = Experiment.from_dict(run_folder.read_config(workdir))
    config = experiment.eval
    tasks = config.final_tasks if tasks is None else tasks
    for task in tasks:
        plugins.check(FOLDER, task, path="--tasks")
    # The mesh that the run was trained on may not fit these devices, nor its batches. Evaluation only splits batches,
    # and the embedding of a row does not depend on the others.
    devices = jax.device_count()
    config = dataclasses.replace(config, batch_size=-(-config.batch_size // devices) * devices)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(), batch_size=devices, micro_batches=1, eval=config)
    saving = experiment.checkpoint
    checkpoints = Checkpoints(workdir, directory=saving.directory, best=saving.best, read_only=True)
    context_length = experiment.model.text_cfg.context_length
    tokenizer = train_data.load_run_tokenizer(workdir, context_length=context_length)
    experiment = dataclasses.replace(experiment, model=with_tokenizer(experiment.model, tokenizer))
    program = Program(experiment)
    ema = experiment.optimizer.ema_decay > 0
    params = checkpoints.restore_params(program.abstract_state.params, step=checkpoint, ema=ema)
    checkpoints.close()
    evaluation = make_evaluation(experiment, program, tokenizer)
    return evaluation.run(params, tasks=tasks, splits=splits or config.final_splits)
