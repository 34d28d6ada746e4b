"""Plug-in folders: a module's file name is its name in a configuration."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mmjax.core.config import ConfigError, bind, choose, nearest


def names(folder: str) -> list[str]:
    """The plug-ins of a package such as ``mmjax.evals``: its modules but not its folders."""
    package = importlib.import_module(folder)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)


def load(folder: str, name: str, *, path: str) -> ModuleType:
    """The plug-in ``name``; ``path`` is the config key to blame when there is none."""
    return importlib.import_module(f"{folder}.{choose(name, names(folder), path=path)}")


def make(folder: str, attribute: str, section: Mapping[str, Any], *, path: str, **given: Any) -> Any:
    """An instance of a plug-in's class from a section ``{"name": …, **options}``; ``given`` come from the program."""
    if not hasattr(section, "items"):
        raise ConfigError(f"{path}={section!r}: expected a section with a name, one of {', '.join(names(folder))}")
    options = dict(section.items())
    if not options:
        raise ConfigError(f"{path}={{}}: the section is empty; name one of {', '.join(names(folder))}")
    if "name" not in options:
        raise ConfigError(f"{path}.name is missing; {nearest('', names(folder))}")
    target = getattr(load(folder, options.pop("name"), path=f"{path}.name"), attribute)
    return target(**bind(target, options, path=path, given=given))
