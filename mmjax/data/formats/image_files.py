"""Image files that a table or a caption file names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from mmjax.core.config import ConfigError, choose
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem

_TRIED = 4
_FOLDERS = 200  # of a place, that are looked at for pictures


class ImageFiles(NamedTuple):
    """The files that rows may name: relative to ``root``, by an absolute path, or by a URL of one of ``protocols``."""

    root: str
    protocols: frozenset[str] = frozenset()
    max_mib: int = filesystem.MAX_MIB

    @classmethod
    def from_options(
        cls, paths: Sequence[str], image_root: str | None, protocols: Sequence[str], max_mib: int
    ) -> ImageFiles:
        """Those of the tables ``paths``, whose own protocols their rows may use as well."""
        if protocols:
            import fsspec

            for name in protocols:
                choose(name, fsspec.available_protocols(), path="protocols")
        root = paths[0].rpartition("/")[0] or "." if image_root is None else filesystem.local_path(image_root)
        own = {name for path in (*paths, root) if filesystem.is_url(path) for name in filesystem.protocols_of(path)}
        return cls(root, frozenset({*own, *protocols}), max_mib)

    def path_of(self, name: str) -> str:
        """Where a named image lies; Unreadable if rows may not name it."""
        if os.path.isabs(name):
            return name
        if not filesystem.is_url(name) and not ("::" in name and filesystem.is_url(self.root)):
            return self._below_root(name)
        missing = sorted(filesystem.protocols_of(name) - self.protocols)
        if missing:
            way_out = f"allow it by protocols={tuple(missing)!r} if you trust the table"
            raise Unreadable("bad row", f"{name!r} is a URL of the protocol {missing[0]!r}; {way_out}", key=name)
        return name

    def _below_root(self, name: str) -> str:
        try:
            return filesystem.join(self.root, name)
        except Unreadable as error:
            way_out = "; set image_root to a folder above, or use an absolute path" if ".." in name else ""
            raise Unreadable(error.reason, f"{error.detail} {self.root!r}{way_out}", key=name) from None

    def read(self, name: str, *, key: str) -> bytes:
        """The encoded bytes of a named image."""
        try:
            data = filesystem.read(self.path_of(name), max_mib=self.max_mib)
        except Unreadable as error:
            raise Unreadable(error.reason, error.detail, key=key) from None
        except (OSError, ValueError) as error:  # ValueError: not a possible name
            raise Unreadable("missing file", " ".join(str(error).split()), key=key) from None
        if not data:
            raise Unreadable("empty image", "the file has no bytes", key=key)
        return data

    def check_root(self, names: Sequence[str]) -> None:
        """ConfigError if none of the first few images exists: then ``root`` is wrong, rather than files missing."""
        tried = []
        for name in names[:_TRIED]:
            try:
                path = self.path_of(name)
                if filesystem.exists(path):
                    return
            except Exception:  # a file system may fail in any way; reading the image says how
                continue
            tried.append(path)
        if tried:
            folder = self._folder_with(names[: len(tried)])
            way_out = (
                f"set image_root={folder!r}" if folder else "set image_root to the folder that their names start from"
            )
            raise ConfigError(
                f"image_root={self.root!r}: none of the first {len(tried)} pictures is there, such as {tried[0]!r}; "
                f"{way_out}"
            )

    def _folder_with(self, names: Sequence[str]) -> str | None:
        """A folder in ``root`` or beside it that has one of the pictures; None of a URL, or if there is none."""
        if filesystem.is_url(self.root):
            return None
        root = os.path.abspath(self.root)
        for parent in (root, os.path.dirname(root)):
            try:
                folders = sorted(entry.path for entry in os.scandir(parent) if entry.is_dir())
            except OSError:
                continue
            for folder in folders[:_FOLDERS]:
                files = self._replace(root=folder)
                for name in names:
                    with contextlib.suppress(Unreadable, OSError, ValueError):
                        if filesystem.exists(files.path_of(name)):
                            return folder
        return None


def one_modality(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """``modalities`` of a source with one image per example."""
    if len(modalities) != 1:
        raise ConfigError(f"modalities={tuple(modalities)!r}: each row has one picture; give it one name")
    return tuple(modalities)
