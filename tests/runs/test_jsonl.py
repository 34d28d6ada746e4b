"""JSON lines: each is there whole or not at all."""

import subprocess

from mmjax.runs.jsonl import JsonlWriter, read_jsonl
from support import disks


def test_a_line_is_there_whole_or_not_at_all_and_none_is_lost(tmp_path, messages):
    path = tmp_path / "metrics.jsonl"
    lines = JsonlWriter(path)
    assert lines.write({"n": 1})
    path.rename(tmp_path / "away")
    path.mkdir()  # nothing can be written there
    assert not lines.write({"n": 2}) and not lines.write({"n": 3})
    path.rmdir()
    (tmp_path / "away").rename(path)
    assert lines.write({"n": 4})
    assert [value for _, value in read_jsonl(path)] == [{"n": n} for n in (1, 2, 3, 4)]
    assert len(messages) == 2 and "cannot be written" in messages[0] and "can be written again" in messages[1]


def test_a_line_that_only_half_fits_leaves_no_trace(tmp_path):
    with disks.mounted(tmp_path / "disk", size="8k") as disk:
        lines = JsonlWriter(disk / "metrics.jsonl")
        written = [{"n": i, "text": "x" * 600} for i in range(40)]
        taken = [lines.write(line) for line in written]
        assert True in taken and False in taken
        whole = [value for _, value in read_jsonl(disk / "metrics.jsonl")]
        assert whole == written[: taken.count(True)]
        subprocess.check_call(["mount", "-o", "remount,size=64k", disk])
        assert lines.flush() and [value for _, value in read_jsonl(disk / "metrics.jsonl")] == written


def test_a_torn_end_is_ended_before_the_next_line(tmp_path):
    path = tmp_path / "starts.jsonl"
    path.write_text('{"a": 1}\n{"b"')
    assert JsonlWriter(path).write({"c": 3})
    assert path.read_text() == '{"a": 1}\n{"b"\n{"c": 3}\n'
