"""Trackers: TensorBoard's files, W&B by a stand-in, and what a run does with those that cannot be used."""

import math
import shutil
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mmjax.core.config import ConfigError
from mmjax.runs.metrics_file import MetricsWriter, read_metrics
from mmjax.runs.trackers import tensorboard
from mmjax.runs.trackers.common.base import load_trackers, open_trackers
from support import tiny


def test_events_are_on_disk_for_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, resume_step=6, trackers=[tensorboard.Tracker(tmp_path, resume_step=6)]) as writer:
        writer.write(7, {"val/rsum": 123.0, "val/nan": math.nan})
        (path,) = (tmp_path / "tensorboard").iterdir()
        data, events = path.read_bytes(), []  # before the file is closed
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert ".out.tfevents." in path.name  # by which TensorBoard knows it
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (7, SessionLog.START)
    assert events[2].step == 7 and events[2].wall_time > 1e9
    assert [v.tag for v in events[2].summary.value] == ["val/rsum", "val/nan"]
    assert events[2].summary.value[0].simple_value == 123.0 and math.isnan(events[2].summary.value[1].simple_value)


def test_event_files_are_in_the_order_of_their_starts_whatever_the_clock_says(tmp_path, monkeypatch):
    for now in (2e9, 1e9, 3e9):
        monkeypatch.setattr(tensorboard.time, "time", lambda now=now: now)
        tensorboard.Tracker(tmp_path).close()
    times = [path.name.split("tfevents.")[1][:10] for path in sorted((tmp_path / "tensorboard").iterdir())]
    assert times == ["2000000000", "1000000000", "3000000000"]


def test_a_disk_that_fails_for_a_while_begins_another_event_file(tmp_path):
    tracker = tensorboard.Tracker(tmp_path)
    tracker.write(1, {"a": 1.0})
    tracker.close()
    shutil.rmtree(tmp_path / "tensorboard")
    tracker.write(2, {"a": 2.0})  # there is no folder to write to
    (tmp_path / "tensorboard").mkdir()
    tracker.write(3, {"a": 3.0})
    tracker.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


class Wandb(types.ModuleType):
    """A stand-in for the package."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.runs, self.lines, self.finished, self.failing = [], [], 0, False

    def init(self, **options):
        if self.failing:
            raise RuntimeError("no network")
        self.runs.append(options)
        return self

    def define_metric(self, *args, **options):
        self.defined = (args, options)

    def log(self, line):
        if self.failing:
            raise RuntimeError("no network")
        self.lines.append(line)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def writer(workdir, step=-1):
    trackers = open_trackers(["wandb"], workdir, resume_step=step, config={"steps": 6})
    return MetricsWriter(workdir, resume_step=step, trackers=trackers)


def test_wandb_gets_what_metrics_jsonl_gets_in_one_run_over_restarts(wandb, tmp_path):
    for step in (-1, 1):
        with writer(tmp_path, step) as metrics:
            metrics.write(step + 2, {"train/loss": 0.5})
    assert wandb.lines == [{"step": 1, "train/loss": 0.5}, {"step": 3, "train/loss": 0.5}]
    first, second = wandb.runs
    assert first == second and first["config"] == {"steps": 6} and first["resume"] == "allow" and first["id"]
    assert wandb.defined == (("*",), {"step_metric": "step"}) and wandb.finished == 2


def test_a_service_that_fails_costs_no_run(wandb, tmp_path, caplog):
    metrics = writer(tmp_path)
    wandb.failing = True
    for step in (1, 2):
        metrics.write(step, {"a": 1.0})
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert caplog.messages == ["W&B gets no more metrics of this run (RuntimeError: no network)"]
    with pytest.raises(ConfigError, match=r"log\.trackers='wandb': W&B cannot be reached"):
        writer(tmp_path)


def test_a_tracker_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is missing; pip install 'mmjax\[wandb\]' or leave the tracker out"):
        load_trackers(["tensorboard", "wandb"])
    with pytest.raises(ConfigError, match=r"log\.trackers='tensorbord': no such name; did you mean 'tensorboard'"):
        tiny.experiment(log={"trackers": ("tensorbord",)})
