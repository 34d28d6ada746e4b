import io

import pytest

from mmjax.data.preparing.progress import Counter, amount, time_left


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_terminal_has_one_live_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clock, terminal = Clock(), Terminal()
    with Counter(2000, unit="examples", already=500, stream=terminal, timer=clock) as progress:
        clock.now += 10
        progress(1000)
        progress(1001)  # too soon
    assert terminal.getvalue().count("\r") == 2 and "\n" not in terminal.getvalue()
    assert "1,000/2,000 examples" in terminal.getvalue() and "50/s" in terminal.getvalue()
    assert " 50%" in terminal.getvalue() and "20s left" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")  # the next line starts clean


def test_a_narrow_terminal_is_not_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    Counter(10**9, unit="examples", stream=terminal)(10**8)
    assert len(terminal.getvalue().removeprefix("\r").removesuffix("\x1b[K")) == 29


def test_a_file_has_plain_lines_now_and_then():
    clock, file = Clock(), io.StringIO()
    with Counter(2000, unit="examples", stream=file, timer=clock) as progress:
        for second in range(25):
            clock.now += 1
            progress(second * 10)
    assert len(file.getvalue().splitlines()) == 2 and "\r" not in file.getvalue() and "#" not in file.getvalue()


def test_nothing_done_yet():
    terminal = Terminal()
    Counter(0, unit="examples", stream=terminal)(0)
    assert "0/0 examples" in terminal.getvalue() and "left" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59.6, "1m00s"), (72, "1m12s"), (3661, "1h01m"), (-5, "0s")]
)
def test_time_left(seconds, shown):
    assert time_left(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_amount(size, shown):
    assert amount(size) == shown
