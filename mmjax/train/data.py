"""From the data section of an experiment to sources, tokenizers, transforms and the batches of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError, bind, call
from mmjax.data import autotune, pipeline
from mmjax.data.clusters.table import Clusters
from mmjax.data.eval_view import is_encoded, make_eval_chain, view_for_evaluation
from mmjax.data.formats.score_table import WithQuantiles
from mmjax.data.negatives.table import WithNegatives, WithPositives
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.data.sequences.frames import FrameView
from mmjax.data.sequences.labels import LabelSequences
from mmjax.data.source import Source, Subset
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.tokenizer import load as load_tokenizer
from mmjax.data.transform_chain import TransformChain
from mmjax.experiment import DataConfig, Experiment
from mmjax.inference.teacher import WithTeacher
from mmjax.models.config import ClipConfig, VisionConfig
from mmjax.objectives.common.base import TextGroups
from mmjax.parallel.host_rows import ALL_ROWS, RowBlock
from mmjax.runs.folder import TOKENIZER_FOLDER

logger = logging.getLogger(__name__)

VOCABULARY_EXAMPLES = 4096  # enough for the small vocabularies that are trained at start, and read in a second
_NAMES_DATA = {"name", "path", "sources"}  # options of sources that say which data it is


def open_split(experiment: Experiment, split: str, options: Mapping[str, Any] | None = None) -> Source:
    """The source of one split, with its options of ``data.train`` or ``data.evaluation``; of train the fraction.

    Args:
        experiment: Whose data it is.
        split: The split.
        options: Replace those of the data section; with a ``name`` they are the section of another source.
    """
    data, overrides = experiment.data, "train" if split == "train" else "evaluation"
    vision = experiment.model.vision_cfg
    if options and "name" in options:
        return as_frames(open_source(options, split=split, modalities=data.modalities, path="source"), vision)
    source = open_source(
        data.source,
        split=split,
        modalities=data.modalities,
        path="data.source",
        further={**getattr(data, overrides), **(options or {})},
        further_path="source" if options else f"data.{overrides}",
    )
    source = as_frames(source, vision)
    if source.ignores_split and split != "train":
        _check_split(experiment, split)
    for name, section, joined in (
        ("negatives", data.negatives, WithNegatives),
        ("positives", data.positives, WithPositives),
    ):
        table = None if section is None else section.for_split(split)
        if table is not None:
            source = call(joined, {"source": source, "table": table}, path="data", paths={name: f"data.{name}"})
            logger.info(source.describe())
    if data.teacher is not None and (folder := data.teacher.for_split(split)) is not None:
        source = WithTeacher(source, folder.path)
    if split == "train" and data.fraction < 1:
        source = call(Subset, {"source": source, "fraction": data.fraction}, path="data", paths={})
    if split == "train" and (gate := experiment.gate) is not None:
        arguments = {"source": source, "scores": gate.scores, "score": gate.score}
        source = call(WithQuantiles, arguments, path="gate", paths={})
        logger.info(source.describe())
    return source


def as_frames(source: Source, vision: VisionConfig) -> Source:
    """``source``, or for a tower of sequences what that takes."""
    return FrameView(source, length=vision.max_frames) if vision.stem == "frames" else source


def _check_split(experiment: Experiment, split: str) -> None:
    """Raises ConfigError if data that has no splits was not given for this one."""
    data, config = experiment.data, experiment.eval
    if not any(_NAMES_DATA & overrides.keys() for overrides in (data.train, data.evaluation)):
        raise ConfigError(
            f"split={split!r}: data.source is the training data; set data.evaluation.path, write {{split}} in it, or "
            "name a column in data.source.split_column"
        )
    only = config.split if config.tasks or not config.final_splits else config.final_splits[0]
    if split != only:
        key = "data.evaluation" if _NAMES_DATA & data.evaluation.keys() else "data.source"
        raise ConfigError(
            f"split={split!r}: {key} has no splits and was given for {only!r} (eval.split, eval.final_splits); "
            "write {split} in its path, or name a column in split_column"
        )


def split_section(data: DataConfig, split: str) -> dict[str, Any]:
    """The section that the source of one split is made from."""
    overrides = dict(data.train if split == "train" else data.evaluation)
    return overrides if "name" in overrides else {**data.source, **overrides}


def open_eval_source(experiment: Experiment, split: str, options: Mapping[str, Any] | None = None) -> Source:
    """The source of one split with what evaluation reads of an image, as it is; ``options`` as in ``open_split``."""
    return open_split(_with_eval_modalities(experiment), split, options)


def open_eval_split(experiment: Experiment, split: str, options: Mapping[str, Any] | None = None) -> Source:
    """The source of one split with its pictures as evaluation sees them; ``options`` as in ``open_split``."""
    source = open_eval_source(experiment, split, options)
    data, vision = _with_eval_modalities(experiment).data, experiment.model.vision_cfg
    if vision.stem == "frames":
        return source
    final_size = vision.image_size if data.preprocess is None else None
    chain = make_eval_transforms(data, vision, aligned=source.aligned)
    return view_for_evaluation(source, chain, final_size=final_size)


def _with_eval_modalities(experiment: Experiment) -> Experiment:
    return dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, modalities=eval_modalities(experiment))
    )


def eval_modalities(experiment: Experiment) -> tuple[str, ...]:
    """What evaluation reads of an image: the first modality alone, if they are views of their own."""
    modalities, fusion = experiment.data.modalities, experiment.model.fusion
    if fusion is not None and fusion.images == 2:
        return modalities
    # Without "image" sources would take their pictures for the only modality, whatever its name.
    if experiment.model.vision_cfg.fusion == "views" and modalities[0] == "image":
        return modalities[:1]
    return modalities


def make_eval_transforms(data: DataConfig, vision: VisionConfig, *, aligned: bool) -> TransformChain:
    """What evaluation does to a picture: the section ``data.preprocess``, or the model's own convention."""
    return make_eval_chain(
        data.preprocess,
        image_size=vision.image_size,
        resize=vision.image_resize,
        modalities=data.modalities,
        background=data.background,
        aligned=aligned,
    )


