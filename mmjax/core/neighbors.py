"""Imports of the files beside a file that is run by its path."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


@contextlib.contextmanager
def importable_neighbors(folder: Path) -> Iterator[None]:
    """Lets a file of ``folder`` import the others; other folders have theirs, so they are forgotten afterwards."""
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
