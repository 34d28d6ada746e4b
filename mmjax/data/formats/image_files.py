"""Pictures that a table or a caption file names."""

from __future__ import annotations

import os

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem

_TRIED = 4


def resolve(root: str, name: str) -> str:
    """Where a named picture lies: in ``root``, unless the name is an absolute path or a URL.

    Tables of absolute paths are common; a relative name that leads out of ``root`` is a bad row.
    """
    if os.path.isabs(name) or filesystem.is_url(name):
        return name
    return filesystem.join(root, name)


def picture(root: str, name: str, *, key: str) -> bytes:
    """The bytes of a named picture."""
    try:
        data = filesystem.read(resolve(root, name))
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail, key=key) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Unreadable("missing file", " ".join(str(error).split()), key=key) from None
    if not data:
        raise Unreadable("empty image", "the file has no bytes", key=key)
    return data


def check_root(root: str, names: list[str], *, key: str = "image_root") -> None:
    """ConfigError where none of the first few pictures is there, which is a wrong folder rather than missing files."""
    tried = []
    for name in names[:_TRIED]:
        try:
            path = resolve(root, name)
            if filesystem.exists(path):
                return
        except (Unreadable, OSError, ValueError):
            continue
        tried.append(path)
    if tried:
        raise ConfigError(
            f"{key}={root!r}: none of the first {len(tried)} pictures is there, such as {tried[0]!r}; set {key} to the "
            "folder that their names start from"
        )


def one_modality(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """``modalities`` of a source whose rows have one picture."""
    if len(modalities) != 1:
        raise ConfigError(f"modalities={tuple(modalities)!r}: each row has one picture; give it one name")
    return tuple(modalities)
