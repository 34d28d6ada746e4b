"""``mmjax export``: folders that come back as the same model, averages and interpolations, and refusals."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from mmjax import cli
from mmjax.checkpoints.manager import Checkpoints
from mmjax.core.state import TrainState
from mmjax.experiment import Experiment
from mmjax.runs.start_weights import open_weights, read_arrays


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """As a run that keeps no moving average."""
    workdir = shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["optimizer"]["ema_decay"] = 0.0
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.fixture(scope="module")
def adapted(run):
    """As a run that started from the other, with two checkpoints of adapters."""
    workdir = run.parent / "adapted"
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns("checkpoints"))
    config, numbers = json.loads((run / "config.json").read_text()), np.random.default_rng(0)
    config |= {"lora": {"rank": 2, "alpha": 1.0}, "init": {"source": str(run)}}
    (workdir / "config.json").write_text(json.dumps(config))
    layers = [path.removesuffix("/kernel") for path in saved(run, 3) if path.endswith("/kernel")]
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (1, 2):
        arrays = saved(run, 3)
        for layer in layers[:-1]:  # of all but the last
            stacked, inputs = "/blocks/" in layer, {"out": 2, "patch_embed": 3}.get(layer.split("/")[-1], 1)
            shape = arrays[f"{layer}/kernel"].shape
            lead, inputs, outputs = shape[:stacked], shape[stacked : stacked + inputs], shape[stacked + inputs :]
            arrays[f"{layer}/lora/a"] = numbers.normal(0, 0.1, (*lead, *inputs, 2)).astype(np.float32)
            arrays[f"{layer}/lora/b"] = numbers.normal(0, 0.1, (*lead, 2, *outputs)).astype(np.float32)
        state = TrainState(
            step=np.int32(step), params=unflatten_dict(arrays, sep="/"), opt_state={"m": np.zeros(1)}, ema_params=None
        )
        checkpoints.save(jax.tree.map(jnp.asarray, state), step=step)
    checkpoints.close()
    return workdir


def saved(run, step):
    return Checkpoints(run, read_only=True).read_params(step=step)


def export(run, out, *flags):
    return cli.main(["export", f"--workdir={run}", f"--output={out}", *flags])


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_what_is_exported_comes_back_bit_for_bit(run, tmp_path, capsys, format):
    out = tmp_path / "out"
    assert export(run, out, f"--format={format}", "--license=mit") == 0
    model = Experiment.from_dict(json.loads((run / "config.json").read_text())).model
    params = saved(run, 3)
    back = read_arrays(str(out), model, params)
    for path, array in params.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)
    assert open_weights(str(out)).tokenizer == str(out)
    card = (out / "README.md").read_text()
    assert "license: mit" in card and "test/rsum" in card and "step 3" in card
    assert json.loads((out / "mmjax_config.json").read_text())["experiment"]["steps"] == 3
    assert str(out) in capsys.readouterr().out


def test_a_mean_of_steps_and_one_with_other_weights(run, tmp_path):
    assert export(run, tmp_path / "a", "--format=hf", "--average=1,2,3") == 0
    assert export(run, tmp_path / "b", "--format=hf", "--step=3", f"--interpolate={run}@1:0.25") == 0
    model = Experiment.from_dict(json.loads((run / "config.json").read_text())).model
    one, two, three = (saved(run, step) for step in (1, 2, 3))
    soup, between = (read_arrays(str(tmp_path / name), model, one) for name in "ab")
    for path in one:
        exact = np.mean([x[path].astype(np.float64) for x in (one, two, three)], axis=0)
        np.testing.assert_allclose(soup[path], exact, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(between[path], 0.25 * three[path] + 0.75 * one[path], rtol=1e-5, atol=1e-7)


def test_adapters_are_merged_before_anything_else(run, adapted, tmp_path):
    base, one, two = saved(run, 3), saved(adapted, 1), saved(adapted, 2)
    assert export(adapted, tmp_path / "merged", "--format=hf") == 0
    assert export(adapted, tmp_path / "mean", "--format=hf", "--average=1,2") == 0
    assert export(adapted, tmp_path / "half", "--format=hf", "--interpolate=init:0.5") == 0
    model = Experiment.from_dict(json.loads((adapted / "config.json").read_text())).model
    merged, mean, half = (read_arrays(str(tmp_path / name), model, base) for name in ("merged", "mean", "half"))
    again = read_arrays(str(adapted), model, base)  # as init, mmjax.load and --interpolate read a run
    changed = 0
    for path, array in base.items():
        layer = path.removesuffix("/kernel")
        if f"{layer}/lora/a" not in two:
            np.testing.assert_array_equal(merged[path], array, err_msg=path)
            continue
        each = []
        for step in (one, two):
            a, b = step[f"{layer}/lora/a"].astype(np.float64), step[f"{layer}/lora/b"].astype(np.float64)
            blocks = zip(a, b, strict=True) if "/blocks/" in layer else [(a, b)]
            products = [0.5 * np.tensordot(x, y, axes=1) for x, y in blocks]  # alpha/rank
            each.append(array + (np.stack(products) if "/blocks/" in layer else products[0]))
        np.testing.assert_allclose(merged[path], each[1], atol=1e-6, err_msg=path)
        np.testing.assert_array_equal(again[path], merged[path], err_msg=path)
        np.testing.assert_allclose(mean[path], (each[0] + each[1]) / 2, atol=1e-6, err_msg=path)
        np.testing.assert_allclose(half[path], (each[1] + array) / 2, atol=1e-6, err_msg=path)
        changed += not np.array_equal(merged[path], array)
    assert changed == 14  # six in the blocks of each tower, the patch embedding, and one of both projections


def test_adapters_alone_are_named_as_peft_names_them(run, adapted, tmp_path):
    assert export(adapted, tmp_path / "out", "--format=peft", "--license=mit") == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 1.0)
    assert config["base_model_name_or_path"] == str(run)
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert len(tensors) == 2 * len(config["target_modules"]) == 2 * (2 * 12 + 2)
    query = "vision_model.encoder.layers.1.self_attn.q_proj"
    arrays = saved(adapted, 2)
    a, b = (tensors[f"base_model.model.{query}.lora_{letter}.weight"] for letter in "AB")
    np.testing.assert_array_equal(a, arrays["visual/blocks/attn/query/lora/a"][1].T)
    np.testing.assert_array_equal(b, arrays["visual/blocks/attn/query/lora/b"][1].reshape(2, -1).T)
    assert {query, "text_model.encoder.layers.0.mlp.fc2", "text_projection"} < set(config["target_modules"])
    patches = [tensors[f"base_model.model.vision_model.embeddings.patch_embedding.lora_{x}.weight"] for x in "AB"]
    assert [x.shape for x in patches] == [(2, 3, 8, 8), (16, 2, 1, 1)]
    card = (tmp_path / "out/README.md").read_text()
    assert f"base_model: {run}" in card and "library_name: peft" in card


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what it is about to rename
def test_peft_loads_the_adapters_and_embeds_as_the_merged_model(run, adapted, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import CLIPModel

    folders = {name: tmp_path / name for name in ("base", "peft", "merged")}
    assert export(run, folders["base"], "--format=hf") == 0
    assert export(adapted, folders["peft"], "--format=peft") == export(adapted, folders["merged"], "--format=hf") == 0
    model = peft.PeftModel.from_pretrained(CLIPModel.from_pretrained(folders["base"]), folders["peft"]).eval()
    merged = CLIPModel.from_pretrained(folders["merged"]).eval()
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(3, 40, (2, 22)))
    pixels = torch.from_numpy(random.normal(size=(2, 3, 32, 32)).astype(np.float32))
    with torch.no_grad():
        got, want, plain = (m(input_ids=ids, pixel_values=pixels) for m in (
            model, merged, CLIPModel.from_pretrained(folders["base"]).eval()))  # fmt: skip
    for side in ("image_embeds", "text_embeds"):
        difference, moved = (getattr(x, side) - getattr(want, side) for x in (got, plain))
        assert difference.abs().max() < 1e-5 < moved.abs().max()


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({}, ["--average=1,2"], "--average makes kernels"),
        ({"train": ("visual/proj/.*",)}, [], "lora.train=('visual/proj/.*',)"),
        ({"rank": 0}, [], "has no adapters (lora.rank=0)"),
        ({"init": None}, [], "started from random numbers"),
        ({"grid": 6}, [], "from 4 patches a side to 6"),
    ],
)
def test_what_adapters_do_not_hold_is_refused(adapted, tmp_path, capsys, options, flags, message):
    changed = tmp_path / "run"
    shutil.copytree(adapted, changed)
    config = json.loads((changed / "config.json").read_text())
    config["lora"] |= {key: value for key, value in options.items() if key in ("train", "rank")}
    if "init" in options:
        config["init"]["source"] = None
    if "grid" in options:
        config["model"]["vision_cfg"]["image_size"] = 8 * options["grid"]
    (changed / "config.json").write_text(json.dumps(config))
    assert export(changed, tmp_path / "out", "--format=peft", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=big_vision"], "big_vision cannot express model.vision_cfg.patch_bias=False"),
        (["--format=hf", "--ema"], "keeps no moving average"),
        (["--format=hf", "--average=1,x"], "--average=1,x: expected steps"),
        (["--format=hf", "--average=1", "--step=2"], "leave one of the two out"),
        (["--format=hf", "--average=7"], "7"),
        (["--format=hf", "--interpolate=init:0.5"], "started from random numbers"),
        (["--format=hf", "--interpolate=0.5"], "expected SPEC:FRACTION"),
        (["--format=hf", "--interpolate=init:2"], "--interpolate=2.0: must be between 0 and 1"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_folder(run, tmp_path, capsys, flags, message):
    assert export(run, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_weights_that_a_run_started_from_are_one_side_of_the_mean(run, tmp_path, capsys):
    tuned = shutil.copytree(run, tmp_path / "tuned")
    config = json.loads((tuned / "config.json").read_text())

    def started_from(**init):
        (tuned / "config.json").write_text(json.dumps(config | {"init": init}))

    started_from(source=f"{run}@2")
    assert export(tuned, tmp_path / "out", "--format=hf", "--step=3", "--interpolate=init:0.5") == 0
    before, after = saved(run, 2), saved(run, 3)
    between = read_arrays(str(tmp_path / "out"), Experiment.from_dict(config).model, before)
    for path, array in before.items():
        np.testing.assert_allclose(between[path], (array + after[path]) / 2, rtol=1e-5, atol=1e-7)
    assert f"0.5 of it and 0.5 of {run}@2" in (tmp_path / "out" / "README.md").read_text()
    started_from(vision=f"{run}@2")
    assert export(tuned, tmp_path / "again", "--format=hf", "--interpolate=init:0.5") == 2
    assert "its towers come from init.vision and init.text" in capsys.readouterr().err


def test_a_folder_is_pushed_when_it_is_complete(run, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    pushed = []

    def upload_folder(*, repo_id, folder_path):
        pushed.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
        return f"https://hub.example/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, exist_ok: pushed.append((name, exist_ok)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    assert export(run, tmp_path / "out", "--format=hf", "--push=me/mine") == 0
    assert pushed[0] == ("me/mine", True) and pushed[1] == ("me/mine", {p.name for p in (tmp_path / "out").iterdir()})
    assert "https://hub.example/me/mine" in capsys.readouterr().out


def test_a_hub_that_refuses_leaves_the_folder(run, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    def refuse(*args, **options):
        raise OSError("401 Client Error.\nlog in first")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    assert export(run, tmp_path / "out", "--format=hf", "--push=me/mine") == 2
    error = capsys.readouterr().err
    assert "--push=me/mine: the hub refused it (401 Client Error. log in first)" in error
    assert len(error.splitlines()) == 1 and (tmp_path / "out" / "model.safetensors").exists()
    assert export(run, tmp_path / "other", "--format=hf", "--push=mine") == 2
    assert "--push=mine: expected OWNER/NAME" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert export(run, tmp_path, "--format=hf") == 2
    assert "not an empty folder" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
