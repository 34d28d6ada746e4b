"""Plug-ins: classes and commands that a configuration or command line calls by name.

A name is looked for in this order:

1. ``mixup`` in ``augment`` is the module ``mmjax/augment/mixup.py``. mmjax's own plug-ins come first, so that no
   installed package changes what a configuration means.
2. Otherwise it is an entry point of an installed package, here in the group ``mmjax.augment``; the other groups are
   ``mmjax.sources``, ``mmjax.transforms``, ``mmjax.objectives``, ``mmjax.evals``, ``mmjax.trackers``,
   ``mmjax.blocks``, ``mmjax.backends``, ``mmjax.engines`` and ``mmjax.commands``. Its ``pyproject.toml`` says::

       [project.entry-points."mmjax.augment"]
       my_mix = "my_package.my_mix"

   Of two packages that offer the same name neither is taken.
3. A dotted name, ``my_package.my_mix``, is a module that Python can import.

The module holds the plug-in's class, such as ``Augmentation``; an entry point may name the class itself
(``my_package.mixes:MyMix``).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mmjax.core.config import ConfigError, bind, call, choose, nearest, short_repr


def names(folder: str) -> list[str]:
    """The plug-ins of a package such as ``mmjax.evals``: its modules but not its folders, and entry points."""
    return sorted(_modules(folder) | _entry_points(_group(folder)).keys())


def check(folder: str, name: str, *, path: str) -> None:
    """Raises ConfigError unless there is such a plug-in; imports it only if its name is dotted."""
    if _is_dotted(name):
        load(folder, name, path=path)
    else:
        choose(name, names(folder), path=path)


def load(folder: str, name: str, *, path: str) -> Any:
    """The module of a plug-in, or what its entry point names.

    Args:
        folder: The package of mmjax's own plug-ins of this kind.
        name: The plug-in's name in the configuration.
        path: The config key that an error names.
    """
    if isinstance(name, str) and name in _modules(folder):
        return importlib.import_module(f"{folder}.{name}")
    if _is_dotted(name):
        return _import(lambda: importlib.import_module(name), name, module=name, path=path)
    candidates = _entry_points(_group(folder))[choose(name, names(folder), path=path)]
    if len(candidates) > 1:
        sources = ", ".join(sorted(entry.value for entry in candidates))
        raise ConfigError(f"{path}={name!r}: several installed packages have it; write one of {sources}")
    return _import(candidates[0].load, name, module=candidates[0].module, path=path)


def load_class(folder: str, attribute: str, name: str, *, path: str) -> Any:
    """The class ``attribute`` of a plug-in's module."""
    target = load(folder, name, path=path)
    if inspect.ismodule(target):
        if not hasattr(target, attribute):
            raise ConfigError(
                f"{path}={name!r}: the module {target.__name__} has no class {attribute}; define it there, as {folder} "
                "does"
            )
        target = getattr(target, attribute)
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        raise ConfigError(f"{path}={name!r}: its class {target.__name__} lacks {', '.join(missing)}; define them")
    return target


def make(folder: str, attribute: str, section: Mapping[str, Any], *, path: str, **injected: Any) -> Any:
    """An instance of a plug-in's class from a section ``{"name": …, **options}``.

    Args:
        folder: The package of mmjax's own plug-ins of this kind.
        attribute: The name of the class in its module.
        section: The plug-in's name and options.
        path: The config key of the section.
        injected: Arguments that the program supplies.
    """
    if not hasattr(section, "items"):
        raise ConfigError(
            f"{path}={short_repr(section)}: expected a section with a name, one of {', '.join(names(folder))}"
        )
    options = dict(section.items())
    if not options:
        raise ConfigError(f"{path}={{}}: the section is empty; name one of {', '.join(names(folder))}")
    if "name" not in options:
        raise ConfigError(f"{path}.name is missing; {nearest('', names(folder))}")
    target = load_class(folder, attribute, options.pop("name"), path=f"{path}.name")
    bound = bind(target, options, path=path, injected=injected)
    return call(target, bound, path=path, paths={name: name for name in injected})


def _is_dotted(name: Any) -> bool:
    return isinstance(name, str) and "." in name and all(part.isidentifier() for part in name.split("."))


def _group(folder: str) -> str:
    return f"{folder.partition('.')[0]}.{folder.rpartition('.')[2]}"


def _modules(folder: str) -> set[str]:
    package = importlib.import_module(folder)
    return {module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg}


@functools.cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    result: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        if entry not in result.setdefault(entry.name, []):  # a package can be on sys.path twice
            result[entry.name].append(entry)
    return result


def _import(load: Callable[[], Any], name: str, *, module: str, path: str) -> Any:
    """What ``load`` returns; whatever it raises becomes a ConfigError, because the code is not ours."""
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{path}={name!r}: there is no module {error.name}; install its package or put its folder on PYTHONPATH"
            ) from None
        raise ConfigError(f"{path}={name!r}: {module} cannot be imported ({error})") from error
    except Exception as error:
        raise ConfigError(f"{path}={name!r}: {module} cannot be imported ({type(error).__name__}: {error})") from error
