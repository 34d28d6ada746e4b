"""Which evaluators an experiment runs, when, and under which names their metrics appear."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pyarrow as pa

from mmjax.checkpoints.fingerprint import fingerprint
from mmjax.checkpoints.manager import Checkpoints, StepSelector
from mmjax.core.config import ConfigError, bind, call
from mmjax.core.state import Params, flatten
from mmjax.data.clusters.table import make_table
from mmjax.data.open_source import open_source
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.common.base import Base
from mmjax.evals.common.embedder import BoundEmbedder, Embedder
from mmjax.evals.common.metric_names import load_evaluator, prefix_of, tasks_of_splits
from mmjax.evals.common.results import make_results, name_results, summarize
from mmjax.evals.common.suite import (
    DataSet,
    check_head,
    check_options,
    check_same_everywhere,
    find_suite,
    make_evaluator,
    measure,
    one_line,
)
from mmjax.experiment import EvalConfig, Experiment
from mmjax.inference.loading import load
from mmjax.inference.neighbors import find_neighbors
from mmjax.models.config import with_tokenizer
from mmjax.parallel.mesh import MeshConfig
from mmjax.runs import folder as run_folder
from mmjax.runs.start_weights import checkpoint_of, find_run
from mmjax.train import data as train_data
from mmjax.train.program import Program

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 64


class Evaluation:
    """The evaluators of an experiment, opened once, over towers compiled once."""

    def __init__(self, config: EvalConfig, embedder: Embedder, open_split: Callable[..., Source]):
        self._config = config
        self.embedder = embedder
        self._open_split = open_split
        self._evaluators: dict[tuple[str, str], Any] = {}
        self._sources: dict[tuple[str, str], Source] = {}
        self._bound: tuple[Params, BoundEmbedder] | None = None
        self._suite: list[DataSet] = []

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
        check_options(config.options, path="eval.options")  # also of those that only mmjax eval runs
        if config.suite:
            keys, heads = ("eval.suite", "eval.root"), self.embedder.heads
            self._suite = find_suite(config.suite, config.root, {}, defaults=config.options, keys=keys, heads=heads)
            check_same_everywhere(self._suite, path=f"eval.root={config.root}")

    def run_during(self, params: Params) -> dict[str, float]:
        """What is measured while training: ``val/rsum`` and the like."""
        return self.run(params, tasks=self._config.tasks, splits=[self._config.split])

    def run_final(self, params: Params) -> dict[str, float]:
        """What is measured at the end, the suite's data sets among it."""
        own = self.run(params, tasks=self._config.final_tasks, splits=self._config.final_splits)
        return own | self._run_suite(params)

    def _run_suite(self, params: Params) -> dict[str, float]:
        """The metrics of the suite by data set; one that cannot be measured is logged, and costs no other its turn."""
        results = []
        outcomes = measure(
            self._suite,
            make=lambda data_set: make_evaluator(data_set, self.open_source),
            embedder=lambda: self.embedder.bind(params),
        )
        for data_set, metrics, error, seconds in outcomes:
            if error is None:
                logger.info("%s (%s): %.1f s", data_set.name, data_set.task, seconds)
                results += make_results(data_set, metrics, model="", weights="")
            else:
                logger.warning("%s could not be measured by %s: %s", data_set.name, data_set.task, one_line(error))
        results = summarize(results)
        values = [np.nan if result.value is None else result.value for result in results]
        return dict(zip(name_results(results, data_sets=self._suite), values, strict=True))

    def run(self, params: Params, *, tasks: Sequence[str], splits: Sequence[str]) -> dict[str, float]:
        """The metrics of ``tasks`` on each split; retrieval's carry the split alone, others their own name too."""
        bound = self._bind(params)
        metrics: dict[str, float] = {}
        for split, tasks_of_split in tasks_of_splits(tasks, splits):
            for task in tasks_of_split:
                evaluator = self.evaluator(task, split)
                metrics |= {f"{prefix_of(task, split)}/{name}": value for name, value in evaluator(bound).items()}
        return metrics

    def neighbors(self, params: Params, *, split: str, kind: Literal["image", "text"], count: int) -> pa.Table:
        """The ``count`` nearest of each example of a split, by its image or its first caption, as a table.

        Examples without it, or whose embedding is not finite, are left out.
        """
        source = self.open_source(split)
        bound = self.embedder.bind(params)
        embeddings, items, indices, _ = bound.read(source)
        if kind == "text":
            captions = [next(filter(None, item["captions"]), "") for item in items]
            embeddings = bound.texts(captions)
            embeddings[[not caption for caption in captions]] = np.nan
        rows = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
        if len(rows) < 2:
            raise ConfigError(f"data.clusters.kind={kind!r}: {len(rows)} examples of {split!r} have an embedding")
        keys = [str(items[row].get("key", items[row]["id"])) for row in rows.tolist()]
        return make_table(keys, indices[rows], find_neighbors(embeddings[rows], count), examples=len(source))

    def panels(self, params: Params, *, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Validation images with the captions that the model retrieves for them, and captions with images."""
        if "retrieval" not in self._config.tasks:
            return [], []
        evaluator = self.evaluator("retrieval", self._config.split)
        bound = self._bind(params)
        rows = range(count)
        return evaluator.panel(bound, rows=rows), evaluator.caption_panel(bound, rows=rows)

    def grounding_panel(self, params: Params, *, count: int) -> list[dict[str, Any]]:
        """Where the model looks in the first pictures with boxes, if ``refcoco`` is measured at the end."""
        if "refcoco" not in self._config.final_tasks:
            return []
        evaluator = self.evaluator("refcoco", self._config.final_splits[0])
        return evaluator.panel(self._bind(params), rows=range(count))

    def evaluator(self, task: str, split: str) -> Any:
        """The evaluator of one task, made at its first use."""
        if (task, split) not in self._evaluators:
            evaluator = load_evaluator(task)
            check_head(task, self.embedder.heads, path="eval.tasks")
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
        injected = {"open_source": self.open_source} | ({} if split is None else {"split": split})
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
            self._bound = params, self.embedder.bind(params)
        return self._bound[1]

    def open_source(self, split: str, **options: Any) -> Source:
        """A split as the model sees it, of the experiment's data or of another source; opened once."""
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

    def make_evaluator(self, data_set: DataSet) -> Base:
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
        return open_run(workdir, step=checkpoint_of(spec, default=None), options=options, batch_size=batch_size)
    model = load(spec, batch_size=batch_size or DEFAULT_BATCH_SIZE, devices=jax.devices())

    def open_split(split: str, section: Mapping[str, Any]) -> Source:
        if "name" not in section:
            raise ConfigError(f"source: is missing, and {spec!r} is no run with data of its own; name one")
        return model.view(open_source(section, split=split, modalities=(model.modality,), path="source"))

    config = EvalConfig(options=options)
    return TrainedModel(name=spec, evaluation=Evaluation(config, model.embedder(), open_split), params=model.params)


def open_run(
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
    model = open_run(workdir, step=checkpoint, options={})
    assert model.experiment is not None
    config = model.experiment.eval
    tasks = config.final_tasks if tasks is None else tasks
    return model.evaluation.run(model.params, tasks=tasks, splits=splits or config.final_splits)
