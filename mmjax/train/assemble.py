"""From an experiment's sections to its data: sources, tokenizer, batches, and the model that fits them."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError, build
from mmjax.data import autotune, pipeline, tokenizer
from mmjax.data.eval_view import EvalView, is_encoded
from mmjax.data.open_source import open_source as open_section
from mmjax.data.sample import Unreadable
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.transform_chain import TransformChain
from mmjax.experiment import DataConfig, Experiment
from mmjax.models.config import with_tokenizer
from mmjax.runs.folder import TOKENIZER_FOLDER

logger = logging.getLogger(__name__)

VOCABULARY_EXAMPLES = 4096  # enough for the small vocabularies that are trained at start, and read in a second
DECODED_CHANNELS = 3


def open_source(data: DataConfig, split: str) -> Any:
    """The source of one split, with the options of ``data.train`` or ``data.evaluation``."""
    further = "train" if split == "train" else "evaluation"
    return open_section(
        data.source,
        split=split,
        modalities=data.modalities,
        path="data.source",
        further=getattr(data, further),
        further_path=f"data.{further}",
    )


def open_view(experiment: Experiment, split: str) -> Any:
    """The source of one split with its pictures as evaluation sees them."""
    source = open_source(experiment.data, split)
    if experiment.data.preprocess is None and not is_encoded(source):
        size = experiment.model.vision_cfg.image_size
        if all(source[0][name].shape[:2] == (size, size) for name in experiment.data.modalities):
            return source
    return EvalView(source, evaluation_chain(experiment))


def evaluation_chain(experiment: Experiment) -> TransformChain:
    """What evaluation does to a picture: the section ``data.preprocess``, or the model's own convention."""
    vision = experiment.model.vision_cfg
    section = dict(experiment.data.preprocess or {"name": "resize_crop", "mode": vision.image_resize})
    name = section.pop("name", "resize_crop")
    path = "data.preprocess"
    chain = TransformChain(
        ((name, section),), image_size=vision.image_size, modalities=experiment.data.modalities, path=path
    )
    if chain.geometry is None:
        raise ConfigError(f"{path}.name={name!r}: is no geometry; use 'resize_crop'")
    return chain


def training_chain(experiment: Experiment, source: Any, tokens: Tokenizer) -> TransformChain:
    """What training does to examples and rows; pictures are cropped at random where nothing else crops them."""
    return TransformChain(
        _transforms(experiment.data, source),
        image_size=experiment.model.vision_cfg.image_size,
        modalities=experiment.data.modalities,
        token_format=tokens.format,
        seed=experiment.seed,
    )


def _transforms(data: DataConfig, source: Any) -> list[tuple[str, Any]]:
    """Those of the configuration, and the crop that encoded pictures cannot do without."""
    entries = list(data.transforms)
    if _crops(entries) or not is_encoded(source):
        return entries
    first = next(
        (at for at, (name, _) in enumerate(entries) if TransformChain.stage_of(name) != "captions"), len(entries)
    )
    return [*entries[:first], ("random_resized_crop", {}), *entries[first:]]


def _crops(entries: Sequence[tuple[str, Any]]) -> bool:
    # Asked of the names: opening a transform may read large tables.
    return any(TransformChain.stage_of(name) == "geometry" for name, _ in entries)


def open_tokenizer(experiment: Experiment, source: Any, *, workdir: str | Path) -> Tokenizer:
    """The run's own tokenizer where the folder has one, else the one that ``data.tokenizer`` names or trains."""
    if (Path(workdir) / TOKENIZER_FOLDER).is_dir():
        return saved_tokenizer(experiment, workdir)
    given = {
        "context_length": experiment.model.text_cfg.context_length,
        "captions": _captions(source),
    }
    return build(tokenizer.load, experiment.data.tokenizer, path="data.tokenizer", injected=given)


def saved_tokenizer(experiment: Experiment, workdir: str | Path) -> Tokenizer:
    """The tokenizer that a run was started with."""
    folder = Path(workdir) / TOKENIZER_FOLDER
    return tokenizer.load(str(folder), context_length=experiment.model.text_cfg.context_length)


def _captions(source: Any) -> Iterator[str]:
    """The captions that a vocabulary is trained from: those of the first examples."""
    for index in range(min(len(source), VOCABULARY_EXAMPLES)):
        try:
            yield from source[index]["captions"]
        except Unreadable:
            continue


def with_data(experiment: Experiment, source: Any, tokens: Tokenizer) -> Experiment:
    """The experiment with what its model section leaves open taken from the data: token ids and modalities."""
    model = with_tokenizer(experiment.model, tokens)
    vision = model.vision_cfg
    wanted = experiment.data.modalities
    if vision.modalities not in (wanted, ("image",)):
        raise ConfigError(
            f"model.vision_cfg.modalities={vision.modalities}: data.modalities is {wanted}; make the two equal"
        )
    if _crops(_transforms(experiment.data, source)):
        channels = (DECODED_CHANNELS,) * len(wanted)
    else:
        example = source[0]
        channels = tuple(example[name].shape[-1] for name in wanted)
        size = example[wanted[0]].shape[0]
        if size != vision.image_size:
            raise ConfigError(
                f"model.vision_cfg.image_size={vision.image_size}: the images of data.source are {size} wide"
            )
    vision = dataclasses.replace(vision, modalities=wanted, modality_channels=channels)
    return dataclasses.replace(experiment, model=dataclasses.replace(model, vision_cfg=vision))


def rows(
    experiment: Experiment, source: Any, tokens: Tokenizer, *, share: tuple[int, int] = (0, 1)
) -> pipeline.Batches:
    """The rows of one ``share`` of how many of the global batch of any step (see ``Program.share``).

    Raises where the data cannot make such batches.
    """
    data = experiment.data
    index, count = share
    return pipeline.Batches(
        source,
        tokens,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        chain=training_chain(experiment, source, tokens),
        captions=data.captions,
        captions_per_image=data.captions_per_image,
        negatives_per_image=data.negatives_per_image,
        distinct=data.distinct,
        process_index=index,
        process_count=count,
    )


def threads(data: DataConfig) -> int:
    """How many threads read examples: as configured, or one a core."""
    return data.threads if data.threads is not None else len(os.sched_getaffinity(0))


def stream(
    experiment: Experiment,
    made: pipeline.Batches,
    *,
    start_step: int = 0,
) -> pipeline.Stream:
    """The batches from ``start_step`` on, read ahead as ``data`` says."""
    data = experiment.data
    workers, each = data.workers, threads(data) if data.threads is not None or made.decodes else 1
    if data.autotune:
        workers, each = autotune.tune(made, cores=len(os.sched_getaffinity(0)))
    return made.stream(start_step=start_step, workers=workers, threads=each, prefetch=data.prefetch)


def batches(
    experiment: Experiment, source: Any, tokens: Tokenizer, *, share: tuple[int, int] = (0, 1)
) -> pipeline.Stream:
    """The batches from the first step on."""
    return stream(experiment, rows(experiment, source, tokens, share=share))
