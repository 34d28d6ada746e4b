"""Tar shards and folders of pictures, as people have them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

Example = tuple[str, bytes, Sequence[str]]  # key, bytes of a picture, captions


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar archive of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_webdataset(
    folder: Path, examples: Sequence[Example], *, shards: int = 1, extension: str = "jpg"
) -> list[Path]:
    """``00000.tar`` and so on, neighbouring examples together; captions are the lines of a text."""
    paths = []
    for shard in range(shards):
        part = examples[shard * len(examples) // shards : (shard + 1) * len(examples) // shards]
        members = []
        for key, image, captions in part:
            members += [(f"{key}.{extension}", image), (f"{key}.txt", "\n".join(captions).encode())]
        paths.append(write_tar(Path(folder) / f"{shard:05d}.tar", members))
    return paths


def write_folder(folder: Path, examples: Sequence[Example], *, extension: str = "jpg", texts: bool = False) -> None:
    """``KEY.jpg`` for each example, whose key may hold a folder's name; with ``texts`` captions in ``KEY.txt``."""
    for key, image, captions in examples:
        path = Path(folder) / f"{key}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        if texts:
            path.with_name(path.name.removesuffix(extension) + "txt").write_text("\n".join(captions), encoding="utf-8")
