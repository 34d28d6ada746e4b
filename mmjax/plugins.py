"""Plug-in folders: a module's file name is its name in a configuration."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from mmjax.config import choose


def names(folder: str) -> list[str]:
    """The plug-ins of a package such as ``mmjax.evals``: its modules but for those in the package's ``SHARED``."""
    package = importlib.import_module(folder)
    shared = getattr(package, "SHARED", ())
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in shared)


def load(folder: str, name: str, *, path: str) -> ModuleType:
    """The plug-in ``name``; ``path`` is the config key to blame when there is none."""
    return importlib.import_module(f"{folder}.{choose(name, names(folder), path=path)}")
