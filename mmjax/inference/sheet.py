"""The contact sheet of a search: one self-contained page of the nearest pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.atomic import write_atomically
from mmjax.core.printable import printable
from mmjax.report.page import load_template
from mmjax.report.panels import Picture


def write_sheet(
    path: Path,
    matches: Sequence[Mapping[str, Any]],
    *,
    title: str,
    highlights: Sequence[tuple[str, str]] = (),
    query_picture: Picture | None = None,
) -> None:
    """Writes the page.

    Args:
        path: An HTML file.
        matches: What ``Searcher.show`` returns.
        title: What was searched for.
        highlights: Names and values below the title.
        query_picture: The picture that was searched for.
    """
    page = load_template("sheet.html.j2", Path(__file__).parent).render(
        title=title, highlights=highlights, query_picture=query_picture, matches=matches
    )
    write_atomically(path, printable(page, lines=True).encode())
