"""Greedy decoding of labels against its definition, and what a recognizer goes with."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.core.types import Batch, Provenance
from mmjax.data.sequences.frames import pad
from mmjax.models.vision.frames_config import RecognizerConfig
from mmjax.models.vision.recognizer import collapse_path, decode_greedily, read_labels
from mmjax.objectives import ctc
from mmjax.train.augmentation import Augmentations
from mmjax.train.forward import make_tower_info
from mmjax.train.step import make_loss
from support import clip_models
from support.ctc_reference import forward_backward


def spell(path, blank):
    return [label for label, _ in itertools.groupby(path) if label != blank]


def test_every_path_spells_its_runs_without_blanks():
    paths = np.array(list(itertools.product(range(3), repeat=5)), np.int32)
    for blank in (0, 2):
        spelled = np.asarray(jax.jit(collapse_path, static_argnames="blank")(paths, blank=blank))
        for path, row in zip(paths.tolist(), spelled.tolist(), strict=True):
            labels = spell(path, blank)
            assert row == labels + [-1] * (5 - len(labels))


def test_the_likeliest_class_of_each_frame_is_taken_and_padding_is_none():
    logits = np.random.default_rng(1).normal(size=(6, 8, 4)).astype(np.float32)
    lengths = np.array([8, 1, 5, 0, 3, 7])
    logits[1, 1:] = np.nan
    valid = jnp.asarray(np.arange(8) < lengths[:, None])
    decode = jax.jit(decode_greedily, static_argnames="blank")
    decoded = np.asarray(decode(logits, valid, blank=3))
    for row, length, labels in zip(logits, lengths, decoded.tolist(), strict=True):
        expected = spell(row[:length].argmax(axis=1).tolist(), 3)
        assert labels == expected + [-1] * (8 - len(expected))
    assert np.asarray(decode(logits[:1], None, blank=3)).tolist() == decoded[:1].tolist()


def test_a_step_reads_the_labels_of_its_batch_and_the_model_reads_them_in_sequences():
    labels, lengths, table = ("a", "b", "c"), (6, 4, 2, 5), [[0, 1, 1], [2, -1, -1], [0, 0, -1], [-1, -1, -1]]
    frames = {
        "stem": "frames", "max_frames": 6, "pool_type": "avg", "class_token": False, "modalities": ("signs",),
        "modality_channels": (3,), "layers": 1,
    }  # fmt: skip
    config = clip_models.config(frames, {"layers": 1}, scan=False, recognizer=RecognizerConfig(labels=labels))
    graph, shapes = clip_models.split(config)
    params = clip_models.random_params(shapes)
    random, source = np.random.default_rng(2), Provenance.from_ids(jnp.arange(4))
    rows = np.stack([pad(random.normal(size=(n, 3)), 6) for n in lengths])
    batch = Batch(
        images={"signs": rows}, tokens=clip_models.TOKENS, image_source=source, text_source=source,
        labels=np.array(table, np.int32),
    )  # fmt: skip
    augmentations = Augmentations.from_config([], towers=make_tower_info(config), seed=0)
    loss = make_loss(graph, objective=ctc.Objective(), augmentations=augmentations)

    @jax.jit
    def run(batch):
        model = clip_models.model(graph, params)
        valid = model.visual.valid(batch.images)
        tokens = model.visual.run(model.visual.embed(batch.images), with_sequence=True, valid=valid).sequence
        _, metrics = loss(params, {}, batch, jnp.int32(0), drop_rates=())
        return metrics, model.recognizer(tokens), read_labels(model, batch.images)

    metrics, logits, read = jax.device_get(run(batch))
    # Row 2 would need a third frame between its equal labels, and row 3 has no labels.
    losses = [forward_backward(np.float64(logits[i, : lengths[i]]), y, 3)[0] for i, y in ((0, [0, 1, 1]), (1, [2]))]
    np.testing.assert_allclose(metrics["ctc_loss"], sum(losses) / 4, rtol=1e-5)
    assert metrics["ctc_left_out"] == 0.5
    expected = [spell(row[:n].argmax(axis=1).tolist(), 3) for row, n in zip(logits, lengths, strict=True)]
    assert [[label for label in row if label >= 0] for row in read.tolist()] == expected


def test_a_recognizer_has_labels_and_reads_sequences(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(["rain", "wind"]))
    assert RecognizerConfig(labels=str(tmp_path / "labels.json")).labels == ("rain", "wind")
    with pytest.raises(ConfigError, match=r"model\.recognizer\.labels=\(\): name what"):
        RecognizerConfig()
    with pytest.raises(ConfigError, match="'rain' is listed twice"):
        RecognizerConfig(labels=("rain", "wind", "rain"))
    with pytest.raises(ConfigError, match=r"model\.recognizer: reads sequences, and model\.vision_cfg\.stem='patch'"):
        clip_models.config(recognizer=RecognizerConfig(labels=("rain",)))
