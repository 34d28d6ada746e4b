"""Files of lines: each is there whole or not at all."""

import subprocess

from mmjax.runs.jsonl import LineFile
from support import disks


def test_a_line_is_there_whole_or_not_at_all_and_none_is_lost(tmp_path, messages):
    path = tmp_path / "metrics.jsonl"
    lines = LineFile(path)
    assert lines.write("one")
    path.rename(tmp_path / "away")
    path.mkdir()  # nothing can be written there
    assert not lines.write("two") and not lines.write("three")
    path.rmdir()
    (tmp_path / "away").rename(path)
    assert lines.write("four")
    assert path.read_text().split() == ["one", "two", "three", "four"]
    assert len(messages) == 2 and "cannot be written" in messages[0] and "can be written again" in messages[1]


def test_a_line_that_only_half_fits_leaves_no_trace(tmp_path):
    with disks.mounted(tmp_path / "disk", size="8k") as disk:
        lines = LineFile(disk / "metrics.jsonl")
        written = [f"{i:03d}" + "x" * 600 for i in range(40)]
        taken = [lines.write(line) for line in written]
        assert True in taken and False in taken
        whole = (disk / "metrics.jsonl").read_text().splitlines()
        assert whole == written[: taken.count(True)]
        subprocess.check_call(["mount", "-o", "remount,size=64k", disk])
        assert lines.flush() and (disk / "metrics.jsonl").read_text().splitlines() == written


def test_a_torn_end_is_ended_before_the_next_line(tmp_path):
    path = tmp_path / "starts.jsonl"
    path.write_text('{"a": 1}\n{"b"')
    assert LineFile(path).write('{"c": 3}')
    assert path.read_text() == '{"a": 1}\n{"b"\n{"c": 3}\n'
