import json
import math
import subprocess
import sys

import numpy as np
import pytest

from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.runs import metrics_file
from mmjax.runs.metrics_file import MetricsWriter, read_metrics


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def strictly(text):
    """Parses JSON as the standard has it: no NaN, no Infinity."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_each_write_is_a_line_of_valid_json_that_others_can_read_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "new" / "run")
    workdir = tmp_path / "new" / "run"
    writer.write(1, {"train/loss": np.float32(0.5), "train/learning_rate": 1})
    assert [strictly(line) for line in lines(workdir)] == [{"step": 1, "train/loss": 0.5, "train/learning_rate": 1.0}]
    writer.write(2, {"train/loss": math.nan, "a": math.inf, "b": -math.inf})
    assert strictly(lines(workdir)[1]) == {"step": 2, "train/loss": "NaN", "a": "Infinity", "b": "-Infinity"}
    back = read_metrics(workdir)[1]
    assert math.isnan(back["train/loss"]) and (back["a"], back["b"]) == (math.inf, -math.inf)
    writer.close()
    with pytest.raises(ValueError):
        writer.write(3, {"a": 1.0})


def test_a_metric_named_step_is_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="'step'"):
        writer.write(1, {"step": 3.0})
    assert lines(tmp_path) == []


def test_a_killed_and_resumed_run_has_each_step_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 8):
            writer.write(step, {"train/loss": float(step)})
    with MetricsWriter(tmp_path, resume_step=4) as writer:
        assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
        for step in range(5, 9):
            writer.write(step, {"train/loss": float(-step)})
    assert [(m["step"], m["train/loss"]) for m in read_metrics(tmp_path)] == [
        (s, s if s < 5 else -s) for s in range(1, 9)
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_without_a_checkpoint_everything_is_done_again(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"val/rsum": 1e308})
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"val/rsum": 1.0})
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    "tail", ['{"step": 3, "train/lo', "{", '{"step": 3}garbage', "\x00\x00\x00", "[1, 2]", "7", "\n"]
)
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1.0})
        writer.write(2, {"a": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2]
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"a": 3.0})
    assert [strictly(line)["step"] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00", b'{"a": 1}', b'{"step": null}', b'{"step": "NaN"}', b'{"step": 1, "a": [1]}', b"null"]
)
def test_damaged_lines_are_left_out_and_the_others_kept(tmp_path, damage):
    good = b'{"step": 1, "a": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + damage + b"\n" + good.replace(b"1", b"2"))
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2]


def test_no_file_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_kill_in_the_middle_of_the_rewrite_loses_nothing(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text("damaged\n" + path.read_text())  # so that what is kept is not the beginning of the file

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics_file.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, resume_step=1)
    assert len(lines(tmp_path)) == 2


def test_what_cannot_be_read_is_said(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n\x00\x00\n{"step": 2, "a": 2.0}\n{"st')
    MetricsWriter(tmp_path, resume_step=1).close()
    assert caplog.messages == ["metrics.jsonl: 2 of its lines cannot be read; they are removed"]
    assert [m["step"] for m in read_metrics(tmp_path)] == [1]
    MetricsWriter(tmp_path, resume_step=1).close()
    assert len(caplog.messages) == 1


def test_metrics_of_a_disk_that_fails_for_a_while_are_all_there_and_at_the_end_it_is_an_error(tmp_path, caplog):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"a": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.rename(tmp_path / "away")
    path.mkdir()
    writer.write(2, {"a": 2.0})
    with pytest.raises(CheckpointNotSaved, match=r"metrics.jsonl could not be written .*same command again"):
        writer.finish()
    path.rmdir()
    (tmp_path / "away").rename(path)
    writer.write(3, {"a": 3.0})
    writer.finish()
    writer.close()
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3]
    assert len(caplog.messages) == 2


def test_lines_outlive_a_process_that_is_killed(tmp_path):
    program = (
        "import os, sys; from mmjax.runs.metrics_file import MetricsWriter; w = MetricsWriter(sys.argv[1])\n"
        "for step in range(3): w.write(step, {'a': 1.0})\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 9
    assert [m["step"] for m in read_metrics(tmp_path)] == [0, 1, 2]
