"""From a section of a configuration to an opened source."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind, call, coerce
from mmjax.data.selection import FilteredSource, Selection, SharedIds, SplitRows
from mmjax.data.source import Source

FOLDER = "mmjax.data.sources"
OF_ANY_SOURCE = ("selection", "id_column", "split_column")
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
      section: ``name`` and options of a source, and perhaps these for any source (``mmjax.data.selection``):
        ``split_column`` names the column that says of which split an example is; examples with the same value in
        ``id_column`` are positives of each other, as views of one object are; ``selection`` selects examples and
        captions by columns of scores.
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
    where = {key: f"{further_path if key in further else path}.{key}" for key in OF_ANY_SOURCE}
    selection, *columns = (further.pop(key, options.pop(key, None)) for key in OF_ANY_SOURCE)
    id_column, split_column = (
        coerce(value, str | None, path=where[key]) for key, value in zip(OF_ANY_SOURCE[1:], columns, strict=True)
    )
    injected = {"split": split, "modalities": modalities}
    if name == "auto":
        for key, value in {**options, **further}.items():
            if key not in inspect.signature(source).parameters:
                section_path = further_path if key in further else path
                raise ConfigError(
                    f"{section_path}.{key}={value!r}: auto has no such key; an option of the source that it finds is "
                    f"{section_path}.options.{key}"
                )
    # Twice, so that each key is checked under the path where it stands.
    late = bind(source, further, path=further_path, injected=injected | options)
    bound = bind(source, options, path=path, injected=injected | {key: late[key] for key in further})
    # All examples have captions, which sources therefore refuse as a further column.
    add_columns(source, bound, tuple(name for name in (id_column, split_column) if name not in (None, "captions")))
    elsewhere = {"split": "split", "modalities": "data.modalities"}
    try:
        opened = call(source, bound, path=path, paths=elsewhere | {key: f"{further_path}.{key}" for key in further})
    except ConfigError as error:
        for key, column in (("id_column", id_column), ("split_column", split_column)):
            _, match, rest = str(error).partition(f"columns={column!r}")
            if match and column is not None:  # the source knows it as one of its further columns
                raise ConfigError(f"{where[key]}={column!r}{rest}") from None
        raise
    except (OSError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}.name={name!r}: the data cannot be read ({reason}); check the path") from error
    if split_column is not None:
        arguments = {"source": opened, "split": split, "split_column": split_column}
        opened = call(SplitRows, arguments, path=path, paths=elsewhere | where)
    if id_column is not None:
        opened = call(SharedIds, {"source": opened, "id_column": id_column}, path=path, paths=where)
    if selection is None:
        return opened
    selection = call(Selection, bind(Selection, selection, path=where["selection"]), path=where["selection"])
    where["scores"] = f"{where['selection']}.scores"
    return call(FilteredSource, {"source": opened, "selection": selection}, path=path, paths=where)


def add_columns(source: type[Source], options: dict[str, Any], columns: tuple[str, ...]) -> None:
    """Adds ``columns`` to the option of that name in ``options``, if the source reads only those that are named."""
    parameter = inspect.signature(source).parameters.get("columns")
    there = None if parameter is None else options.get("columns", parameter.default)
    if columns and there is not None:
        options["columns"] = tuple(dict.fromkeys((*there, *columns)))
