"""From a section of a configuration to an opened source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind, call
from mmjax.data.selection import FilteredSource, Selection
from mmjax.data.source import Source

FOLDER = "mmjax.data.sources"
Section = Mapping[str, Any]


def open_source(
    section: Section,
    *,
    split: str,
    modalities: tuple[str, ...] = ("image",),
    path: str = "data.source",
    further: Section | None = None,
    further_path: str = "data.train",
) -> Source:
    """Opens the source that ``section`` names.

    Args:
      section: ``name`` and options of a source, and perhaps ``selection``, which selects examples and captions by
        columns of scores (``mmjax.data.selection``).
      split: passed to the source.
      modalities: passed to the source.
      path: of the section, for errors.
      further: options that replace those of ``section``; with a ``name`` it replaces the section.
      further_path: of ``further``, for errors.
    """
    further = dict(further or {})
    if "name" in further:
        section, further, path = further, {}, further_path
    options = {key: value for key, value in section.items() if key not in further}
    if "name" not in options:
        raise ConfigError(f"{path}.name is missing; known: {', '.join(plugins.names(FOLDER))}")
    name = options.pop("name")
    source = plugins.load_class(FOLDER, "Source", name, path=f"{path}.name")
    if not issubclass(source, Source):
        raise ConfigError(f"{path}.name={name!r}: its class Source must derive from mmjax.data.source.Source")
    selection_path = f"{further_path if 'selection' in further else path}.selection"
    selection = further.pop("selection", options.pop("selection", None))
    injected = {"split": split, "modalities": modalities}
    # Twice, so that each key is checked under the path where it stands.
    late = bind(source, further, path=further_path, injected=injected | options)
    bound = bind(source, options, path=path, injected=injected | {key: late[key] for key in further})
    elsewhere = {"split": "split", "modalities": "data.modalities"}
    try:
        opened = call(source, bound, path=path, paths=elsewhere | {key: f"{further_path}.{key}" for key in further})
    except (OSError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}.name={name!r}: the data cannot be read ({reason}); check the path") from error
    if selection is None:
        return opened
    selection = call(Selection, bind(Selection, selection, path=selection_path), path=selection_path)
    return call(
        FilteredSource,
        {"source": opened, "selection": selection},
        path=path,
        paths={"selection": selection_path},
    )
