"""Augmentations as the step, the command line, checkpoints and the benchmark see them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from mmjax import cli, config_file
from mmjax.augment.common.base import Base
from mmjax.checkpoints.manager import Checkpoints
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.core.config import build as build_section
from mmjax.core.types import Batch, Provenance
from mmjax.models import presets
from mmjax.models.config import ClipConfig
from mmjax.parallel.sharding import batch_shardings
from mmjax.train.augmentation import Augmentations
from mmjax.train.program import Program, with_shardings
from support import features, tiny
from support.training import assembled, trained


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from support import tiny\n\ndef get_config(arg=''):\n"
        "    return tiny.sections(augment=tuple((name, {}) for name in arg.split('+') if name))\n"
    )
    return str(path)


def test_options_are_overridden_by_name(config):
    overrides = [("augment.latent_noise.strength", "0.3"), ("augment.latent_noise.weight", "{'value': 1, 'warmup': 5}")]
    sections = config_file.load_config(f"{config}:latent_noise", overrides)
    assert sections["augment"] == (("latent_noise", {"strength": 0.3, "weight": {"value": 1, "warmup": 5}}),)
    sections = config_file.load_config(
        f"{config}:latent_noise", [*overrides[1:], ("augment.latent_noise.weight.warmup", "7")]
    )
    assert sections["augment"][0][1]["weight"] == {"value": 1, "warmup": 7}
    with pytest.raises(ConfigError, match=r"augment\.latent_nose\.weight=1.*'latent_noise'"):
        config_file.load_config(f"{config}:latent_noise", [("augment.latent_nose.weight", "1")])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ((("latent_noise", {"strenght": 1.0}),), r"augment\.latent_noise\.strenght=1\.0: unknown key; .*'strength'"),
        ((("latent_noise", {}), ("latent_noise", {})), r"augment: 'latent_noise' is named twice"),
        ((("latent_noise", {"tap": "tokens"}),), r"augment\.latent_noise\.tap='tokens'"),
        ((("mixup", {"weight": {"value": 1.0, "over": 5}}),), r"augment\.mixup\.weight: a schedule's over=5"),
        (
            (("lemda", {}), ("patch_dropout", {"drop_rate": 1.5})),
            r"augment\.patch_dropout\.drop_rate=1\.5: must be between",
        ),
    ],
)
def test_entries_that_cannot_be_used_are_named(augment, message):
    with pytest.raises(ConfigError, match=message):
        assembled(tiny.experiment(augment=augment))


@pytest.mark.slow
def test_bench_times_augmentations_side_by_side(config, capsys):
    command = ["bench", "step", f"--config={config}", "--augment=none,latent_noise", "--repeats=1"]
    assert cli.main(command) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["augment", "none", "latent_noise"]
    column = rows[0].split().index("GFLOP")
    flops = [float(row.split()[column]) for row in rows[1:]]
    assert flops[0] <= flops[1] <= flops[0] * 1.2


def test_each_tower_runs_once():
    """Whatever is added after it, the program has the plain one's convolutions and attentions and no more."""

    def counts(augment):
        program, batches = assembled(tiny.experiment(augment=augment), jax.devices()[:1])
        text = program.trace(program.batch_shape(next(batches))).lower().as_text()
        batches.close()
        # Tokens of images and texts are the only arrays of these lengths.
        tokens = [line for line in text.splitlines() if "dot_general" in line and ("x16x16x" in line or "x22x" in line)]
        return text.count("stablehlo.convolution"), len(tokens), text.count("dot_general")

    plain = counts(())
    for augment in [(("mixup", {}),), (("m2mix", {"modes": ("m2", "v", "l", "vl")}),), (("lemda", LEMDA),)]:
        more = counts(augment)
        assert more[:2] == plain[:2] and min(plain[:2]) > 0
        assert more[2] > plain[2]


LEMDA = {"z_dim": 3, "layers": 1}


@pytest.mark.slow
def test_full_size_models_cost_at_most_a_hundredth_more():
    """Compiled FLOPs at ViT-B-16, counted from the program before compilation: each layer alike, so two are enough."""

    def flops(layers, augment):
        model = presets.load("ViT-B-16")
        model["scan"] = False
        for tower in ("vision_cfg", "text_cfg"):
            model[tower]["layers"] = layers
        model["text_cfg"] |= {"pad_id": 0, "eos_id": 1}
        experiment = dataclasses.replace(
            tiny.experiment(augment=augment, batch_size=64),
            model=build_section(ClipConfig, model, path="model"),
        )
        program = Program(experiment, devices=jax.devices()[:1])
        shape = lambda *s, dtype: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
        source = lambda: Provenance(ids=shape(64, 1, dtype=np.int32), weight=shape(64, 1, dtype=np.float32))  # noqa: E731
        batch = Batch(
            images={"image": shape(64, 224, 224, 3, dtype=np.uint8)},
            tokens=shape(64, 77, dtype=np.int32),
            image_source=source(),
            text_source=source(),
        )
        batch = with_shardings(batch, batch_shardings(batch, program.mesh))
        return program.trace(batch).lower().cost_analysis()["flops"]

    one, two = flops(1, ()), flops(2, ())
    plain = one + 11 * (two - one)
    late = [name for name, module in made_alone().items() if not module.tap.startswith("tokens")]
    assert len(late) > 5
    for name in late:
        assert 0 < flops(1, ((name, {}),)) - one <= 0.01 * plain, name


def made_alone():
    """Each augmentation that makes views, by name."""
    found = {}
    for name in plugins.names("mmjax.augment"):
        if issubclass(plugins.load("mmjax.augment", name, path="augment").Augmentation, Base):
            found |= Augmentations.from_config(((name, {}),), towers=features.TOWERS, seed=0).modules
    return found


