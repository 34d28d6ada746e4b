"""From an experiment's sections to its data: sources, tokenizer, batches, and the model that fits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mmjax import plugins
from mmjax.config import ConfigError, bind
from mmjax.data import pipeline
from mmjax.data import tokenizer as tokenizers
from mmjax.models import presets
from mmjax.train.experiment import DataConfig, Experiment

SOURCES = "mmjax.data.sources"


def open_source(data: DataConfig, split: str) -> Any:
    """The source of one split; options under ``data.train`` go to the training split alone."""
    section = dict(data.source)
    if "name" not in section:
        raise ConfigError(f"data.source.name is missing; known: {', '.join(plugins.names(SOURCES))}")
    source = plugins.load(SOURCES, section.pop("name"), path="data.source.name").Source
    given = {"split": split, "modalities": data.modalities}
    options = bind(source, section, path="data.source", given=given) if section else given
    if split == "train" and data.train:
        options = bind(source, dict(data.train), path="data.train", given=options)
    return source(**options)


def open_tokenizer(experiment: Experiment, source: Any, *, workdir: Path) -> Any:
    """The run's own tokenizer where the folder has one, else the one that ``data.tokenizer`` names or trains."""
    length = experiment.model.text_cfg.context_length
    saved = workdir / "tokenizer"
    if saved.is_dir():
        return tokenizers.load(str(saved), context_length=length)
    return plugins_free_load(experiment, source, length)


def plugins_free_load(experiment: Experiment, source: Any, length: int) -> Any:
    raise AssertionError


def with_data(experiment: Experiment, source: Any, tokenizer: Any) -> Experiment:
    """The experiment with what its model section leaves open taken from the data: token ids and modalities."""
    model = presets.with_tokenizer(experiment.model, tokenizer)
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


def batches(experiment: Experiment, source: Any, tokenizer: Any, *, start_step: int = 0) -> Iterator[dict[str, Any]]:
    """This process's rows of the global batches from ``start_step`` on."""
    data = experiment.data
    return pipeline.batches(
        source,
        tokenizer,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        start_step=start_step,
        captions=data.captions,
        captions_per_image=data.captions_per_image,
        negatives_per_image=data.negatives_per_image,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        prefetch=data.prefetch,
    )
