"""Image files that a table or a caption file names."""

from __future__ import annotations

import os

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem

_TRIED = 4


def resolve(root: str, name: str) -> str:
    """The path of a named image: in ``root``, unless the name is an absolute path or a URL.

    A relative name that leads out of ``root`` is a bad row.
    """
    if os.path.isabs(name) or filesystem.is_url(name):
        return name
    return filesystem.join(root, name)


def read_image(root: str, name: str, *, key: str) -> bytes:
    """The encoded bytes of a named image."""
    try:
        data = filesystem.read(resolve(root, name))
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail, key=key) from None
    except (OSError, ValueError) as error:  # ValueError: not a possible name
        raise Unreadable("missing file", " ".join(str(error).split()), key=key) from None
    if not data:
        raise Unreadable("empty image", "the file has no bytes", key=key)
    return data


def check_root(root: str, names: list[str], *, key: str = "image_root") -> None:
    """ConfigError if none of the first few images exists: then ``root`` is wrong, rather than files missing."""
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
    """``modalities`` of a source with one image per example."""
    if len(modalities) != 1:
        raise ConfigError(f"modalities={tuple(modalities)!r}: each row has one picture; give it one name")
    return tuple(modalities)
