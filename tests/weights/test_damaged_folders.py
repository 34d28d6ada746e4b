"""Folders and files of other libraries in which anything stands: one line each, in a moment."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax.core.config import ConfigError
from mmjax.weights.open_pretrained import open_pretrained
from weights.test_round_trip import export, siglip


def test_nonsense_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for number, text in enumerate(("[]", "{", '{"model_type": "bart"}', '{"model_type": "clip", "text_config": 3}')):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(text)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    folders = [tmp_path / "empty", tmp_path / "pipe", *(tmp_path / str(k) for k in range(4))]
    for spec in ("nowhere/at/all", "./nowhere", "x" * 5000, "a\0b", "~nobody/x", "", *map(str, folders)):
        with pytest.raises(ConfigError) as error:
            open_pretrained(spec)
        assert "\n" not in str(error.value)


SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "config.json": {
        "clip": {"model_type": "clip", "projection_dim": 24, "text_config": SIZES, "vision_config": SIZES},
        "siglip": {"model_type": "siglip", "text_config": SIZES, "vision_config": SIZES},
        "bert": {"model_type": "bert", **SIZES, "hidden_act": "gelu", "pad_token_id": 0},
    },
    "open_clip_config.json": {
        "open_clip": {
            "model_cfg": {"embed_dim": 24, "vision_cfg": {"layers": 2, "width": 64, "mlp_ratio": 4.0},
                          "text_cfg": {"width": 32, "heads": 4, "tokenizer_kwargs": {"clean": "lower"}}},
            "preprocess_cfg": {"mean": [0.5] * 3, "resize_mode": "shortest"},
        },
    },
    "preprocessor_config.json": {"preprocessor": {"image_mean": [0.5] * 3, "size": {"shortest_edge": 32}}},
}  # fmt: skip
JUNK = (None, -1, 0, 10**30, 1.5, float("nan"), "x\n\x1b[2J", [], [1, 2], {}, {"a": 1}, True)


def with_junk(section):
    """Copies of a section with one value, at any depth, replaced or left out."""
    for key, value in section.items():
        for junk in JUNK:
            yield section | {key: junk}
        yield {other: kept for other, kept in section.items() if other != key}
        if isinstance(value, dict):
            yield from (section | {key: changed} for changed in with_junk(value))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in CONFIGS.items() for kind in kinds])
def test_a_value_of_another_type_is_one_line_or_does_no_harm(tmp_path, name, kind):
    for weights in ("model.safetensors", "open_clip_model.safetensors"):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / weights)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["config.json"]["clip"]))
    if name == "open_clip_config.json":
        (tmp_path / "config.json").unlink()
    refused = 0
    for section in with_junk(CONFIGS[name][kind]):
        (tmp_path / name).write_text(json.dumps(section))
        try:
            open_pretrained(str(tmp_path))
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and (name in str(error) or "model_type" in str(error))
    assert refused > 10


@pytest.mark.parametrize(
    "change",
    [
        {"img/embedding/kernel": (8, 48)},
        {"img/pos_embedding": ()},
        {"img/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel": (48, 0, 0)},
        {"img/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": (48,)},
        {"img/Transformer/encoderblock/q": (10**9, 0)},
        {"img/Transformer/encoderblock_99999999999/q": (1,)},
        {"txt/Embed_0/embedding": (1, 99, 32)},
        {"txt/Embed_0/embedding": None},
        {"txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/kernel": None},
    ],
)
def test_arrays_of_another_shape_than_big_visions_are_one_line(tmp_path, change):
    export(siglip(), tmp_path, format="big_vision")
    with np.load(tmp_path / "model.npz") as file:
        arrays = dict(file)
    for name, shape in change.items():
        if shape is None:
            del arrays[f"params/{name}"]
        else:
            arrays[f"params/{name}"] = np.broadcast_to(np.float32(0), shape)
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(ConfigError, match=r"model.npz: ") as error:
        open_pretrained(str(tmp_path / "model.npz"))
    assert "\n" not in str(error.value)
