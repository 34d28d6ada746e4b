"""The documentation's pages taken apart: code blocks, inline code, links and anchors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.rglob("*.rst")])

FENCE = re.compile(r"^```+\{?([\w:-]*)\}?[^\n]*\n(.*?)^```+$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced code block of a page."""

    page: Path
    language: str
    code: str
    line: int

    @property
    def name(self) -> str:
        """Where it stands, for the name of a test."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """A page's path from the repository's root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of these languages."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
        if match[1] in languages
    ]


def all_blocks(*languages: str) -> list[Block]:
    """Those of every page."""
    return [block for page in PAGES for block in blocks(page, *languages)]


def saved_files(page: Path) -> dict[str, str]:
    """The Python blocks that a page has its reader save, by their names: ``Save this as `NAME`:``."""
    saved = re.findall(
        r"^Save this as `(\w+\.py)`:\n\n```python\n(.*?)^```$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return dict(saved)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks, or double ones in reStructuredText."""
    quoted = re.findall(r"``([^`\n]+)``|`([^`\n]+)`", prose(page))
    return [double or single for double, single in quoted]


def links(page: Path) -> list[str]:
    """The targets of Markdown links and images, and of ``:doc:`` in reStructuredText."""
    text = re.sub(r"`[^`\n]+`", "", prose(page)) if page.suffix == ".md" else prose(page)
    markdown = re.findall(r"\]\(([^)\s]+)\)", text)
    return markdown + [f"{target}.md" for target in re.findall(r":doc:`([^`<]+)`", text)]


def anchors(page: Path) -> set[str]:
    """The slugs of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as words, each part of a chain by itself."""
    result = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "|", ";"):
                result += [words] if words else []
                words = []
            else:
                words.append(word)
    return result
