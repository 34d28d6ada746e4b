"""Checkpoints outside of the run folder: who may use them, who goes on from them, and places that cannot be."""

import contextlib
import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest

from mmjax.checkpoints import location
from mmjax.checkpoints.manager import Checkpoints
from mmjax.commands import inspect
from mmjax.commands.common.trained_model import open_model
from mmjax.core.config import ConfigError
from mmjax.parallel import collectives
from mmjax.runs import folder as run_folder
from mmjax.train import loop
from mmjax.train.program import Program
from mmjax.train.setup import setup
from support import tiny


def experiment(directory, **overrides):
    """With what a run would find out about its data first."""
    given = {"steps": 4, "eval__tasks": (), "checkpoint__directory": None if directory is None else str(directory)}
    made = tiny.experiment(**(given | overrides))
    return setup(made).experiment


def claimed(config, workdir):
    with run_folder.claim(workdir, config, overrides=()) as claimed:
        return claimed.augmentation_changes


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after its third step."""
    folder = tmp_path_factory.mktemp("stopped")
    config = experiment(folder / "bucket")
    program = Program(config)
    state = dataclasses.replace(program.initialize(), step=jax.device_put(jnp.int32(3), program.shardings.step))
    claimed(config, folder / "run")
    with contextlib.closing(Checkpoints(folder / "run", directory=config.checkpoint.directory)) as checkpoints:
        checkpoints.save(state, step=3)
    return folder


@pytest.mark.slow
def test_a_new_folder_goes_on_from_them_and_says_which_augmentations_changed(stopped, tmp_path, capsys):
    bucket, new = tmp_path / "bucket", tmp_path / "new"
    shutil.copytree(stopped / "bucket", bucket)
    outcome = loop.train(experiment(bucket, augment=(("latent_noise", {}),)), workdir=new)
    said = capsys.readouterr().out
    assert outcome.finished and "going on from the checkpoint of step 3" in said and "latent_noise is on" in said
    assert sorted(path.name for path in bucket.iterdir()) == ["3", "4", "config.json"]
    assert (new / "report.html").exists() and not (new / "checkpoints").exists()
    assert json.loads((bucket / "config.json").read_text()) == run_folder.read_config(new)
    assert inspect.summarize(new)["steps"] == location.list_steps("", str(bucket)) == [3, 4]
    # Its test split was measured at the end; measured again it is the same.
    model = open_model(str(new), options={})
    again = model.evaluation.run_final(model.params)
    assert again["test/rsum"] == pytest.approx(outcome.metrics["test/rsum"], abs=1e-3)


def test_another_experiment_does_not_go_on_from_them(stopped, tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint.directory=.*another experiment \(seed: 0 there, 1 now\)"):
        claimed(experiment(stopped / "bucket", seed=1), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_they_may_be_moved_but_not_left_behind(stopped, tmp_path):
    shutil.copytree(stopped / "run", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"has no checkpoints; those of this run are in .*bucket; copy them"):
        claimed(experiment(tmp_path / "moved"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--workdir=.*has no checkpoints.*bucket"):  # into the run folder
        claimed(experiment(None), tmp_path / "run")
    assert run_folder.checkpoint_directory(tmp_path / "run") == str(stopped / "bucket")
    shutil.copytree(stopped / "bucket", tmp_path / "moved")
    assert claimed(experiment(tmp_path / "moved"), tmp_path / "run") == []
    assert run_folder.checkpoint_directory(tmp_path / "run") == str(tmp_path / "moved")
    assert json.loads((tmp_path / "moved" / "config.json").read_text())["checkpoint"]["directory"].endswith("moved")


def test_a_run_without_checkpoints_may_take_any_place(tmp_path):
    claimed(experiment(tmp_path / "one"), tmp_path / "run")
    claimed(experiment(tmp_path / "two"), tmp_path / "run")
    assert run_folder.checkpoint_directory(tmp_path / "run") == str(tmp_path / "two")


def test_other_processes_then_need_no_common_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(collectives, "is_main_process", lambda: False)
    monkeypatch.setattr(run_folder, "_VISIBLE_SECONDS", 0.0)
    config = experiment(tmp_path / "bucket")
    claimed(config, tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"all machines share, or set checkpoint.directory"):
        claimed(tiny.experiment(steps=4), tmp_path / "common")
    # The next time it may be the first one.
    monkeypatch.undo()
    claimed(config, tmp_path / "mine")


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("file:///tmp/x", "unsupported storage; use gs://BUCKET/… or a path"),
        ("s3://bucket/x", "unsupported storage"),
        ("/proc/x", "cannot be written (FileNotFoundError"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(directory, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        claimed(experiment(directory), tmp_path / "run")
    assert str(error.value).startswith(f"checkpoint.directory={directory}: ") and message in str(error.value)


def test_what_a_bucket_needs_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # not installed
    with pytest.raises(ConfigError, match=r"=gs://bucket/x: needs gcsfs; pip install 'mmjax\[gcs\]'"):
        location.resolve_directory("", "gs://bucket/x")


def test_a_bucket_that_cannot_be_reached_is_said(monkeypatch):
    def exists(path):
        raise PermissionError("no credentials\nfound")

    monkeypatch.setattr(type(location.resolve_directory("", "/tmp")), "exists", exists)
    with pytest.raises(
        ConfigError, match=r"gs://bucket/x: cannot be reached \(PermissionError: no cred[^;]*\); check its name"
    ):
        location.resolve_directory("", "gs://bucket/x")


def test_a_damaged_configuration_there_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json is damaged .*copy that of the run folder there"):
        claimed(experiment(tmp_path), tmp_path / "run")


def test_without_checkpoints_reading_says_where_it_looked(tmp_path):
    with pytest.raises(ConfigError, match=rf"checkpoint.directory={tmp_path}/none: holds no checkpoints"):
        Checkpoints(tmp_path, directory=f"{tmp_path}/none", read_only=True)
    (tmp_path / "empty").mkdir()
    checkpoints = Checkpoints(tmp_path, directory=f"{tmp_path}/empty", read_only=True)
    with pytest.raises(ConfigError, match=rf"checkpoint.directory={tmp_path}/empty: holds no finished checkpoint"):
        checkpoints.resolve("last")
    checkpoints.close()