def make_train_transforms(
    data: DataConfig, source: Source, tokenizer: Tokenizer, *, image_size: int, seed: int
) -> TransformChain:
    """What training does to examples and batches; pictures get a random crop unless another transform crops them."""
    return TransformChain(
        list_train_transforms(data, source),
        image_size=image_size,
        modalities=data.modalities,
        token_format=tokenizer.format,
        seed=seed,
        background=data.background,
        aligned=source.aligned,
    )


def list_train_transforms(data: DataConfig, source: Source) -> list[tuple[str, Any]]:
    """Names and options of the training transforms, with the crop that encoded pictures cannot do without."""
    entries = list(data.transforms)
    if has_crop(entries) or not is_encoded(source):
        return entries
    stages = [TransformChain.stage_of(name) for name, _ in entries]
    place = next((i for i, stage in enumerate(stages) if stage != "captions"), len(entries))
    return [*entries[:place], ("random_resized_crop", {}), *entries[place:]]


def has_crop(entries: Sequence[tuple[str, Any]]) -> bool:
    """Whether one of the transforms crops; none is opened, because that may read large tables."""
    return any(TransformChain.stage_of(name) == "geometry" for name, _ in entries)


def open_tokenizer(data: DataConfig, source: Source, *, context_length: int, workdir: Path | None = None) -> Tokenizer:
    """The tokenizer of the run in ``workdir`` if there is one, else the one that ``data.tokenizer`` names or trains."""
    if workdir is not None and (workdir / TOKENIZER_FOLDER).is_dir():
        return load_run_tokenizer(workdir, context_length=context_length)
    injected = {"context_length": context_length, "captions": first_captions(source)}
    path = "data.tokenizer"
    elsewhere = {"context_length": "model.text_cfg.context_length", "tokenizer": f"{path}.name"}
    bound = bind(load_tokenizer, data.tokenizer, path=path, injected=injected)
    return call(load_tokenizer, bound, path=path, paths=elsewhere)


