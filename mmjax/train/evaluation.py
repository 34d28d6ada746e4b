"""Which evaluators an experiment runs, when, and under which names their metrics appear."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import pyarrow as pa

from mmjax.core.config import ConfigError, bind, build, call
from mmjax.core.state import Params
from mmjax.data.clusters.table import make_table
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.captions.writer import CaptionWriter
from mmjax.evals.common.embedder import BoundEmbedder, Embedder
from mmjax.evals.common.metric_names import load_evaluator, prefix_of, tasks_of_splits
from mmjax.evals.common.pair_scores import Matcher
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
from mmjax.evals.labels.reader import LabelReader
from mmjax.experiment import EvalConfig, Experiment
from mmjax.inference.captioning import Captioner
from mmjax.inference.decoding import DecodingConfig
from mmjax.inference.neighbors import find_neighbors
from mmjax.models.attention.grad_cam import grad_cam
from mmjax.models.clip import Clip
from mmjax.models.fusion import answer_pairs, embed_image_tokens, embed_text_tokens, match_pairs
from mmjax.models.vision.recognizer import read_labels
from mmjax.train import data as train_data
from mmjax.train.program import Program
from mmjax.train.step import merge

logger = logging.getLogger(__name__)


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
            self._suite = find_suite(
                config.suite,
                config.root,
                {},
                defaults=config.options,
                keys=("eval.suite", "eval.root"),
                heads=self.embedder.heads,
                answers=self.embedder.answers,
            )
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
    embedder = _make_embedder(experiment, program, tokenizer)
    return Evaluation(experiment.eval, embedder, functools.partial(train_data.open_eval_split, experiment))


def _make_embedder(experiment: Experiment, program: Program, tokenizer: Tokenizer) -> Embedder:
    """Both towers for evaluation, and what the model has beside them: a fusion encoder, a decoder, a recognizer."""
    model = experiment.model
    fusion, vision, recognizer = model.fusion, model.vision_cfg, model.recognizer
    rebuild = functools.partial(merge, program.graph)

    def with_params(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *rows: run(rebuild(params), *rows)

    def make_writer(**decoding: Any) -> CaptionWriter:
        config = build(DecodingConfig, decoding, path="decoding")
        return Captioner(rebuild, tokenizer, config).writer()

    def explain(model: Clip, image: jax.Array, tokens: jax.Array) -> jax.Array:
        pairs = image, embed_text_tokens(model, tokens), tokens
        return grad_cam(model.fusion, *pairs)[:, vision.class_token + vision.registers :]

    encode, answer = with_params(embed_image_tokens), with_params(answer_pairs)
    matcher = None
    answers = tuple(getattr(program.objective, "answers", ()))
    if fusion is not None and fusion.images == 2:
        matcher = Matcher(encode, match=None, answer_pair=answer, answers=answers, modalities=vision.modalities)
    elif fusion is not None:
        maps = with_params(explain) if fusion.kind == "cross" else None
        pairs = with_params(match_pairs)
        matcher = Matcher(encode, pairs, answer if fusion.answers else None, grad_cam=maps, answers=answers)
    label_reader = None
    if recognizer is not None:
        label_reader = LabelReader(with_params(read_labels), tuple(recognizer.labels), field=experiment.data.labels)
    modalities = train_data.eval_modalities(experiment)
    return Embedder(
        with_params(Clip.encode_image),
        with_params(Clip.encode_text),
        tokenizer=tokenizer,
        batch_size=experiment.eval.batch_size,
        row_sharding=program.row_sharding,
        modalities=modalities[:1] if vision.fusion == "views" else modalities,
        num_threads=train_data.count_threads(experiment.data),
        matcher=matcher,
        make_writer=make_writer if model.decoder else None,
        takes_some=vision.fusion in ("gated", "tokens"),
        label_reader=label_reader,
    )
