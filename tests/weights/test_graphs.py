"""Towers as programs: ``jax.export`` and ONNX give the embeddings of the tower, for any number of rows."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.core.config import ConfigError, build
from mmjax.core.state import flatten
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig
from mmjax.weights.export import graphs
from mmjax.weights.export.folders import Exported

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
MODELS = {
    "clip": ({"activation": "quick_gelu"}, {"activation": "quick_gelu"}),
    "siglip": ({"pool_type": "map"}, {"pool_type": "last", "no_causal_mask": True, "activation": "gelu_tanh"}),
    "scenes": (
        {"stem": "conv", "stem_widths": (8, 16, 32), "class_token": False, "pool_type": "avg"},
        {"pool_type": "mean", "pad_id": 0},
    ),
    "eva": ({"rope": "row_column", "mlp_type": "swiglu"}, {"pool_type": "eos", "eos_id": 3}),
    "bert": (
        {"registers": 2},
        {"block_norm": "post", "mask_padding": True, "pad_id": 1, "positions_from_pad": True, "embed_norm": True,
         "pool_type": "first"},
    ),
}  # fmt: skip


def make(name, **changes):
    vision, text = MODELS[name]
    config = build(
        ClipConfig, {"embed_dim": 16, "vision_cfg": VISION | vision, "text_cfg": TEXT | text, **changes}, path="model"
    )
    state = nnx.to_pure_dict(nnx.state(Clip(config, rngs=nnx.Rngs(0))))
    params = {path: np.asarray(leaf) for path, leaf in flatten(state).items()}
    return Exported(config=config, params=params, tokenizer=None, card="", recipe={"steps": [1]})


def expected(model, rows):
    """The tower itself, by kind of row: unit embeddings."""

    @jax.jit
    def embed(rows):
        clip = Clip(model.config, rngs=nnx.Rngs(0))
        z = clip.encode_image({"image": rows}) if rows.dtype == jnp.uint8 else clip.encode_text(rows)
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    return np.asarray(embed(rows))


def inputs(model, count):
    return [encoder.example(count, vocab_size=50) for encoder in graphs.make_encoders(model, scan=True)]


def test_stablehlo_needs_jax_and_the_files_alone(tmp_path):
    model = make("clip", remat="dots", matmul_precision="int8")
    graphs.write_stablehlo(model, tmp_path)
    rows = {"a1": inputs(model, 1)[0], "a5": inputs(model, 5)[0], "b3": inputs(model, 3)[1]}
    np.savez(tmp_path / "rows.npz", **rows)
    code = f"""
import jax, numpy as np, safetensors.numpy, sys
params = safetensors.numpy.load_file("{tmp_path}/model.safetensors")
rows, results = np.load("{tmp_path}/rows.npz"), {{}}
for name, tower, key in (("image", "visual/", "a"), ("text", "text/", "b")):
    program = jax.export.deserialize(open(f"{tmp_path}/{{name}}.stablehlo", "rb").read())
    own = {{k: v for k, v in params.items() if k.startswith(tower)}}
    results |= {{name: program.call(own, x) for name, x in rows.items() if name.startswith(key)}}
assert "mmjax" not in sys.modules
np.savez("{tmp_path}/out.npz", **results)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with np.load(tmp_path / "out.npz") as file:
        out = dict(file)
    plain = dataclasses.replace(model, config=dataclasses.replace(model.config, matmul_precision="full"))
    for name, x in rows.items():
        np.testing.assert_allclose(out[name], expected(plain, x), atol=1e-6)
    description = json.loads((tmp_path / "mmjax_model.json").read_text())
    assert description["pixels"]["size"] == 32 and description["tokens"]["length"] == 12
    np.testing.assert_allclose(description["logit_scale"], model.params["logit_scale"])
    assert f"jax {jax.__version__}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_computes_the_same(name, tmp_path):
    """Needs jax2onnx (the extra ``onnx``)."""
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make(name)
    graphs.write_onnx(model, tmp_path)
    for rows, file in zip(inputs(model, 4), ("image", "text"), strict=True):
        session = onnxruntime.InferenceSession(tmp_path / f"{file}.onnx")
        (entry,) = session.get_inputs()
        assert entry.shape[0] == "batch" and entry.name in ("pixels", "tokens")
        (result,) = session.run(None, {entry.name: rows})
        np.testing.assert_allclose(result, expected(model, rows), atol=1e-5)


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    model = make("clip")
    true = graphs._apply
    calls = []

    def other(config, tower, params, rows):
        calls.append(tower)
        return true(config, tower, params, rows) + 0.01 * (len(calls) == 1)

    monkeypatch.setattr(graphs, "_apply", other)
    with pytest.raises(ConfigError, match=r"computes other embeddings than ours \(image tower"):
        graphs.write_onnx(model, tmp_path)


def test_what_programs_cannot_be_is_refused(tmp_path):
    model = make("clip")
    with pytest.raises(ConfigError, match="--dtype=bfloat16"):
        graphs.write_stablehlo(dataclasses.replace(model, dtype="bfloat16"), tmp_path)
    for fusion in ("tokens", "gated"):
        vision = dataclasses.replace(
            model.config.vision_cfg, modalities=("image", "depth"), modality_channels=(3, 1), fusion=fusion
        )
        with pytest.raises(ConfigError, match="takes image, depth together"):
            graphs.make_encoders(
                dataclasses.replace(model, config=dataclasses.replace(model.config, vision_cfg=vision)), scan=True
            )
