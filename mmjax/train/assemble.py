"""From an experiment's sections to its data: sources, tokenizer, batches, and the model that fits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mmjax import plugins
from mmjax.config import ConfigError, bind, build
from mmjax.data import pipeline, tokenizer
from mmjax.data.tokenizer import Tokenizer
from mmjax.models import presets
from mmjax.train.experiment import DataConfig, Experiment

SOURCES = "mmjax.data.sources"
TOKENIZER_FOLDER = "tokenizer"
VOCABULARY_EXAMPLES = 4096  # enough for the small vocabularies that are trained at start, and read in a second


def open_source(data: DataConfig, split: str) -> Any:
    """The source of one split; options under ``data.train`` go to the training split alone."""
    section = dict(data.source)
    if "name" not in section:
        raise ConfigError(f"data.source.name is missing; known: {', '.join(plugins.names(SOURCES))}")
    source = plugins.load(SOURCES, section.pop("name"), path="data.source.name").Source
    given = {"split": split, "modalities": data.modalities}
    options = bind(source, section, path="data.source", given=given)
    if split == "train" and data.train:
        options = bind(source, dict(data.train), path="data.train", given=options)
    return source(**options)


def open_tokenizer(experiment: Experiment, source: Any, *, workdir: str | Path) -> Tokenizer:
    """The run's own tokenizer where the folder has one, else the one that ``data.tokenizer`` names or trains."""
    if (Path(workdir) / TOKENIZER_FOLDER).is_dir():
        return saved_tokenizer(experiment, workdir)
    given = {
        "context_length": experiment.model.text_cfg.context_length,
        "captions": _captions(source),
    }
    return build(tokenizer.load, experiment.data.tokenizer, path="data.tokenizer", given=given)


def saved_tokenizer(experiment: Experiment, workdir: str | Path) -> Tokenizer:
    """The tokenizer that a run was started with."""
    folder = Path(workdir) / TOKENIZER_FOLDER
    return tokenizer.load(str(folder), context_length=experiment.model.text_cfg.context_length)


def _captions(source: Any) -> Iterator[str]:
    """The captions that a vocabulary is trained from: those of the first examples."""
    for index in range(min(len(source), VOCABULARY_EXAMPLES)):
        yield from source[index]["captions"]


def with_data(experiment: Experiment, source: Any, tokens: Tokenizer) -> Experiment:
    """The experiment with what its model section leaves open taken from the data: token ids and modalities."""
    model = presets.with_tokenizer(experiment.model, tokens)
    vision = model.vision_cfg
    wanted = experiment.data.modalities
    if vision.modalities not in (wanted, ("image",)):
        raise ConfigError(
            f"model.vision_cfg.modalities={vision.modalities}: data.modalities is {wanted}; make the two equal"
        )
    example = source[0]
    channels = tuple(example[name].shape[-1] for name in wanted)
    size = example[wanted[0]].shape[0]
    if size != vision.image_size:
        raise ConfigError(f"model.vision_cfg.image_size={vision.image_size}: the images of data.source are {size} wide")
    vision = dataclasses.replace(vision, modalities=wanted, modality_channels=channels)
    return dataclasses.replace(experiment, model=dataclasses.replace(model, vision_cfg=vision))


def rows(experiment: Experiment, source: Any, tokens: Tokenizer) -> pipeline.Batches:
    """This process's rows of the global batch of any step; raises where the data cannot make such batches."""
    data = experiment.data
    return pipeline.Batches(
        source,
        tokens,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        captions=data.captions,
        captions_per_image=data.captions_per_image,
        negatives_per_image=data.negatives_per_image,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def stream(experiment: Experiment, made: pipeline.Batches, *, start_step: int = 0) -> pipeline.Stream:
    """The batches from ``start_step`` on, read ahead as ``data`` says."""
    return made.stream(start_step=start_step, workers=experiment.data.workers, prefetch=experiment.data.prefetch)


def batches(experiment: Experiment, source: Any, tokens: Tokenizer) -> pipeline.Stream:
    """The batches from the first step on."""
    return stream(experiment, rows(experiment, source, tokens))