def load_run_tokenizer(workdir: str | Path, *, context_length: int) -> Tokenizer:
    """The tokenizer that a run was started with."""
    return load_tokenizer(str(Path(workdir) / TOKENIZER_FOLDER), context_length=context_length)


def first_captions(source: Source) -> Iterator[str]:
    """The captions of the first examples, as a vocabulary is trained on."""
    source.first_readable()  # otherwise a vocabulary of nothing would be the error, not what is wrong with the examples
    for index in range(min(len(source), VOCABULARY_EXAMPLES)):
        with contextlib.suppress(Unreadable):
            yield from source.read(index)["captions"]


def make_batches(
    data: DataConfig,
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    row_block: RowBlock = ALL_ROWS,
    clusters: Clusters | None = None,
    text_groups: TextGroups | None = None,
    labels: LabelSequences | None = None,
) -> pipeline.Batches:
    """The training batches by step.

    Args:
      data: the data section.
      source: the training split.
      tokenizer: makes token ids of the captions.
      image_size: of the model.
      batch_size: images in the global batch.
      seed: of the experiment.
      row_block: the rows of each batch that this process makes (``Program.row_block``).
      clusters: of the source, if ``data.clusters`` is set.
      text_groups: which groups batches have (``objective.text_groups``).
      labels: which sequences of labels they have (``label_sequences``).

    Raises:
      ConfigError: if the data cannot make such batches.
    """
    arguments = {
        "source": source,
        "tokenizer": tokenizer,
        "batch_size": batch_size,
        "seed": seed,
        "chain": make_train_transforms(data, source, tokenizer, image_size=image_size, seed=seed),
        "captions": data.captions,
        "captions_per_image": data.captions_per_image,
        "negatives_per_image": data.negatives_per_image,
        "distinct": data.distinct,
        "clusters": clusters,
        "groups": data.groups if text_groups == "example" else (),
        "text_groups": text_groups,
        "labels": labels,
        "process_index": row_block.index,
        "process_count": row_block.count,
    }
    return call(pipeline.Batches, arguments, path="data", paths={name: name for name in ("batch_size", "seed")})


def label_sequences(data: DataConfig, model: ClipConfig, modules: Collection[str]) -> LabelSequences | None:
    """The labels that an objective which runs these ``modules`` of the model reads, or None."""
    recognizer = model.recognizer
    if recognizer is None or "recognizer" not in modules:
        return None
    longest = min(recognizer.max_labels or model.vision_cfg.max_frames, model.vision_cfg.max_frames)
    return LabelSequences(field=data.labels, names=tuple(recognizer.labels), longest=longest)


def count_threads(data: DataConfig) -> int:
    """How many threads read examples: as configured, or one for each core."""
    return data.threads if data.threads is not None else len(os.sched_getaffinity(0))


def tune(data: DataConfig, batches: pipeline.Batches) -> DataConfig:
    """The data section with the numbers of workers and threads that are best here, if it asks for them."""
    if not data.autotune:
        return data
    workers, threads = autotune.tune(batches, cores=len(os.sched_getaffinity(0)))
    return dataclasses.replace(data, workers=workers, threads=threads, autotune=False)


def stream_batches(data: DataConfig, batches: pipeline.Batches, *, start_step: int = 0) -> pipeline.Stream:
    """The batches from ``start_step`` on, read ahead as ``data`` says; ``tune`` it before."""
    threads = count_threads(data) if data.threads is not None or batches.decodes else 1
    return batches.stream(start_step=start_step, workers=data.workers, threads=threads, prefetch=data.prefetch)
