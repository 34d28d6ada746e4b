"""What is checked of a zip archive before anything of it is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mmjax.weights.tensors import WeightsError, check_plain_name

_LARGEST_EXPANSION = 200  # weights hardly compress; deflate at its most makes 1 byte of 1,000


def check_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of the archive at ``path``, none of which leaves it, is there twice, or expands beyond measure."""
    members = archive.infolist()
    names = set()
    for member in members:
        check_plain_name(path, member.filename)
        if member.filename in names:
            raise WeightsError(f"{path}: holds {member.filename!r} twice; fetch it from who made it")
        names.add(member.filename)
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > _LARGEST_EXPANSION * size:
        raise WeightsError(f"{path}: would expand from {size} to {total} bytes, which no weights do; not opened")
    return members
