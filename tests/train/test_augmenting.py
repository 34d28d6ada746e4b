"""Augmentations as the step, the command line, checkpoints and the benchmark see them."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax import cli, plugins
from mmjax.config import ConfigError
from mmjax.config import build as build_section
from mmjax.models import presets
from mmjax.parallel.sharding import batch_shardings
from mmjax.train import experiment as experiments
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.program import Program, with_shardings
from mmjax.types import Batch, Provenance
from support import tiny
from support.training import assembled


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from mmjax.config import augmentations\nfrom support import tiny\n"
        "def get_config(arg=''):\n    return tiny.sections(augment=augmentations(arg or 'none'))\n"
    )
    return str(path)


def test_options_are_overridden_by_name(config):
    overrides = [("augment.latent_noise.strength", "0.3"), ("augment.latent_noise.weight", "{'value': 1, 'warmup': 5}")]
    sections = experiments.read(f"{config}:latent_noise", overrides)
    assert sections["augment"] == (("latent_noise", {"strength": 0.3, "weight": {"value": 1, "warmup": 5}}),)
    sections = experiments.read(f"{config}:latent_noise", [*overrides[1:], ("augment.latent_noise.weight.warmup", "7")])
    assert sections["augment"][0][1]["weight"] == {"value": 1, "warmup": 7}
    with pytest.raises(ConfigError, match=r"augment\.latent_nose\.weight=1.*'latent_noise'"):
        experiments.read(f"{config}:latent_noise", [("augment.latent_nose.weight", "1")])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ((("latent_noise", {"strenght": 1.0}),), r"augment\.latent_noise\.strenght=1\.0: unknown key; .*'strength'"),
        ((("latent_noise", {}), ("latent_noise", {})), r"augment: 'latent_noise' is named twice"),
        ((("latent_noise", {"tap": "tokens"}),), r"augment\.latent_noise\.tap='tokens'"),
    ],
)
def test_entries_that_cannot_be_used_are_named(augment, message):
    with pytest.raises(ConfigError, match=message):
        assembled(tiny.experiment(augment=augment))


def test_bench_times_augmentations_side_by_side(config, capsys):
    command = ["bench", "step", f"--config={config}", "--augment=none,latent_noise", "--repeats=1"]
    assert cli.main(command) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["augment", "none", "latent_noise"]
    flops = [float(row.split()[3]) for row in rows[1:]]
    assert flops[0] <= flops[1] <= flops[0] * 1.2


def test_each_tower_runs_once():
    """Whatever is added after it, the program has the plain one's convolutions and attentions and no more."""

    def counts(augment):
        program, batches = assembled(tiny.experiment(augment=augment), jax.devices()[:1])
        text = program.lower(program.batch_shape(next(batches))).as_text()
        batches.close()
        # Tokens of images and texts are the only arrays of these lengths.
        tokens = [line for line in text.splitlines() if "dot_general" in line and ("x16x16x" in line or "x22x" in line)]
        return text.count("stablehlo.convolution"), len(tokens), text.count("dot_general")

    plain = counts(())
    for augment in [(("mixup", {}),), (("m2mix", {"modes": ("m2", "v", "l", "vl")}),), (("lemda", LEMDA),)]:
        more = counts(augment)
        assert more[:2] == plain[:2] and min(plain[:2]) > 0
        assert more[2] > plain[2]


LEMDA = {"z_dim": 2, "layers": 1}


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
            model=build_section(presets.ClipConfig, model, path="model"),
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
        return program.lower(batch).cost_analysis()["flops"]

    one, two = flops(1, ()), flops(2, ())
    plain = one + 11 * (two - one)
    for name in plugins.names("mmjax.augment"):
        assert 0 < flops(1, ((name, {}),)) - one <= 0.01 * plain, name


def test_what_is_learned_is_saved_apart_and_training_goes_on_from_it(tmp_path):
    experiment = tiny.experiment(augment=(("lemda", LEMDA),), optimizer__average=0.9)
    program, batches = assembled(experiment, jax.devices()[:1])
    arrays = [next(batches) for _ in range(3)]
    batches.close()
    step = program.compile(program.batch_shape(arrays[0]))  # donates its state
    state, _ = step(program.initialise(), program.place(arrays[0]))
    state, _ = step(state, program.place(arrays[1]))
    kept = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, step=2)
    checkpoints.wait()
    restored = checkpoints.restore(program.state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), kept)
    assert not any("augment" in path or "lemda" in path for path in checkpoints.read_params())
    assert kept.average.keys() == kept.params.keys() and "augment" not in kept.params
    checkpoints.close()
    one, two = (jax.device_get(step(s, program.place(arrays[2]))[0]) for s in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    pairs = zip(jax.tree.leaves(kept.augment.params), jax.tree.leaves(one.augment.params), strict=True)
    moved = [np.any(a != b) for a, b in pairs]
    assert any(moved)


def test_without_anything_to_learn_the_state_is_the_plain_one():
    states = []
    for augment in ((), (("mixup", {}),)):
        program, batches = assembled(tiny.experiment(augment=augment), jax.devices()[:1])
        batches.close()
        states.append(program.state)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert states[0].augment is None
