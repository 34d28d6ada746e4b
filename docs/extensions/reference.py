"""Sphinx directives that write the reference from the code: configuration keys, commands and plug-ins."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

UNDERLINES = "=-~^"
CLASSES = {
    "mmjax.augment": "Augmentation",
    "mmjax.data.benchmarks": "Source",
    "mmjax.data.sources": "Source",
    "mmjax.data.transforms": "Transform",
    "mmjax.evals": "Evaluator",
    "mmjax.generate.blocks": "Block",
    "mmjax.objectives": "Objective",
}


INJECTED = {
    "towers",
    "rngs",
    "image_size",
    "token_format",
    "data_modalities",
    "background",
    "split",
    "row_sharding",
    "embed_dim",
}
"""Arguments that the program passes to plug-ins; a config cannot name them."""


os.environ["COLUMNS"] = "100"  # of argparse's usage


class Generated(SphinxDirective):
    """A directive whose content is reStructuredText that ``lines`` makes."""

    optional_arguments = 1

    def lines(self) -> Iterator[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        parent = nodes.section()
        parent.document = self.state.document
        nested_parse_with_titles(self.state, StringList(list(self.lines()), source="generated"), parent)
        return parent.children


class Configuration(Generated):
    """Every key of the schema, section by section."""

    def lines(self) -> Iterator[str]:
        from mmjax.experiment import Experiment

        yield from configuration(Experiment)


class Commands(Generated):
    """Every command with its options."""

    def lines(self) -> Iterator[str]:
        from mmjax import cli

        yield from commands(cli.make_parser(), "mmjax")


class Plugins(Generated):
    """Every plug-in of a folder with its options."""

    required_arguments = 1

    def lines(self) -> Iterator[str]:
        yield from plugins_of(self.arguments[0])


def configuration(section: type, path: str = "") -> Iterator[str]:
    """A heading, the docstring and the keys of a section, then its inner sections."""
    yield from heading(path or "Top level", 1)
    text, meanings = read_docstring(section)
    yield from text
    hints = typing.get_type_hints(section, include_extras=True)
    inner: list[tuple[type, str]] = []
    rows = []
    for field in dataclasses.fields(section):
        key = f"{path}.{field.name}" if path else field.name
        sections = [kind for kind in union_members(hints[field.name]) if dataclasses.is_dataclass(kind)]
        inner += [(kind, key) for kind in sections]
        default = "" if sections else format_default(field.default, field.default_factory)  # a section shows its own
        rows.append((f"``{key}``", format_type(hints[field.name]), default, meanings.get(field.name, "")))
    yield from table(("key", "type", "default", "meaning"), rows)
    for kind, key in inner:
        yield from configuration(kind, key)


def commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """A heading, the description and the options of each command that is no group of commands."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for word, child in group.choices.items():
            yield from commands(child, f"{name} {word}")
    if groups:
        return
    yield from heading(name, 1)
    yield from (*escape(parser.description or "").splitlines(), "")
    usage = parser.format_usage().removeprefix("usage: ").replace("[-h] ", "").splitlines()
    yield from ("::", "", *(f"    {line}" for line in usage), "")
    for action in parser._actions:
        if action.help in (argparse.SUPPRESS, None) or "--help" in action.option_strings:
            continue
        metavar = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
        term = ", ".join(action.option_strings) + (f" {metavar}" if metavar else "")
        values = {**vars(action), "prog": parser.prog}
        yield from (f"``{term.strip()}``", f"    {escape(str(action.help) % values)}", "")


