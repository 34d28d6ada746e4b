"""OpenAI's own files: the model is that of the arrays, with QuickGELU."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax.core.config import ConfigError
from mmjax.models import open_clip_json
from mmjax.weights.export.tensors import to_tensors
from mmjax.weights.layouts import open_clip as open_clip_layout
from mmjax.weights.open_pretrained import open_pretrained
from support import clip_models

TEXT = {"context_length": 9, "vocab_size": 99, "width": 128, "heads": 2, "layers": 3}
MODELS = {
    "ViT": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
    "ResNet": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 64, "patch_size": None},
}
SCALARS = {"input_resolution": 32, "context_length": 9, "vocab_size": 99}


def write_file(path, name, *, scalars=SCALARS, prefix=""):
    """The tensors of a model in OpenAI's layout; what the model is."""
    section = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": dict(MODELS[name]), "text_cfg": dict(TEXT)}
    config = open_clip_json.convert(section)
    _, shapes = clip_models.split(config)
    params = {
        path.replace(".", "/"): np.asarray(array)
        for path, array in clip_models.flat(clip_models.random_params(shapes)).items()
    }
    tensors = to_tensors(params, open_clip_layout.rules(config, text_prefix=""))
    tensors |= {key: np.asarray(value, np.int32) for key, value in scalars.items()}
    save_file({prefix + key: np.ascontiguousarray(array) for key, array in tensors.items()}, path)
    return dataclasses.replace(config, text_cfg=dataclasses.replace(config.text_cfg, tokenizer_clean="lower"))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_that_of_the_arrays(tmp_path, name, prefix):
    config = write_file(tmp_path / "a.safetensors", name, prefix=prefix)
    found = open_pretrained(str(tmp_path / "a.safetensors"))
    assert found.config == config and found.tokenizer is None


@pytest.mark.parametrize("name", MODELS)
def test_another_activation_is_refused_with_the_way_out(tmp_path, name):
    config = write_file(tmp_path / "a.safetensors", name)
    other = dataclasses.replace(config, text_cfg=dataclasses.replace(config.text_cfg, activation="gelu"))
    with pytest.raises(ConfigError, match=r"model.text_cfg.activation='gelu': .*model=init"):
        open_pretrained(str(tmp_path / "a.safetensors"), model=other)
    assert open_pretrained(str(tmp_path / "a.safetensors"), model=config).config == config


def test_the_vocabulary_beside_the_file_is_its_tokenizer(tmp_path):
    write_file(tmp_path / "a.safetensors", "ViT")
    vocabulary = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    vocabulary.touch()
    assert open_pretrained(str(tmp_path / "a.safetensors")).tokenizer == str(vocabulary)


def test_without_openais_numbers_the_model_has_to_be_named(tmp_path):
    write_file(tmp_path / "a.safetensors", "ViT", scalars={})
    with pytest.raises(ConfigError, match=r"weights alone; name its model .*mmjax.load.*open_clip_config.json"):
        open_pretrained(str(tmp_path / "a.safetensors"))
