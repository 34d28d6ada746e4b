"""A run starts from the weights that ``init`` names, wherever they come from."""

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.core.state import flatten
from mmjax.experiment import Experiment
from mmjax.runs.start_weights import open_weights
from mmjax.train.loop import train
from mmjax.train.setup import setup
from mmjax.weights.export.folders import Exported, write_open_clip
from support import tiny


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run


def start(**overrides):
    """The parameters that a run begins with, by path."""
    experiment = Experiment.from_dict(tiny.sections(**{"model": tiny.VIT} | overrides))
    return {path: np.asarray(leaf) for path, leaf in flatten(setup(experiment).program.initialize().params).items()}


def test_a_run_goes_on_from_another_runs_average(run, messages):
    from mmjax.checkpoints.manager import Checkpoints

    saved = Checkpoints(run, read_only=True).read_params(ema=True)
    begun = start(init=str(run), model="init", data__tokenizer__name="init", seed=5)
    for path, array in saved.items():
        np.testing.assert_array_equal(begun[path], array, err_msg=path)
    assert any("parameters are those of" in message for message in messages)


def test_one_tower_and_dropped_parameters_keep_their_random_values(run):
    plain = start(seed=5)
    mixed = start(
        seed=5, init={"vision": str(run), "drop": ("visual/proj/.*",)}, data__tokenizer__name=str(run / "tokenizer")
    )
    taken = start(seed=5, init=str(run), data__tokenizer__name=str(run / "tokenizer"))
    for path, array in mixed.items():
        from_run = path.startswith("visual/") and not path.startswith("visual/proj/")
        np.testing.assert_array_equal(array, (taken if from_run else plain)[path], err_msg=path)
    assert not np.array_equal(mixed["visual/blocks/mlp/fc1/kernel"], plain["visual/blocks/mlp/fc1/kernel"])


def test_a_checkpoint_can_be_named(run):
    assert open_weights(f"{run}@2").towers == ["visual", "text"]
    for wrong in ("7", "nope"):
        with pytest.raises(ConfigError, match=wrong):
            open_weights(f"{run}@{wrong}")


def test_the_folder_of_another_library_starts_a_run_on_eight_devices(run, tmp_path):
    experiment = Experiment.from_dict(tiny.sections(model=tiny.VIT, data__tokenizer__name=str(run / "tokenizer")))
    resolved = setup(experiment)
    params = {path: np.asarray(leaf) for path, leaf in flatten(resolved.program.initialize().params).items()}
    params = {path: np.random.default_rng(0).normal(size=a.shape).astype(np.float32) for path, a in params.items()}
    config = resolved.experiment.model
    write_open_clip(Exported(config=config, params=params, tokenizer=run / "tokenizer", card="", recipe={}), tmp_path)
    begun = start(init=str(tmp_path), model="init", data__tokenizer__name="init", mesh={"data": 2, "fsdp": 4})
    for path, array in params.items():
        np.testing.assert_array_equal(begun[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"init": "./nowhere"}, "init.source='./nowhere': no such file or folder"),
        ({"init": {"source": None, "drop": ("visual/.*",)}}, "nothing is loaded"),
        ({"model": "init"}, "model='init': there are no weights"),
        ({"data__tokenizer__name": "init"}, "data.tokenizer.name='init': there are no weights"),
    ],
)
def test_what_is_missing_is_said_before_a_folder_is_made(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as error:
        train(Experiment.from_dict(tiny.sections(**overrides)), workdir=tmp_path / "run")
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_weights_of_another_model_are_refused(run):
    with pytest.raises(ConfigError, match=r"model.vision_cfg.width=96: the weights of .*with 16"):
        start(init=str(run), model="scenes-tiny", data__tokenizer__name=str(run / "tokenizer"))


def test_a_pattern_that_matches_nothing_is_refused(run):
    with pytest.raises(ConfigError, match=r"init.drop='vision.*': matches no parameter"):
        start(init={"source": str(run), "drop": ("vision.*",)}, data__tokenizer__name=str(run / "tokenizer"))
