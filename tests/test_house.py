"""The layout and the words that the code keeps to: rooms that import downwards only, and names a stranger knows."""

from __future__ import annotations

import ast
import functools
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmjax

PACKAGE = Path(mmjax.__file__).parent
ROOMS = sorted({p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")})

FLOORS = (
    {"core"},
    {"models", "objectives", "augment", "data", "evals", "parallel", "program", "weights"},
    {"experiment", "checkpoints"},
    {"config_file", "runs"},
    {"report"},
    {"inference"},
    {"train"},
    {"planning", "generate"},
    {"commands"},
    {"cli"},
)
"""From the lowest up. A room imports rooms of lower floors, and on its own floor only those of ``BESIDE``."""

BESIDE = {"evals": {"data", "parallel"}, "augment": {"models", "weights"}, "weights": {"models"}}
"""Rooms of the same floor that a room may import; there is no other."""

PLUGIN_FOLDERS = {
    *("augment", "commands", "data/sources", "data/transforms", "evals", "generate/backends", "generate/blocks"),
    *("generate/engines", "objectives"),
}
MOST_FILES = 16  # of a folder, without __init__.py: what fits a screen
MOST_LINES = 350  # of a file
MEDIAN_LINES = 120

PRIVATE_WORDS = {
    "told", "tell", "say", "said", "hears", "note", "speaks_for", "quiet", "in_parts", "parts", "Part", "Parts",
    "share", "shares", "Taken", "Columned", "Captioned", "Found", "Said", "Broken", "Saved", "Viewed", "Selected",
    "captioned", "viewed", "combined", "different", "of", "of_run", "skips", "damage", "meter", "rates", "clock",
    "Clock", "ledger", "Ledger", "stretch", "Towers", "extra", "held", "still", "held_apart", "words", "Words",
    "facts", "settings", "given", "found", "at", "which", "torn", "tear", "anew", "afresh", "described",
}  # fmt: skip
"""Names that meant something only here, each with a standard word in its place."""

GENUINE = {
    "words": {  # of captions
        "data/transforms/eda.py",
        "data/transforms/culture_mixup.py",
        "data/tokenizer.py",
        "data/benchmarks/word_order.py",
    },
}
"""Files in which one of them is the standard word after all."""

BRITISH = re.compile(
    r"colour|neighbour|behaviour|favour|centre|grey|licence|labell|modell|cancell|"
    r"(initial|normal|final|serial|general|local|optim|minim|maxim|summar|organ|recogn|quant|token|regular|vector|random)is"
    r"(e|ed|er|ing|ation)",
    re.IGNORECASE,
)


def files() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), parsed(path)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of mmjax that a file imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "mmjax":
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.partition(".")[0] == "mmjax")


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a file names itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def room_of(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def test_every_room_has_a_floor():
    placed = [room for floor in FLOORS for room in floor]
    assert sorted(placed) == sorted(set(ROOMS) - {"__init__", "__main__"})


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards_only(room):
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    upward = []
    for name, tree in files():
        if room_of(name) != room or room not in floor_of:
            continue
        for line, target in imports(tree):
            other = target.removeprefix("mmjax.").partition(".")[0]
            below = floor_of.get(other, -1) < floor_of[room]
            if other != room and other in floor_of and not below and other not in BESIDE.get(room, ()):
                upward.append(f"{name}:{line} imports {target}")
    assert not upward


def test_files_import_each_other_in_no_circle():
    modules = {f"mmjax.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__") for name, _ in files()}
    graph = {
        f"mmjax.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__"): {
            target if target in modules else target.rpartition(".")[0] for _, target in imports(tree)
        }
        & modules
        for name, tree in files()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in graph[module] - {module}:
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_folder_fits_a_screen_and_a_file_a_sitting():
    lengths = {name: len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name, _ in files()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    assert statistics.median(lengths.values()) < MEDIAN_LINES
    folders: dict[str, int] = {}
    for name in lengths:
        folder, _, file = name.rpartition("/")
        folders[folder] = folders.get(folder, 0) + (file != "__init__.py")
    assert {f: count for f, count in folders.items() if count > MOST_FILES and f not in PLUGIN_FOLDERS} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_standard_words(room):
    private = []
    for name, tree in files():
        if room_of(name) == room:
            private += [
                f"{name}:{line} {word}"
                for line, word in identifiers(tree)
                if (word.strip("_") in PRIVATE_WORDS and name not in GENUINE.get(word.strip("_"), ()))
                or BRITISH.search(word)
            ]
            stem = name.rpartition("/")[2].removesuffix(".py")
            if stem in PRIVATE_WORDS or BRITISH.search(stem):
                private.append(name)
    assert not private, "\n".join(private)
