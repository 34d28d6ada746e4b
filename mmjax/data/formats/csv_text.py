"""Rows of csv and tsv text, each with its line number; a bad row does not take its neighbors.

A quote that is never closed would turn all lines up to the next quote into one field. So a row of several lines must be
well formed; otherwise only its first line is a bad row, and reading goes on at the next line.

Not pyarrow.csv: a quote that is never closed makes it swallow all rows up to the next quote,
or lose them as one row, and splitting is 0.10 s of the 0.79 s that a table of 300,000 rows takes to open.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

MOST_LINES = 100  # of one row

Record = list[str] | str
"""The fields of a row, or why it is bad."""


def records(lines: Iterable[str], separator: str) -> Iterator[tuple[int, Record]]:
    """Line number (from 1) and fields of each row, quoted as by the csv module; empty lines are skipped."""
    source = iter(lines)
    ahead: deque[str] = deque()
    number = 0

    def following() -> str | None:
        return ahead.popleft() if ahead else next(source, None)

    while (line := following()) is not None:
        number += 1
        line = line.rstrip("\r\n")
        if '"' not in line:
            if line:
                yield number, line.split(separator)
            continue
        taken = [line]
        try:
            reader = csv.reader([line, ""], delimiter=separator)
            fields = next(reader)
            closed = reader.line_num == 1
            while not closed and len(taken) < MOST_LINES and (more := following()) is not None:
                taken.append(more.rstrip("\r\n"))
                # Only another quote can end a quoted field.
                if '"' in more:
                    whole = _row(taken, separator)
                    if whole is not None:
                        fields, closed = whole, True
                        break
            if closed:
                yield number, fields
                number += len(taken) - 1
                continue
            problem = "a quote is never closed"
        except csv.Error as error:
            problem = str(error)
        yield number, problem
        ahead.extendleft(reversed(taken[1:]))


def _row(lines: list[str], separator: str) -> list[str] | None:
    """The fields if these lines are exactly one well-formed row."""
    reader = csv.reader((line + "\n" for line in lines), delimiter=separator, strict=True)
    try:
        fields = next(reader)
    except csv.Error:
        return None
    return fields if reader.line_num == len(lines) else None
