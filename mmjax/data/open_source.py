"""From a section of a configuration to an opened source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind
from mmjax.data.selection import FilteredSource, Selection

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
) -> Any:
    """The source that ``section`` names, with its own options and those of ``further``, which win.

    A ``further`` with a name of its own is another source altogether. The key ``selection`` leaves out examples or
    chooses captions by their scores (``mmjax.data.selection``).
    """
    further = dict(further or {})
    if "name" in further:
        section, further, path = further, {}, further_path
    options = {key: value for key, value in section.items() if key not in further}
    if "name" not in options:
        raise ConfigError(f"{path}.name is missing; known: {', '.join(plugins.names(FOLDER))}")
    source = plugins.load_class(FOLDER, "Source", options.pop("name"), path=f"{path}.name")
    selection = further.pop("selection", options.pop("selection", None))
    injected = {"split": split, "modalities": modalities}
    # Twice, so that each key is checked under the path where it stands.
    late = bind(source, further, path=further_path, injected=injected | options)
    bound = bind(source, options, path=path, injected=injected | {key: late[key] for key in further})
    opened = source(**bound)
    if selection is None:
        return opened
    return FilteredSource(opened, Selection(**bind(Selection, selection, path=f"{path}.selection")))
