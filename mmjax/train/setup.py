"""What an experiment comes down to: its source, tokenizer, compiled program and batches, before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from mmjax.core.config import ConfigError, nearest
from mmjax.core.state import flatten
from mmjax.data import pictures
from mmjax.data.clusters.table import Clusters, read_clusters
from mmjax.data.pipeline import Batches
from mmjax.data.sample import Unreadable
from mmjax.data.sequences.labels import LabelSequences
from mmjax.data.source import Source
from mmjax.data.token_format import strip_special_tokens
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.transform_chain import TransformChain
from mmjax.experiment import DataConfig, Experiment
from mmjax.models.config import ClipConfig, with_tokenizer
from mmjax.parallel.host_memory import memory_bytes
from mmjax.runs.folder import CONFIG
from mmjax.runs.start_weights import check_init
from mmjax.train import data as train_data
from mmjax.train.optim import effective_warmup
from mmjax.train.program import Program

DECODED_CHANNELS = 3
SAMPLED = 512  # captions in which unknown words are counted, and examples of which labels or kinds are missing
MANY_UNKNOWN = 0.02
MEASURED = 64  # captions whose length is looked at: reading an example from a bucket takes a tenth of a second
MANY_CUT = 0.05
MANY_EPOCHS = 100  # three times as many as the recipes of configs/ have at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A resolved experiment: nothing after it needs to look anything up in configuration and data again.

    Attributes:
      experiment: with what its model section leaves open taken from the data.
      source: the training split.
      tokenizer: the run's own, or the one that ``data.tokenizer`` names or trains.
      program: the training step, the initial state and the encoders on a mesh.
      clusters: of the source, if batches are made of them.
    """

    experiment: Experiment
    source: Source
    tokenizer: Tokenizer
    program: Program
    clusters: Clusters | None = None

    def make_batches(self) -> Batches:
        """This process's rows of the training batches by step."""
        experiment = self.experiment
        return train_data.make_batches(
            experiment.data,
            self.source,
            self.tokenizer,
            image_size=experiment.model.vision_cfg.image_size,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            row_block=self.program.row_block,
            clusters=self.clusters,
            text_groups=self.program.objective.text_groups,
            labels=self.labels,
        )

    @property
    def labels(self) -> LabelSequences | None:
        """The sequences of labels that the objective reads, if it does."""
        return train_data.label_sequences(self.experiment.data, self.experiment.model, self.program.objective.modules)

    def advice(self) -> Iterator[str]:
        """What its user should know before the first step."""
        experiment, examples = self.experiment, len(self.source)
        steps, configured = experiment.steps, experiment.optimizer.warmup_steps
        if (warmup := effective_warmup(configured, steps=steps)) != configured:
            yield f"optimizer.warmup_steps={configured}: longer than the run (steps={steps}); it warms up for {warmup}"
        epochs = steps * experiment.batch_size / examples
        if epochs > MANY_EPOCHS and not self.source.components:
            fewer = max(MANY_EPOCHS * examples // experiment.batch_size, 1)
            yield (
                f"steps={steps}: each of the {examples:,} examples comes {epochs:,.0f} times, and a large model learns "
                f"them by heart; try steps={fewer} or a smaller model, and keep the best by validation "
                "(checkpoint.best, eval.weights='best')"
            )
        reads_groups = self.program.objective.text_groups == "example"
        if reads_groups and not experiment.data.groups:
            yield "data.groups=(): the objective compares groups, and all examples are of one; name fields that tell"
        if experiment.data.groups and not reads_groups:
            yield (
                f"data.groups={experiment.data.groups}: objective.name={experiment.objective.get('name')!r} reads no "
                "groups; use objective.name=fscl, or leave it out"
            )
        yield from _missing_clusters(experiment)
        yield from _unused_negatives(experiment, needed=self.program.objective.needs_negatives)
        yield from _missing_kinds(experiment.data, self.source, getattr(self.program.objective, "kinds", ()))
        yield from _missing_teacher(experiment, needed=self.program.objective.needs_teacher)
        yield from _unused_modules(experiment, self.program.objective.modules)
        if (labels := self.labels) is not None and (problem := _count_unlabeled(self.source, labels)):
            yield problem
        yield from _unpublished_targets(experiment)
        yield from self._cut_captions()
        if not self.tokenizer.has_unknown_words or not experiment.eval.tasks:
            return  # without tasks there need be no such split
        split = experiment.eval.split
        captions = itertools.islice(train_data.first_captions(train_data.open_eval_source(experiment, split)), SAMPLED)
        unknown = self.tokenizer.unknown_fraction(list(captions))
        if unknown > MANY_UNKNOWN:
            yield (
                f"data.tokenizer: {unknown:.0%} of the words of {split!r} are unknown to it; captions that differ in "
                "them alone look the same to the model; data.tokenizer.name=bpe has no unknown words"
            )

    def _cut_captions(self) -> Iterator[str]:
        """Which captions the text tower is too short for, those that transforms make of two among them."""
        experiment, config = self.experiment, self.experiment.model.text_cfg
        captions = list(itertools.islice(train_data.first_captions(self.source), MEASURED))
        if not captions:
            return
        key = f"model.text_cfg.context_length={config.context_length}"
        if (cut := float(np.mean(self.tokenizer.is_truncated(captions)))) > MANY_CUT:
            yield f"{key}: {cut:.0%} of the first captions of 'train' are longer, and lose their end; use a longer one"
        token_format = self.tokenizer.format
        length = strip_special_tokens(self.tokenizer(captions), token_format).length
        special = 1 + (token_format.bos_id is not None)
        joined = np.add.outer(length, length) + special  # of all pairs
        if (cut := float(np.mean(joined > config.context_length))) <= MANY_CUT:
            return
        size = experiment.model.vision_cfg.image_size
        chain = train_data.make_train_transforms(
            experiment.data, self.source, self.tokenizer, image_size=size, seed=experiment.seed
        )
        for name in chain.joins_captions:
            yield (
                f"{key}: {cut:.0%} of the captions that {name!r} makes of two of the first ones are longer, and lose "
                f"the end of the second one; use {joined.max()} or more"
            )


def setup(
    experiment: Experiment, *, workdir: str | Path | None = None, devices: Sequence[jax.Device] | None = None
) -> Setup:
    """Opens source and tokenizer, fits the model to them, and makes the program; writes and compiles nothing.

    Args:
      experiment: as configured.
      workdir: a run folder, whose tokenizer is used if it has one.
      devices: all that there are, if left out.

    Raises:
      ConfigError: if anything about the experiment cannot work, with the key and the way out.
    """
    data = experiment.data
    source = train_data.open_split(experiment, "train")
    tokenizer = train_data.open_tokenizer(
        data,
        source,
        context_length=experiment.model.text_cfg.context_length,
        workdir=None if workdir is None else Path(workdir),
    )
    clusters = None if data.clusters is None else read_clusters(data.clusters, source)
    if clusters is not None:  # its id goes into the run folder, so that a run resumes with the same neighbors alone
        data = dataclasses.replace(data, clusters=clusters.config)
    model = fit_model(experiment.model, data, source, tokenizer)
    experiment = dataclasses.replace(experiment, model=model, data=data)
    program = Program(experiment, devices=devices)
    check_memory(program)
    if workdir is None or not (Path(workdir) / CONFIG).exists():  # a run that goes on has its weights in a checkpoint
        check_init(experiment.init, experiment.model, flatten(program.abstract_state.params))
    return Setup(experiment=experiment, source=source, tokenizer=tokenizer, program=program, clusters=clusters)


def _missing_clusters(experiment: Experiment) -> Iterator[str]:
    """Why batches are random although ``data.clusters`` is set."""
    clusters, steps, size = experiment.data.clusters, experiment.steps, experiment.batch_size
    if clusters is None or not clusters.fraction:
        return
    if not clusters.clusters_at(steps - 1, batch_size=size):
        yield (
            f"data.clusters: not even the last of {steps} batches of {size} has a cluster of size={clusters.size}, as "
            f"{clusters.fraction_at(steps - 1):.1%} of it are clusters by then; use a smaller size or double_every"
        )
    elif clusters.path is None and clusters.last_refresh(steps - 1) is None:
        yield (
            f"data.clusters: all {steps} batches are random, as no neighbors are found before the last one; use a "
            "smaller refresh_every, or first_refresh=0"
        )


def _unused_negatives(experiment: Experiment, *, needed: bool) -> Iterator[str]:
    """What makes or wants hard negatives although batches have none."""
    data, way_out = experiment.data, "set data.negatives_per_image=1 or more"
    if data.negatives_per_image:
        return
    names = [name for name, _ in data.transforms]
    if data.negatives is not None and "caption_units" not in names:  # that takes captions from the table, too
        yield f"data.negatives.path={data.negatives.path!r}: none of them is trained on; {way_out}, or leave it out"
    for name in filter(TransformChain.makes_negatives, names):
        yield f"data.transforms: none of the negatives that {name!r} makes is trained on; {way_out}, or leave it out"
    if needed:
        yield f"objective.name={experiment.objective.get('name')!r}: batches have no false captions for it; {way_out}"


def _unpublished_targets(experiment: Experiment) -> Iterator[str]:
    """Which transforms have other targets than in their paper, unless the configuration chooses."""
    if "targets" in experiment.objective:
        return
    for name, _ in experiment.data.transforms:
        if (targets := TransformChain.published_targets(name)) is not None:
            yield (
                f"objective.targets='provenance', the default, gives {name!r} other targets than its paper, which has "
                f"{targets!r}; set one of them"
            )


def _missing_kinds(data: DataConfig, source: Source, wanted: tuple[str, ...]) -> Iterator[str]:
    """Which kinds of negatives the objective names and the first examples do not have."""
    if not wanted or not data.negatives_per_image or any(TransformChain.makes_negatives(n) for n, _ in data.transforms):
        return
    kinds: set[str] = set()
    examples = range(min(SAMPLED, len(source)))
    for index in examples:
        with contextlib.suppress(Unreadable):
            kinds.update(kind for kind, *_ in source.read(index).get("negatives", ()))
    for kind in wanted:
        if kind not in kinds:
            yield (
                f"objective.kinds={wanted}: none of the first {len(examples)} examples has negatives of the kind "
                f"{kind!r}; {nearest(kind, kinds)}"
            )


def _missing_teacher(experiment: Experiment, *, needed: bool) -> Iterator[str]:
    if needed and experiment.data.teacher is None:
        name = experiment.objective.get("name")
        yield f"objective.name={name!r}: there is no teacher, so it is 'contrastive'; set data.teacher.path"


def _unused_modules(experiment: Experiment, trained: Collection[str]) -> Iterator[str]:
    """Which of the model's modules, and ``data.labels``, the objective does not read."""
    name = experiment.objective.get("name")
    for module, objective in (("decoder", "caption"), ("fusion", "albef"), ("recognizer", "ctc")):
        if getattr(experiment.model, module) is not None and module not in trained:
            yield (
                f"model.{module}: objective.name={name!r} does not train it; use objective.name={objective}, or leave "
                "it out"
            )
    if experiment.data.labels != DataConfig.labels and "recognizer" not in trained:
        yield (
            f"data.labels={experiment.data.labels!r}: objective.name={name!r} reads no labels; use "
            "objective.name=ctc, or leave it out"
        )


def _count_unlabeled(source: Source, labels: LabelSequences) -> str | None:
    """How many of the first examples have no labels, and why; ConfigError if none has any, None if all have."""
    examples = range(min(SAMPLED, len(source)))
    problems = []
    for index in examples:
        with contextlib.suppress(Unreadable):
            problems.append(labels.problem(source.read(index)))
    missing = [problem for problem in problems if problem is not None]
    if not missing:
        return None
    text = f"data.labels={labels.field!r}: {len(missing)} of the first {len(problems)} examples have no labels to learn"
    if len(missing) == len(problems):
        raise ConfigError(f"{text} ({missing[0]}); name another field, or use another objective")
    return f"{text}, and add no CTC loss; of the first of them: {missing[0]}"


def check_memory(program: Program) -> None:
    """Raises ConfigError if the state or a batch of pictures is larger than all memory there is.

    The rest of a step is not counted: what passes may still be too large.
    """
    experiment = program.experiment
    devices = program.mesh.local_devices
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    have = memory_bytes() // len(devices) if limit is None else limit  # simulated devices share the machine's
    leaves = jax.tree.leaves(program.abstract_state)
    need = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    if need > have:
        raise ConfigError(
            f"model: parameters and moments need {need / 2**30:,.0f} GiB of each device's {have / 2**30:,.0f}; use "
            "smaller towers, or shard them with mesh.fsdp"
        )
    vision, blocks = experiment.model.vision_cfg, program.row_block.count
    example = vision.image_size**2 * sum(vision.modality_channels)
    if vision.stem == "frames":
        example = 4 * vision.max_frames * (1 + vision.modality_channels[0])
    for key, size in (("batch_size", experiment.batch_size), ("eval.batch_size", experiment.eval.batch_size)):
        if (need := size // blocks * example) > memory_bytes():
            raise ConfigError(
                f"{key}={size}: its pictures alone need {need / 2**30:,.0f} GiB of this machine's "
                f"{memory_bytes() / 2**30:,.0f}; use a smaller one"
            )


def fit_model(model: ClipConfig, data: DataConfig, source: Source, tokenizer: Tokenizer) -> ClipConfig:
    """The model with what its section leaves open taken from the data: token ids and modalities."""
    model = with_tokenizer(model, tokenizer)
    vision, modalities = model.vision_cfg, data.modalities
    if vision.modalities not in (modalities, ("image",)):
        raise ConfigError(
            f"model.vision_cfg.modalities={vision.modalities}: data.modalities is {modalities}; make the two equal"
        )
    if model.fusion is not None and model.fusion.images == 2 and (len(modalities) != 2 or vision.fusion != "views"):
        raise ConfigError(
            f"data.modalities={modalities}: model.fusion.images=2 reads two pictures of an example through one tower; "
            "name two, such as ('left', 'right'), and keep model.vision_cfg.fusion='views'"
        )
    if pictures.parse_background(data.background) is None:
        raise ConfigError("data.background='keep': the model has no channel for transparency; use a color, as 'white'")
    channels: tuple[int, ...]
    if vision.stem == "frames":
        if data.preprocess is not None:
            raise ConfigError(
                f"data.preprocess={dict(data.preprocess)}: is for pictures, and model.vision_cfg.stem='frames' takes "
                "sequences; leave it out"
            )
        for name, _ in data.transforms:
            if TransformChain.stage_of(name) != "captions":
                raise ConfigError(
                    f"data.transforms: {name!r} is for pictures, and model.vision_cfg.stem='frames' takes sequences; "
                    "leave it out"
                )
        channels = (source.first_readable()[modalities[0]].shape[-1] - 1,)
    elif train_data.has_crop(train_data.list_train_transforms(data, source)):
        channels = (DECODED_CHANNELS,) * len(modalities)
    else:
        example = source.first_readable()
        channels = tuple(example[name].shape[-1] for name in modalities)
        size = example[modalities[0]].shape[0]
        if size != vision.image_size:
            raise ConfigError(
                f"model.vision_cfg.image_size={vision.image_size}: the images of data.source are {size} wide"
            )
    vision = dataclasses.replace(vision, modalities=modalities, modality_channels=channels)
    return dataclasses.replace(model, vision_cfg=vision)
