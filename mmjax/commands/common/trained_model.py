"""A trained model with the evaluators of its run, from a checkpoint or from anybody's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.checkpoints.fingerprint import fingerprint
from mmjax.checkpoints.manager import Checkpoints, StepSelector
from mmjax.core.config import ConfigError
from mmjax.core.state import Params, flatten
from mmjax.data.open_source import open_source
from mmjax.data.source import Source
from mmjax.evals.common.base import Base as Evaluator
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.metric_names import prefix_of, tasks_of_splits
from mmjax.evals.common.suite import DataSet, check_head, make_evaluator
from mmjax.experiment import EvalConfig, Experiment
from mmjax.inference.loading import load
from mmjax.models.config import with_tokenizer
from mmjax.parallel.mesh import MeshConfig
from mmjax.runs import folder as run_folder
from mmjax.runs.start_weights import checkpoint_of, find_run
from mmjax.train import data as train_data
from mmjax.train.evaluation import Evaluation, make_evaluation
from mmjax.train.program import Program

DEFAULT_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model and its evaluators, on whatever devices there are.

    Attributes:
        name: What the user called it.
        evaluation: Evaluators over its towers.
        params: Its parameters.
        experiment: That of its run, if it is of one.
    """

    name: str
    evaluation: Evaluation
    params: Params
    experiment: Experiment | None = None

    def bind(self) -> BoundEmbedder:
        """What evaluators call, without any embeddings yet."""
        return self.evaluation.embedder.bind(self.params)

    def fingerprint(self) -> str:
        """SHA-256 of the parameters."""
        return fingerprint({path: np.asarray(leaf) for path, leaf in flatten(self.params).items()})

    def own_data_sets(self, tasks: Sequence[str] | None, splits: Sequence[str]) -> list[DataSet]:
        """The splits of the run's own data with the evaluators of its configuration, unless others are named."""
        if self.experiment is None:
            raise ConfigError(f"--path: is missing, and {self.name!r} is no run with data of its own; give --path=PATH")
        config = self.experiment.eval
        return [
            DataSet(prefix_of(task, split), task, config.options.get(task, {}), split)
            for split, own in tasks_of_splits(
                config.final_tasks if tasks is None else tasks, splits or config.final_splits
            )
            for task in own
        ]

    def make_evaluator(self, data_set: DataSet) -> Evaluator:
        """The evaluator of one data set."""
        if data_set.split is not None:
            return self.evaluation.evaluator(data_set.task, data_set.split)
        check_head(data_set.task, self.evaluation.embedder.heads, path=data_set.name)
        return make_evaluator(data_set, self.evaluation.open_source)


def open_model(spec: str, *, options: Mapping[str, Mapping[str, Any]], batch_size: int | None = None) -> TrainedModel:
    """A trained model for evaluation.

    Args:
        spec: What ``mmjax.load`` takes; of a run folder the checkpoint that ``eval.weights`` says, if none is named.
        options: Of evaluators, in place of those of the run's configuration.
        batch_size: Rows of a batch; None: that of the run, and 64 for weights of others.
    """
    if (workdir := find_run(spec)) is not None:
        return open_checkpoint(workdir, step=checkpoint_of(spec, default=None), options=options, batch_size=batch_size)
    model = load(spec, batch_size=batch_size or DEFAULT_BATCH_SIZE, devices=jax.devices())

    def open_split(split: str, section: Mapping[str, Any]) -> Source:
        if "name" not in section:
            raise ConfigError(f"source: is missing, and {spec!r} is no run with data of its own; name one")
        return model.view(open_source(section, split=split, modalities=(model.modality,), path="source"))

    config = EvalConfig(options=options)
    return TrainedModel(name=spec, evaluation=Evaluation(config, model.embedder(), open_split), params=model.params)


def open_checkpoint(
    workdir: str | Path,
    *,
    step: StepSelector | None,
    options: Mapping[str, Mapping[str, Any]],
    batch_size: int | None = None,
) -> TrainedModel:
    """A checkpoint of a run folder, with the run's data, for evaluation.

    Args:
        workdir: The run folder.
        step: A step, ``last`` or ``best``; None: what ``eval.weights`` says.
        options: As in ``open_model``.
        batch_size: As in ``open_model``.
    """
    experiment = Experiment.from_dict(run_folder.read_config(workdir))
    config = experiment.eval
    step = config.weights if step is None else step
    # The mesh that the run was trained on may not fit these devices, nor its batches. Evaluation only splits batches,
    # and the embedding of a row does not depend on the others.
    devices = jax.device_count()
    merged = {task: {**config.options.get(task, {}), **options.get(task, {})} for task in {*config.options, *options}}
    size = -(-(batch_size or config.batch_size) // devices) * devices
    config = dataclasses.replace(config, batch_size=size, options=merged)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(), batch_size=devices, micro_batches=1, eval=config)
    saving = experiment.checkpoint
    checkpoints = Checkpoints(workdir, directory=saving.directory, best=saving.best, read_only=True)
    context_length = experiment.model.text_cfg.context_length
    tokenizer = train_data.load_run_tokenizer(workdir, context_length=context_length)
    experiment = dataclasses.replace(experiment, model=with_tokenizer(experiment.model, tokenizer))
    program = Program(experiment)
    ema = experiment.optimizer.ema_decay > 0
    params = checkpoints.restore_params(program.abstract_state.params, step=step, ema=ema)
    checkpoints.close()
    evaluation = make_evaluation(experiment, program, tokenizer)
    return TrainedModel(name=f"{workdir}@{step}", evaluation=evaluation, params=params, experiment=experiment)
