"""Augmentations as the step, the command line, checkpoints and the benchmark see them."""

import jax
import numpy as np
import pytest

from mmjax import cli
from mmjax.config import ConfigError
from mmjax.train import experiment as experiments
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
    """Whatever the augmentations, the program has the plain one's convolutions and attentions and no more."""

    def counts(augment):
        program, batches = assembled(tiny.experiment(augment=augment), jax.devices()[:1])
        text = program.lower(program.batch_shape(next(batches))).as_text()
        batches.close()
        return text.count("stablehlo.convolution"), text.count("dot_general"), text.count("stablehlo.exponential")

    plain, pooled, embedding = (counts(a) for a in ((), noise("pooled"), noise("embedding")))
    assert plain[0] == pooled[0] == embedding[0] > 0
    assert pooled[1] - plain[1] == 9  # three products for each projection and for the logits
    assert embedding[1] - plain[1] == 3
    assert np.subtract(pooled, embedding)[2] == 0


def noise(tap):
    return (("latent_noise", {"tap": tap}),)
