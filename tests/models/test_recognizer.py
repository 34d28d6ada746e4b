"""Greedy decoding of labels against its definition, and what a recognizer goes with."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.models.joint_config import RecognizerConfig
from mmjax.models.vision.recognizer import collapse_path, decode_greedily
from support import clip_models


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
    decoded = np.asarray(decode_greedily(logits, valid, blank=3))
    for row, length, labels in zip(logits, lengths, decoded.tolist(), strict=True):
        expected = spell(row[:length].argmax(axis=1).tolist(), 3)
        assert labels == expected + [-1] * (8 - len(expected))
    assert np.asarray(decode_greedily(logits[:1], None, blank=3)).tolist() == decoded[:1].tolist()


def test_a_recognizer_has_labels_and_reads_sequences(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(["rain", "wind"]))
    assert RecognizerConfig(labels=str(tmp_path / "labels.json")).labels == ("rain", "wind")
    with pytest.raises(ConfigError, match=r"model\.recognizer\.labels=\(\): name what"):
        RecognizerConfig()
    with pytest.raises(ConfigError, match="'rain' is listed twice"):
        RecognizerConfig(labels=("rain", "wind", "rain"))
    with pytest.raises(ConfigError, match=r"model\.recognizer: reads sequences, and model\.vision_cfg\.stem='patch'"):
        clip_models.config(recognizer=RecognizerConfig(labels=("rain",)))
