import io
import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mmjax.checkpoints.orbax_errors import NotSaved
from mmjax.runs import console
from mmjax.runs.console import MetricsWriter, Progress, duration, read_metrics


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


def test_events_are_on_disk_for_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, resume_step=6) as writer:
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
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


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

    monkeypatch.setattr(console.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, resume_step=1)
    assert len(lines(tmp_path)) == 2


def test_lines_outlive_a_process_that_is_killed(tmp_path):
    program = (
        "import os, sys; from mmjax.runs.console import MetricsWriter; w = MetricsWriter(sys.argv[1])\n"
        "for step in range(3): w.write(step, {'a': 1.0})\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 9
    assert [m["step"] for m in read_metrics(tmp_path)] == [0, 1, 2]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def screen(text, width=200):
    """What a terminal shows in the end: rows of text, the last one being where the cursor is."""
    rows, column = [""], 0
    i = 0
    while i < len(text):
        if text[i] == "\r":
            column = 0
        elif text[i] == "\n":
            rows.append("")
            column = 0
        elif text.startswith("\x1b[K", i):
            rows[-1] = rows[-1][:column]
            i += 2
        else:
            assert text[i] != "\x1b", "an escape sequence that is not known here"
            rows[-1] = rows[-1][:column] + text[i] + rows[-1][column + 1 :]
            column += 1
            assert column < width, "wraps"
        i += 1
    return rows


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def metrics(loss=2.345678, rate=12345.0, wait=0.031):
    return {"train/loss": loss, "train/examples_per_second": rate, "train/data_wait": wait, "train/other": 1.0}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train/mfu": 0.4149, "train/flops_per_second_per_device": 4e14}, "MFU 41%"),
        ({"train/flops_per_second_per_device": 3.82e10}, "38.2 GFLOP/s"),
        ({"train/flops_per_second_per_device": 1.5e12}, "1.5 TFLOP/s"),
    ],
)
def test_the_line_has_the_share_of_the_peak_or_else_the_arithmetic_and_still_fits(monkeypatch, more, words):
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    stream, clock = Terminal(), Clock()
    progress = Progress(1_000_000, stream=stream, clock=clock)
    for step in (123_455, 123_456):
        clock.now += 0.2
        progress.step(step, metrics() | more)
    (line,) = screen(stream.getvalue(), 80)
    for part in ("step 123,456/1,000,000", "loss 2.346", "ex/s", words, "ETA 2d00h"):
        assert part in line, part
    assert ("MFU" in line) == ("train/mfu" in more)


def run(stream, *, steps=range(1, 6), total=10, seconds=2.0, width=100, monkeypatch=None, **options):
    if monkeypatch is not None:
        monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    clock = Clock()
    progress = Progress(total, stream=stream, clock=clock, **options)
    for step in steps:
        clock.now += seconds
        progress.step(step, metrics())
    return progress


def test_the_live_line_says_where_the_run_is(monkeypatch):
    stream = Terminal()
    run(stream, monkeypatch=monkeypatch)
    (line,) = screen(stream.getvalue(), 100)
    for words in ("step 5/10", " 50%", "loss 2.346", "12.3k ex/s", "data 3%", "ETA 10s"):
        assert words in line, words


@pytest.mark.parametrize("width", [1, 2, 10, 20, 40, 60, 80, 200])
def test_no_width_makes_it_wrap_and_a_narrow_one_keeps_the_step(monkeypatch, width):
    stream = Terminal()
    run(stream, width=width, monkeypatch=monkeypatch)
    (line,) = screen(stream.getvalue(), width if width > 1 else 2)
    assert "step 5/10"[: width - 1] in line
    assert width < 80 or "━" in line


def test_a_shorter_line_leaves_nothing_of_the_longer_one(monkeypatch):
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((100, 24)))
    progress = Progress(3, stream=stream, clock=clock)
    progress.step(1, metrics(loss=123456.0, rate=1e9))
    clock.now += 1
    progress.step(2, {"train/loss": 1.0})
    (line,) = screen(stream.getvalue())
    assert "loss 1" in line and "ex/s" not in line and "1.235e+05" not in line


def test_notes_stand_above_the_live_line_and_the_end_is_clean(monkeypatch):
    stream = Terminal()
    with pytest.raises(RuntimeError), run(stream, monkeypatch=monkeypatch) as progress:
        progress.note("saved step 5")
        progress.metrics(5, {"val/rsum": 123.456, "val/image_to_text_mean_rank": 3.0})
        assert len(screen(stream.getvalue())) == 3
        raise RuntimeError
    above, evaluated, live, last = screen(stream.getvalue())
    assert above == "saved step 5" and "step 5/10" in live and last == ""
    assert evaluated == "step 5  val/rsum 123.5"
    before = stream.getvalue()
    progress.close()
    assert stream.getvalue() == before


