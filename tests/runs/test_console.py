import io
import logging
import math
import os

import pytest

from mmjax.runs import console
from mmjax.runs.console import Progress, duration

logger = logging.getLogger("mmjax.tests")


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
    progress = Progress(1_000_000, stream=stream, now=clock)
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
    progress = Progress(total, stream=stream, now=clock, **options)
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
    progress = Progress(3, stream=stream, now=clock)
    progress.step(1, metrics(loss=123456.0, rate=1e9))
    clock.now += 1
    progress.step(2, {"train/loss": 1.0})
    (line,) = screen(stream.getvalue())
    assert "loss 1" in line and "ex/s" not in line and "1.235e+05" not in line


def test_messages_stand_above_the_live_line_and_the_end_is_clean(monkeypatch):
    stream = Terminal()
    with pytest.raises(RuntimeError), run(stream, monkeypatch=monkeypatch) as progress:
        logger.info("saved step 5")
        progress.metrics(5, {"val/rsum": 123.456, "val/image_to_text_mean_rank": 3.0})
        assert len(screen(stream.getvalue())) == 3
        raise RuntimeError
    above, evaluated, live, last = screen(stream.getvalue())
    assert above == "saved step 5" and "step 5/10" in live and last == ""
    assert evaluated == "step 5  val/rsum 123.5"
    before = stream.getvalue()
    progress.close()
    assert stream.getvalue() == before


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (
            {"test/rsum": 90.0, "test/num_images": 40.0, "test/captioning/cider": 0.6, "test/captioning/bleu_4": 0.2},
            "test/rsum 90  test/captioning/cider 0.6",
        ),
        ({"val/vqa/accuracy": 0.5, "val/vqa/unlisted": 0.0}, "val/vqa/accuracy 0.5  val/vqa/unlisted 0"),
    ],
)
def test_every_evaluator_has_a_metric_on_the_terminal(monkeypatch, metrics, shown):
    stream = Terminal()
    with run(stream, monkeypatch=monkeypatch) as progress:
        progress.metrics(5, metrics)
        assert screen(stream.getvalue())[0] == f"step 5  {shown}"


def test_news_before_the_first_step_and_an_end_without_one(monkeypatch):
    stream = Terminal()
    with Progress(3, stream=stream):
        logger.info("compiling")
    assert screen(stream.getvalue()) == ["compiling", ""]


def test_a_file_gets_plain_lines_now_and_then():
    stream = io.StringIO()
    with run(stream, steps=range(1, 11), seconds=2.0, plain_seconds=6.0):
        logger.info("news")
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "step 1/10",
        "step 4/10",
        "step 7/10",
        "step 10/10",
        "news",
    ]
    assert "done" in text.splitlines()[3] and "ETA" in text.splitlines()[2]


def test_the_terminal_is_not_flooded(monkeypatch):
    stream = Terminal()
    run(stream, steps=range(1, 1001), total=2000, seconds=0.001, monkeypatch=monkeypatch)
    assert stream.getvalue().count("\r") <= 12


def test_the_estimate_forgets_compilation_and_evaluations(monkeypatch):
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, stream=stream, now=clock, plain_seconds=0)
    for step in range(1, 101):
        clock.now += 60.0 if step in (2, 50) else 1.0
        progress.step(step, metrics())
    assert "ETA 15m00s" in stream.getvalue().splitlines()[-1]


def test_a_resumed_run_does_not_count_the_steps_before(monkeypatch):
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, stream=stream, now=clock, plain_seconds=0)
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


def test_another_process_shows_only_what_is_true_of_it_alone(monkeypatch):
    terminal = Terminal()
    run(terminal, primary=False, monkeypatch=monkeypatch)
    with Progress(10, stream=terminal, primary=False) as progress:
        logger.info("11,905 parameters")
        progress.metrics(5, {"val/rsum": 3.0})
        logger.warning("waiting for data for 10 s")
    assert terminal.getvalue() == "waiting for data for 10 s\n"


class Full(Terminal):
    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_log_on_a_full_disk_stops_nothing():
    with Progress(2, stream=Full()) as progress:
        progress.step(1, {"train/loss": 1.0})
        logger.info("said")
        logger.warning("said louder")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_that_is_not_utf8_shows_what_it_can(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    with Progress(10, stream=stream):
        logger.info("waiting for data… 日本")
    stream.flush()
    assert b"waiting for data" in stream.buffer.getvalue() and b"\\u65e5\\u672c" in stream.buffer.getvalue()


def test_messages_cannot_steer_the_terminal():
    stream = Terminal()
    with Progress(10, stream=stream):
        logger.warning("key \x1b]0;title\x07")
    assert r"key \x1b]0;title\x07" in stream.getvalue()
