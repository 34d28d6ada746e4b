import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.formats.csv_text import MOST_LINES, records

# Line ends within a field come back as one kind, and a line of blank fields alone is ambiguous: neither is drawn.
FIELD = st.text(st.sampled_from(list("ab \"',;\t|日é.")) | st.just("\n"), max_size=8)
QUOTING = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL]
ROWS = st.lists(st.tuples(FIELD.map(lambda text: f"x{text}"), FIELD, FIELD), max_size=6)


@settings(max_examples=200)
@given(
    ROWS, st.sampled_from(",\t;|"), st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
)
def test_what_the_csv_module_writes_comes_back(rows, separator, end, quoting):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows(rows)
    got = list(records(text.getvalue().splitlines(keepends=True), separator))
    assert [fields for _, fields in got] == [list(row) for row in rows]
    lines = [1 + sum(1 + "".join(row).count("\n") for row in rows[:i]) for i in range(len(rows))]
    assert [line for line, _ in got] == lines


@given(st.text(st.sampled_from('ab,"\n'), max_size=60))
def test_no_line_is_swallowed(text):
    lines = text.splitlines()
    got = dict(records(text.splitlines(keepends=True), ","))
    assert list(got) == sorted(got)
    for number, line in enumerate(lines, 1):
        if line and number not in got:  # then it is within the quotes of the row before
            start = max(at for at in got if at < number)
            assert not isinstance(got[start], str) and "\n" in "".join(got[start])
            whole = next(csv.reader([one + "\n" for one in lines[start - 1 :]], strict=True))
            assert whole == got[start] and sum(field.count("\n") for field in whole) >= number - start


@pytest.mark.parametrize(
    "text, expected",
    [
        ('a,b\n"open,c\nd,e\n', [(1, ["a", "b"]), (2, "a quote is never closed"), (3, ["d", "e"])]),
        ('"open,c\nd,"e"\nf,g\n', [(1, "a quote is never closed"), (2, ["d", "e"]), (3, ["f", "g"])]),
        ('a,5" wide\nb,6" and 7"\n', [(1, ["a", '5" wide']), (2, ["b", '6" and 7"'])]),
        ('"a" b,c\n', [(1, ["a b", "c"])]),
        ('a,"two\n\nlines"\nb,c\n', [(1, ["a", "two\n\nlines"]), (4, ["b", "c"])]),
        ("\n\r\na,b", [(3, ["a", "b"])]),
        ("", []),
    ],
)
def test_quotes(text, expected):
    assert list(records(text.splitlines(keepends=True), ",")) == expected


def test_a_quote_that_is_closed_too_far_away_is_not():
    lines = ['"open\n', *["x,y\n"] * MOST_LINES, 'z"\n']
    got = list(records(lines, ","))
    assert got[0] == (1, "a quote is never closed") and got[1:-1] == [(i, ["x", "y"]) for i in range(2, MOST_LINES + 2)]


def test_a_field_beyond_the_limit_of_the_csv_module_is_a_problem():
    lines = ['"' + "x" * 200_000 + '"\n', "a\n"]
    (first, problem), second = records(lines, ",")
    assert first == 1 and "limit" in problem and second == (2, ["a"])