def test_a_note_before_the_first_step_and_an_end_without_one(monkeypatch):
    stream = Terminal()
    with Progress(3, stream=stream) as progress:
        progress.note("compiling")
    assert screen(stream.getvalue()) == ["compiling", ""]


def test_a_file_gets_plain_lines_now_and_then():
    stream = io.StringIO()
    with run(stream, steps=range(1, 11), seconds=2.0, plain_seconds=6.0) as progress:
        progress.note("a note")
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "step 1/10",
        "step 4/10",
        "step 7/10",
        "step 10/10",
        "a note",
    ]
    assert "done" in text.splitlines()[3] and "ETA" in text.splitlines()[2]


def test_the_terminal_is_not_flooded(monkeypatch):
    stream = Terminal()
    run(stream, steps=range(1, 1001), total=2000, seconds=0.001, monkeypatch=monkeypatch)
    assert stream.getvalue().count("\r") <= 12


def test_the_estimate_forgets_compilation_and_evaluations(monkeypatch):
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, stream=stream, clock=clock, plain_seconds=0)
    for step in range(1, 101):
        clock.now += 60.0 if step in (2, 50) else 1.0
        progress.step(step, metrics())
    assert "ETA 15m00s" in stream.getvalue().splitlines()[-1]


def test_a_resumed_run_does_not_count_the_steps_before(monkeypatch):
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, stream=stream, clock=clock, plain_seconds=0)
    for step in (900, 901, 902):
        clock.now += 1.0
        progress.step(step, metrics())
    assert "ETA 1m38s" in stream.getvalue().splitlines()[-1]
    assert "ETA" not in stream.getvalue().splitlines()[0]


def test_a_terminal_without_unicode_gets_ascii(monkeypatch):
    class Old(Terminal):
        encoding = "ascii"

    stream = Old()
    run(stream, monkeypatch=monkeypatch)
    stream.getvalue().encode("ascii")
    assert "#" in stream.getvalue()


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e30, -0.0])
def test_any_loss_can_be_shown(monkeypatch, loss):
    stream = Terminal()
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((100, 24)))
    Progress(0, stream=stream).step(0, metrics(loss=loss))
    assert "loss" in screen(stream.getvalue())[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-3, "0s"), (59.4, "59s"), (72, "1m12s"), (11100, "3h05m"), (187200, "2d04h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_quiet_one_says_only_what_is_true_of_it_alone(monkeypatch):
    terminal = Terminal()
    run(terminal, quiet=True, monkeypatch=monkeypatch)
    with Progress(10, stream=terminal, quiet=True) as progress:
        progress.note("11,905 parameters")
        progress.metrics(5, {"val/rsum": 3.0})
        progress.warn("waiting for data for 10 s")
    assert terminal.getvalue() == "waiting for data for 10 s\n"


class Full(Terminal):
    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_log_on_a_full_disk_stops_nothing():
    with Progress(2, stream=Full()) as progress:
        progress.step(1, {"train/loss": 1.0})
        progress.note("said")
        progress.warn("said louder")


def test_event_files_are_in_the_order_of_their_starts_whatever_the_clock_says(tmp_path, monkeypatch):
    for now in (2e9, 1e9, 3e9):
        monkeypatch.setattr(console.time, "time", lambda now=now: now)
        MetricsWriter(tmp_path).close()
    times = [path.name.split("tfevents.")[1][:10] for path in sorted((tmp_path / "tensorboard").iterdir())]
    assert times == ["2000000000", "1000000000", "3000000000"]


def test_what_cannot_be_read_is_said(tmp_path):
    said = []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n\x00\x00\n{"step": 2, "a": 2.0}\n{"st')
    MetricsWriter(tmp_path, resume_step=1, say=said.append).close()
    assert said == ["metrics.jsonl: 2 of its lines cannot be read; they are left out"]
    assert [m["step"] for m in read_metrics(tmp_path)] == [1]
    MetricsWriter(tmp_path, resume_step=1, say=said.append).close()
    assert len(said) == 1


def test_metrics_of_a_disk_that_fails_for_a_while_are_all_there_and_at_the_end_it_is_an_error(tmp_path):
    said = []
    writer = MetricsWriter(tmp_path, say=said.append)
    writer.write(1, {"a": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.rename(tmp_path / "away")
    path.mkdir()
    writer.write(2, {"a": 2.0})
    with pytest.raises(NotSaved, match=r"metrics.jsonl could not be written .*same command again"):
        writer.finish()
    path.rmdir()
    (tmp_path / "away").rename(path)
    writer.write(3, {"a": 3.0})
    writer.finish()
    writer.close()
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3]
    assert len(said) == 2