@pytest.mark.slow
def test_what_is_learned_is_saved_apart_and_training_goes_on_from_it(tmp_path):
    experiment = tiny.experiment(augment=(("lemda", LEMDA),), optimizer__ema_decay=0.9)
    program, batches = assembled(experiment, jax.devices()[:1])
    arrays = [next(batches) for _ in range(3)]
    batches.close()
    step = program.trace(program.batch_shape(arrays[0])).lower().compile()  # donates its state
    first = program.initialize()
    state, _ = step(first, program.place(arrays[0]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first)), "a state lives on beside its successor"
    state, _ = step(state, program.place(arrays[1]))
    kept = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, step=2)
    checkpoints.wait()
    restored = checkpoints.restore(program.abstract_state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), kept)
    assert not any("augment" in path or "lemda" in path for path in checkpoints.read_params())
    assert kept.ema_params.keys() == kept.params.keys() and "augment" not in kept.params
    checkpoints.close()
    one, two = (jax.device_get(step(s, program.place(arrays[2]))[0]) for s in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    pairs = zip(
        jax.tree.leaves(kept.augment["lemda"].params), jax.tree.leaves(one.augment["lemda"].params), strict=True
    )
    moved = [np.any(a != b) for a, b in pairs]
    assert any(moved)


def test_without_anything_to_learn_the_state_is_the_plain_one():
    states = []
    for augment in ((), (("mixup", {}),)):
        program, batches = assembled(tiny.experiment(augment=augment), jax.devices()[:1])
        batches.close()
        states.append(program.abstract_state)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert states[0].augment == {}


@pytest.mark.slow
def test_augmentations_are_switched_between_checkpoints(tmp_path):
    """What is on in both goes on with what it has learned; what is new, or of another size, starts afresh."""
    mixed = {"xmda": {}, "lemda": LEMDA}
    states, programs = {}, {}
    for name, augment in {
        "both": tuple(mixed.items()),
        "none": (),
        "one": (("xmda", {}), ("mixup", {})),
        "other": (("lemda", {**LEMDA, "z_dim": 4}), ("xmda", {})),
    }.items():
        program, batches = assembled(tiny.experiment(augment=augment), jax.devices()[:1])
        batches.close()
        programs[name], states[name] = program, program.initialize()
    for before, after, kept in (
        ("both", "none", []), ("none", "both", []), ("both", "one", ["xmda"]), ("both", "other", ["xmda"]),
    ):  # fmt: skip
        folder = tmp_path / f"{before}-{after}"
        checkpoints = Checkpoints(folder)
        checkpoints.save(states[before], step=1)
        checkpoints.wait()
        restored = checkpoints.restore(programs[after].abstract_state)
        assert list(restored.augment) == kept, (before, after)
        for name in kept:
            jax.tree.map(np.testing.assert_array_equal, restored.augment[name], states[before].augment[name])
        jax.tree.map(np.testing.assert_array_equal, restored.params, states[before].params)
        checkpoints.close()


@pytest.mark.slow
def test_a_run_goes_on_with_other_augmentations_and_says_so(config, tmp_path, capsys):
    """Through the command: off, then on, with the change on the terminal and in the record of starts."""
    workdir = tmp_path / "run"
    common = [f"--workdir={workdir}", "--config.eval.tasks=()", "--config.eval.final_tasks=('retrieval',)"]

    def train(augment):
        assert cli.main(["train", f"--config={config}:{augment}", *common]) == 0
        return capsys.readouterr().out

    train("latent_noise")
    back_to(workdir, 3)
    output = train("xmda")
    assert "going on from the checkpoint of step 3" in output
    assert "augmentation changes after step 3: xmda is on; latent_noise is off" in output
    assert "parameters of xmda start from scratch" in output
    starts = [json.loads(line) for line in (workdir / "starts.jsonl").read_text().splitlines()]
    assert starts[0]["augment_changes"] == [] and len(starts[1]["augment_changes"]) == 2
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if "augment/latent_noise/weight" in line} == {1, 2, 3}
    assert {line["step"] for line in lines if "augment/xmda/weight" in line} == {4, 5, 6}


def back_to(workdir, step):
    """As if the run had been killed after this step's checkpoint."""
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > step:
            shutil.rmtree(folder)
    (workdir / "report.html").unlink()


@pytest.mark.slow
def test_a_step_with_augmentations_is_the_same_on_every_mesh(monkeypatch):
    """With networks of their own, sequences, dropped tokens and the sigmoid objective's bias."""
    monkeypatch.setattr("mmjax.parallel.sharding.FSDP_MIN_SIZE", 1)
    augment = (
        ("lemda", {**LEMDA, "prediction": "bernoulli", "learning_rate": 1e-2, "adversarial": 1.0}),
        ("xmda", {"weight": 0.1}),
        ("mixup", {"tap": "tokens@0", "draw": "row"}),
        ("patch_dropout", {"drop_rate": 0.25}),
    )
    found = []
    for devices, split in ((1, 1), (8, 2)):
        experiment = tiny.experiment(
            augment=augment,
            objective={"name": "sigmoid"},
            model__init_logit_bias=-10.0,
            mesh__fsdp=split,
            mesh__tensor=split,
        )
        found.append(trained(experiment, steps=3, devices=devices))
    for (one, want), (other, got) in zip(*found, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-4)
        for a, b in zip(jax.tree.leaves(other.augment), jax.tree.leaves(one.augment), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3)
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=5e-3, abs=2e-3), name
