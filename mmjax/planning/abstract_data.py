"""Vocabulary size and batch shapes of an experiment, derived without reading its data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.core import plugins
from mmjax.core.types import Batch
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenFormat
from mmjax.data.transform_chain import TransformChain
from mmjax.experiment import Experiment
from mmjax.inference.embedding_store import read_plan
from mmjax.models.config import with_tokenizer
from mmjax.train.data import label_sequences

DEFAULT_VOCAB_SIZE = 8192  # largest vocabulary of a tokenizer trained at the start, unless configured
NUM_CHANNELS = 3


@dataclasses.dataclass(kw_only=True)
class _TokenizerInfo:
    """The numbers of a tokenizer that a compiled program depends on."""

    vocab_size: int
    context_length: int
    pad_id: int
    eos_id: int
    bos_id: int | None = 1


def resolve_without_data(experiment: Experiment, *, shards: int) -> tuple[Experiment, list[str]]:
    """Fills in the fields that training takes from its data.

    Args:
      experiment: as configured.
      shards: number of devices that split a batch.

    Returns:
      The experiment, and a note for each field that had to be guessed.
    """
    notes = []
    text, vision = experiment.model.text_cfg, experiment.model.vision_cfg
    vocabulary = text.vocab_size
    if vocabulary is None:
        vocabulary = int(experiment.data.tokenizer.get("vocab_size", DEFAULT_VOCAB_SIZE))
        notes.append(f"model.text_cfg.vocab_size=None: assumed to be {vocabulary} tokens, the tokenizer's maximum")
    tokenizer = _TokenizerInfo(
        vocab_size=vocabulary,
        context_length=text.context_length,
        pad_id=0 if text.pad_id is None else text.pad_id,
        eos_id=2 if text.eos_id is None else text.eos_id,
    )
    model = with_tokenizer(experiment.model, tokenizer)
    modalities = experiment.data.modalities
    if vision.modalities != modalities:
        channels = (NUM_CHANNELS,) * len(modalities)
        if vision.stem == "frames":
            channels = vision.modality_channels
            notes.append(f"model.vision_cfg.modality_channels={channels}: taken for the features of each frame")
        vision = dataclasses.replace(vision, modalities=modalities, modality_channels=channels)
    evaluation = experiment.eval
    if evaluation.batch_size % shards:
        size = -(-evaluation.batch_size // shards) * shards
        notes.append(
            f"eval.batch_size={evaluation.batch_size}: does not divide over {shards} devices, and training would "
            f"reject it; set it to {size}"
        )
        evaluation = dataclasses.replace(evaluation, batch_size=size)
    model = dataclasses.replace(model, vision_cfg=vision)
    return dataclasses.replace(experiment, model=model, eval=evaluation), notes


def sources_per_row(experiment: Experiment) -> int:
    """Returns the maximum number of source examples per row, by applying the batch transforms to a blank row."""
    model, data = experiment.model, experiment.data
    length, texts = model.text_cfg.context_length, data.captions_per_image + data.negatives_per_image
    token_format = TokenFormat(1, 2, 0, model.text_cfg.vocab_size or DEFAULT_VOCAB_SIZE, length)
    chain = TransformChain(
        data.transforms,
        image_size=model.vision_cfg.image_size,
        modalities=data.modalities,
        token_format=token_format,
        seed=experiment.seed,
    )
    tokens = np.full((1, texts, length), token_format.pad_id, np.int32)
    tokens[:, :, :2] = 1, token_format.eos_id
    shapes = image_shapes(experiment)
    blank = BatchRows(
        numbers=np.zeros(1, np.int64),
        partner=np.full(1, -1, np.int64),
        images={name: np.zeros((1, *dims), dtype) for name, (dims, dtype) in shapes.items()},
        image_ids=np.zeros((1, 1), np.int32),
        image_weight=np.ones((1, 1), np.float32),
        tokens=tokens,
        text_ids=np.zeros((1, texts, 1), np.int32),
        text_weight=np.ones((1, texts, 1), np.float32),
        captions=data.captions_per_image,
    )
    partners = chain.partners(batch_size=experiment.batch_size, group=1, host_rows=range(experiment.batch_size))
    return chain.apply_batch_transforms(blank, partners=partners, start=0).image_ids.shape[1]


def image_shapes(experiment: Experiment) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns the shape [H, W, channels], or [T, D + 1] of a sequence, and the type of each modality's arrays."""
    vision = experiment.model.vision_cfg
    size, named = vision.image_size, zip(vision.modalities, vision.modality_channels, strict=True)
    if vision.stem == "frames":
        return {name: ((vision.max_frames, channels + 1), np.float32) for name, channels in named}
    return {name: ((size, size, channels), np.uint8) for name, channels in named}


def batch_shapes(experiment: Experiment) -> Batch:
    """Returns the global batch of the data pipeline as shapes; use after ``resolve_without_data``."""
    objective = plugins.make("mmjax.objectives", "Objective", experiment.objective, path="objective")
    text_groups = objective.text_groups
    images = experiment.batch_size
    data, length = experiment.data, experiment.model.text_cfg.context_length
    texts = images * (data.captions_per_image + data.negatives_per_image)
    sources = sources_per_row(experiment)

    def shape(*dims: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype)

    arrays: dict[str, Any] = {
        "images": {name: shape(images, *dims, dtype=t) for name, (dims, t) in image_shapes(experiment).items()},
        "tokens": shape(texts, length, dtype=np.int32),
    }
    if experiment.gate is not None:
        arrays["quantile"] = shape(images, dtype=np.float32)
    if (labels := label_sequences(data, experiment.model, objective.modules)) is not None:
        arrays["labels"] = shape(images, labels.longest, dtype=np.int32)
    for side, rows in (("image", images), ("text", texts)):
        arrays[f"{side}_ids"] = shape(rows, sources, dtype=np.int32)
        arrays[f"{side}_weight"] = shape(rows, sources, dtype=np.float32)
        if text_groups is not None:
            arrays[f"{side}_group"] = shape(rows, dtype=np.int32)
        if data.teacher is not None:
            width = read_plan(data.teacher.path, flag="data.teacher.path").dimension
            arrays[f"{side}_teacher"] = shape(rows, width, dtype=np.float32)
    return Batch.from_arrays(arrays)
