"""Config files: found, run, and changed by the command line's overrides."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import runpy
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjax.core import config
from mmjax.core.config import ConfigError
from mmjax.experiment import Experiment, expand_init, expand_model

NAMED = ("augment", "data.transforms")
"""Lists of plug-ins with their options, which an override may give by names alone: ``mixup+lemda``."""


def load_config(spec: str, overrides: Iterable[tuple[str, str]] = (), *, folder: str = "") -> dict[str, Any]:
    """The sections of a config file with overrides applied in order; not yet checked.

    Args:
        spec: ``PATH[:ARGUMENT]``, or the name of a shipped file in place of its path (``scenes:size=large``). The
            file's ``get_config(argument)`` returns the configuration. It can import other files of its folder.
        overrides: Pairs of a dotted key and a Python literal (``"none"`` and other plain words are strings).
        folder: That of the shipped files; ``generate`` has those of recipes.
    """
    name, _, argument = spec.partition(":")
    shipped = shipped_configs(folder)
    path = name if Path(name).is_file() else shipped.get(name)
    if path is None:
        raise ConfigError(
            f"--config={name}: neither a file nor a shipped configuration; {config.nearest(Path(name).stem, shipped)}"
        )
    with _importable_neighbors(Path(path).resolve().parent):
        try:
            module = runpy.run_path(path)
            if "get_config" not in module:
                raise ConfigError(f"--config={name}: defines no function get_config(argument)")
            result = module["get_config"](argument)
            if not hasattr(result, "items"):
                raise ConfigError(
                    f"--config={name}: get_config returns {type(result).__name__}; return a ConfigDict or a dict"
                )
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"--config={name}: {_where(error, path)}{type(error).__name__}: {error}") from error
    sections = _plain(result)
    for key, text in overrides:
        _override(sections, key, text)
    return sections


def shipped_configs(subfolder: str = "") -> dict[str, str]:
    """Paths of the configuration files that come with mmjax, by name."""
    package = Path(__file__).parent
    # In an installed package they are inside it, in a checkout beside it (pyproject.toml).
    inside = package / "configs"
    folder = (inside if inside.is_dir() else package.parent / "configs") / subfolder
    return {path.stem: str(path) for path in sorted(folder.glob("*.py")) if path.stem != "common"}


@contextlib.contextmanager
def _importable_neighbors(folder: Path) -> Iterator[None]:
    """Lets a config file import files of its folder; other folders have theirs, so they are forgotten afterwards."""
    neighbors = {path.stem for path in folder.glob("*.py")} - sys.stdlib_module_names

    def pop_neighbors() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name in neighbors}

    others = pop_neighbors()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        pop_neighbors()
        sys.modules.update(others)


def _override(sections: dict[str, Any], key: str, text: str) -> None:
    for listed in (*NAMED, "stages"):
        if key.startswith(f"{listed}.") and key.count(".") > listed.count(".") + 1:
            _override_listed(sections, listed, key, text)
            return
    *parents, last = key.split(".")
    place = sections
    for depth, parent in enumerate(parents):
        inner = place[parent] if parent in place else _default_section(parents[: depth + 1])
        if depth == 0 and parent == "init":
            inner = expand_init(inner)
        if depth == 0 and parent == "model":
            inner = expand_model(inner, init=expand_init(sections.get("init", {})))
        place[parent] = place = _section(inner, parent, key=key, text=text)
    _set(place, last, key=key, text=text)


def _set(place: dict[str, Any], last: str, *, key: str, text: str) -> None:
    value = config.literal(text)
    if key in NAMED and isinstance(value, str):
        value = tuple((name, {}) for name in re.split(r"[+,]", value) if name != "none")
    if isinstance(place.get(last), dict) and not (isinstance(value, dict) or key in ("model", "init")):
        raise ConfigError(
            f"{key}={config.shorten(text)}: {last!r} is a section; set one of its keys, e.g. --config.{key}.KEY "
            f"({', '.join(place[last])})"
        )
    place[last] = value


def _section(value: Any, name: str, *, key: str, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}={config.shorten(text)}: {name!r} is not a section but {config.short_repr(value)}")
    return value


def parse_arguments(text: str, /, **defaults: Any) -> types.SimpleNamespace:
    """The arguments of a config file, as in ``augment=mixup,size=small``.

    Args:
        text: What follows the colon of ``--config=FILE:…``.
        defaults: The arguments that the file has. A value has the type of its default.
    """
    values = dict(defaults)
    for word in filter(None, (word.strip() for word in (text or "").split(","))):
        name, equals, value = word.partition("=")
        if not equals or name not in defaults:
            raise ConfigError(f"argument {word!r} of the config file: {config.nearest(name, defaults)}, as name=value")
        kind = type(defaults[name])
        try:
            values[name] = kind(value)
        except ValueError:
            raise ConfigError(f"argument {word!r} of the config file: expected {kind.__name__}") from None
    return types.SimpleNamespace(**values)


def _default_section(path: list[str]) -> dict[str, Any]:
    """What a section that the config file leaves out starts from: its plug-in's name, where it has a default one."""
    kind: Any = Experiment
    for name in path:
        field = next((field for field in dataclasses.fields(kind) if field.name == name), None)
        if field is None:
            return {}
        if field.default_factory is not dataclasses.MISSING and isinstance(start := field.default_factory(), dict):
            return start
        kind = typing.get_type_hints(kind)[name]
        if not dataclasses.is_dataclass(kind):
            return {}
    return {}


def _override_listed(sections: dict[str, Any], listed: str, key: str, text: str) -> None:
    """``augment.NAME.KEY`` (or a key of its schedule), and likewise for transforms: the entries are pairs, in order."""
    *parents, last = listed.split(".")
    place = sections
    for parent in parents:
        place = _section(place.setdefault(parent, {}), parent, key=key, text=text)
    try:
        entries = [(str(entry), dict(options)) for entry, options in place.get(last, ())]
    except (TypeError, ValueError):
        value = config.short_repr(place[last])
        raise ConfigError(f"{listed}={value}: expected pairs of a name and options, as (('flip', {{}}),)") from None
    target = key.removeprefix(f"{listed}.")
    # An entry's name has dots where it is a module of another package.
    name, options = next(((n, o) for n, o in entries if target.startswith(f"{n}.")), (target.partition(".")[0], None))
    if options is None:
        way = config.nearest(name, dict(entries))
        if listed in NAMED and not way.startswith("did you mean"):
            way = f"add it by --config.{listed}={'+'.join([*dict(entries), name])} before that"
        raise ConfigError(f"{key}={config.shorten(text)}: {listed} has no such entry; {way}")
    *inner, option = target.removeprefix(f"{name}.").split(".")
    for section in inner:
        options = _section(options.setdefault(section, {}), section, key=key, text=text)
    _set(options, option, key=key, text=text)
    place[last] = tuple(entries)


def _plain(value: Any) -> Any:
    """ConfigDicts as dictionaries."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _where(error: BaseException, path: str) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"line {lines[-1]}: " if lines else ""
