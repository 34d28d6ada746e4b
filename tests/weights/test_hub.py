"""Weights by their name on the Hugging Face hub, which here is a server over loopback."""

import subprocess
import sys

import numpy as np
import pytest

from mmjax.core.state import flatten
from mmjax.weights.export.folders import FORMATS, Exported
from support import command, hub
from support.clip_models import config, random_params, split

NAME = "owner/name"
READ = """
import sys, jax, numpy as np
from mmjax.core.config import ConfigError
from mmjax.weights.open_pretrained import open_pretrained
try:
    pretrained = open_pretrained(sys.argv[1])
except ConfigError as error:
    sys.exit(f"refused: {error}")
where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
path = "visual/cls"  # one parameter is enough
target = {path: jax.ShapeDtypeStruct((pretrained.config.vision_cfg.width,), np.float32, sharding=where)}
print(float(np.asarray(pretrained.read(pretrained.config, target).params[path]).sum()))
"""


def read(url, cache, spec=NAME):
    """Reads in a process of its own: the hub's client takes its address from the environment when it is imported."""
    asked = command.environment(HF_ENDPOINT=url, HF_HUB_CACHE=str(cache), HF_HUB_DISABLE_XET="1")
    asked.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([sys.executable, "-c", READ, spec], env=asked, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The files of one model in both layouts, and their class token."""
    folder = tmp_path_factory.mktemp("repository")
    model_config = config()
    params = {path: np.asarray(array) for path, array in flatten(random_params(split(model_config)[1])).items()}
    for layout in ("hf", "open_clip"):
        model = Exported(config=model_config, params=params, tokenizer=None, card="", recipe={})
        FORMATS[layout](model, folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"pytorch_model.bin": b"not to be read", "README.md": b"#"}, float(params["visual/cls"].sum())


def test_of_equal_weights_in_many_files_one_is_downloaded(exported, tmp_path):
    files, expected = exported
    with hub.serve(NAME, files) as server:
        first = read(server.url, tmp_path)
        assert not first.returncode, first.stderr
        assert float(first.stdout) == pytest.approx(expected)
        assert {name for name in server.sent if "model" in name} == {"model.safetensors"}
        assert "README.md" not in server.sent
        prefixed = read(server.url, tmp_path, f"hf-hub:{NAME}@main")
        assert float(prefixed.stdout) == pytest.approx(expected)
        assert server.sent.count("model.safetensors") == 1
        url = server.url
    offline = read(url, tmp_path)  # nobody listens there any more
    assert float(offline.stdout) == pytest.approx(expected), offline.stderr


def test_without_a_configuration_of_transformers_it_is_open_clips_file(exported, tmp_path):
    files, expected = exported
    without = {name: content for name, content in files.items() if name != "config.json"}
    with hub.serve(NAME, without) as server:
        result = read(server.url, tmp_path)
        assert float(result.stdout) == pytest.approx(expected), result.stderr
        assert {name for name in server.sent if name.endswith((".safetensors", ".bin"))} == {
            "open_clip_model.safetensors"
        }


def test_a_hub_that_does_not_have_it_is_one_line(exported, tmp_path):
    with hub.serve(NAME, exported[0]) as server:
        result = read(server.url, tmp_path, "owner/other")
    assert result.returncode == 1
    assert (
        result.stderr.strip().splitlines()[-1].startswith("refused: 'owner/other': no such file or folder, and the Hug")
    )
    assert "Traceback" not in result.stderr