def plugins_of(folder: str) -> Iterator[str]:
    """A heading, the docstrings and the options of each plug-in."""
    from mmjax.core import plugins

    for name in plugins.names(folder):
        module = importlib.import_module(f"{folder}.{name}")
        plugin = getattr(module, CLASSES[folder])
        yield from heading(name, 1)
        text, meanings = read_docstring(plugin)
        if module.__doc__ and not (plugin.__doc__ or "").startswith(module.__doc__):
            yield from read_docstring(module).text
        yield from text
        constructor = plugin if dataclasses.is_dataclass(plugin) else plugin.__init__
        meanings |= read_docstring(plugin.__init__).arguments
        hints = typing.get_type_hints(constructor, include_extras=True)
        rows = [
            (
                f"``{p.name}``",
                format_type(hints.get(p.name, Any)),
                "required" if p.default is p.empty else format_default(p.default),
                meanings.get(p.name, ""),
            )
            for p in inspect.signature(plugin.__init__).parameters.values()
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self" and p.name not in INJECTED
        ]
        yield from table(("option", "type", "default", "meaning"), rows)


def heading(text: str, level: int) -> Iterator[str]:
    """A title with a label of the same text."""
    yield from ("", text, UNDERLINES[level] * (len(text) + 2), "")


class Docstring(NamedTuple):
    """A docstring taken apart: reStructuredText, and the descriptions of its ``Args:`` or ``Attributes:``."""

    text: list[str]
    arguments: dict[str, str]


def read_docstring(documented: Any) -> Docstring:
    """Splits off the ``Args:`` section, and makes lists of lines such as "``name``  meaning"."""
    text: list[str] = []
    arguments: dict[str, str] = {}
    in_arguments, argument = False, ""
    for line in (inspect.getdoc(documented) or "").splitlines():
        indent = len(line) - len(line.lstrip())
        if not in_arguments:
            in_arguments = line.strip() in ("Args:", "Attributes:", "Options:")
            if not in_arguments:
                text.append(line)
        elif line.strip() and indent == 0:
            in_arguments = False
            text += ["", line]
        elif match := re.match(r"( {2}| {4})(\w+)(?: \([^)]*\))?: (.*)", line):
            argument = match[2]
            arguments[argument] = match[3]
        elif argument:
            arguments[argument] += f" {line.strip()}"
    return Docstring([*definitions(text), ""], arguments)


def definitions(lines: Iterable[str]) -> Iterator[str]:
    """Turns lines of a name in double backticks, two spaces and its meaning into a definition list."""
    inside = False
    for line in lines:
        match = re.fullmatch(r"(``[^`]+``(?:, ``[^`]+``)*)  +(\S.*)", line)
        if match:
            yield from ("", match[1], f"    {match[2]}")
            inside = True
        elif inside and line.startswith("  "):
            yield f"    {line.strip()}"
        else:
            if inside:
                yield ""
            inside = False
            yield line


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A list-table; nothing if there are no rows."""
    rows = [tuple(row) for row in rows]
    if not rows:
        return
    width = max(i + 1 for row in rows for i, cell in enumerate(row) if cell)  # columns that no row fills are left out
    yield from (".. list-table::", "   :header-rows: 1", "   :align: left", "")
    for row in (tuple(header), *rows):
        for i, cell in enumerate(row[:width]):
            yield f"   {'* -' if i == 0 else '  -'} {cell}"
    yield ""


def union_members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def format_type(kind: Any) -> str:
    """A type as a reader writes its values."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return ", ".join([format_type(arguments[0]), *map(str, arguments[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(format_type(a) for a in arguments))
    if origin is Literal:
        return ", ".join(f"``{a}``" for a in arguments)
    if kind is type(None):
        return "None"
    if dataclasses.is_dataclass(kind):
        return "schedule" if kind.__name__ == "Schedule" else "section"
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "section"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"several: {format_type(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(map(format_type, arguments))})"
    return escape(getattr(kind, "__name__", str(kind)))


def format_default(default: Any, factory: Any = dataclasses.MISSING) -> str:
    """A default value as code."""
    if factory is not dataclasses.MISSING:
        default = factory()
    return "required" if default is dataclasses.MISSING else f"``{default!r}``"


def escape(text: str) -> str:
    """Text without markup."""
    for mark in "\\*`|_":
        text = text.replace(mark, f"\\{mark}")
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("configuration-keys", Configuration)
    app.add_directive("commands", Commands)
    app.add_directive("plugins", Plugins)
    return {"parallel_read_safe": True}
