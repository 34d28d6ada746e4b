import collections

import pytest

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.sample import DataError
from mmjax.runs import unreadable_examples
from mmjax.runs.unreadable_examples import UnreadableExamples, check_left_out

BAD = ("a.jpg", "truncated image", "at byte 3")


def test_each_example_is_listed_once_also_over_restarts(tmp_path):
    made = UnreadableExamples(tmp_path, limit=1.0)
    made.add_batch(1, [BAD, ("b.jpg", "missing file", "")], rows=8)
    made.add_batch(2, [BAD], rows=8)
    assert made.count == 3 and made.summary() == "2 truncated image, 1 missing file"
    with (tmp_path / unreadable_examples.FILE).open("a") as file:
        file.write('{"step": 3, "key": "torn')  # by a kill
    again = UnreadableExamples(tmp_path, limit=1.0)
    again.add_batch(9, [BAD, ("c.jpg", "missing file", "")], rows=8)
    listed = unreadable_examples.read(tmp_path)
    assert [entry["key"] for entry in listed] == ["a.jpg", "b.jpg", "c.jpg"]
    assert listed[0] == {"step": 1, "key": "a.jpg", "reason": "truncated image", "detail": "at byte 3"}


def test_too_many_end_the_run_with_the_counts_and_where_they_are_listed(tmp_path):
    made = UnreadableExamples(tmp_path, limit=0.01)
    for step in range(10):  # ten of the first thousand are what 1 % of a thousand is
        made.add_batch(step, [BAD], rows=10)
    with pytest.raises(DataError) as error:
        made.add_batch(11, [BAD], rows=10)
    message = str(error.value)
    assert "11 of the 110 rows" in message and "truncated image" in message and "max_unreadable=0.01" in message
    assert str(tmp_path / unreadable_examples.FILE) in message
    made = UnreadableExamples(tmp_path, limit=0.01)
    for step in range(500):
        made.add_batch(step, [BAD] if step % 10 == 9 else [], rows=10)
    assert made.count == 50  # exactly 1 % of 5,000
    with pytest.raises(DataError):
        made.add_batch(501, [BAD], rows=10)


def test_a_limit_of_zero_takes_none_and_of_one_all(tmp_path):
    with pytest.raises(DataError):
        UnreadableExamples(tmp_path, limit=0.0).add_batch(1, [BAD], rows=8)
    UnreadableExamples(tmp_path, limit=1.0).add_batch(1, [BAD] * 8, rows=8)


class Source(list, source.Source):
    pass


def test_what_an_index_left_out_counts_before_anything_starts():
    many = Source(range(2000))
    assert check_left_out(many, limit=0.0) == []
    many.unreadable = [(f"{i}.tar", "truncated archive", "ends early") for i in range(20)]
    assert check_left_out(many, limit=0.01) == many.unreadable
    many.unreadable *= 2
    with pytest.raises(
        ConfigError, match=r"max_unreadable=0.01: 40 of the source's 2,040.*40 truncated archive.*0\.tar"
    ):
        check_left_out(many, limit=0.01)


def test_the_summary_puts_the_most_frequent_first():
    assert (
        unreadable_examples.format_counts(collections.Counter({"missing file": 1, "no caption": 12_000}))
        == "12,000 no caption, 1 missing file"
    )


def test_each_process_lists_its_own_and_all_are_read_once(tmp_path):
    first, second = UnreadableExamples(tmp_path, limit=0.5), UnreadableExamples(tmp_path, limit=0.5, process=1)
    first.add_batch(1, [("a", "truncated image", "x"), ("b", "missing file", "y")], rows=8)
    second.add_batch(1, [("b", "missing file", "y"), ("c", "truncated image", "z")], rows=8)
    assert sorted(entry["key"] for entry in unreadable_examples.read(tmp_path)) == ["a", "b", "c"]
    assert first.count == second.count == 2
    assert {path.name for path in tmp_path.glob("unreadable*")} == {"unreadable.jsonl", "unreadable.1.jsonl"}
    again = UnreadableExamples(tmp_path, limit=0.5, process=1)
    again.add_batch(2, [("a", "truncated image", "x")], rows=8)
    assert len((tmp_path / "unreadable.1.jsonl").read_text().splitlines()) == 2


def test_of_several_processes_none_ends_the_run_alone_and_the_limit_holds_for_all(tmp_path):
    made = UnreadableExamples(tmp_path, limit=0.01, process=1, processes=8, row_blocks=4)  # each row is read by two
    for step in range(100):
        made.add_batch(step, [BAD], rows=8)  # an eighth of its own rows
    assert made.to_row_count(64) == 32
    made.check(32, step=100)  # exactly 1 % of the 3,200 rows of all
    with pytest.raises(DataError, match=r"33 of the 3200 rows up to step 100 .*max_unreadable=0\.01"):
        made.check(33, step=100)
    assert int(made.total()) == made.count == 100  # of the one process that there is here
