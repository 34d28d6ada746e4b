"""Packages of npm at fixed versions: fetched by the npm client, checked, and read without unpacking."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmjax.core.config import ConfigError
from mmjax.core.locks import Lock

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Package:
    """One version of a package; ``integrity`` is npm's checksum of its archive, ``sha512-`` and base64."""

    name: str
    version: str
    integrity: str

    @property
    def spec(self) -> str:
        """What the npm client calls it."""
        return f"{self.name}@{self.version}"

    @property
    def file(self) -> str:
        """The file that ``npm pack`` writes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch(packages: Sequence[Package], folder: Path) -> None:
    """Fetches the ``packages`` whose archives are not in ``folder``, and checks all of them."""
    with locked(folder, option="packages"):
        missing = [package for package in packages if not (folder / package.file).exists()]
        for number, package in enumerate(missing, 1):
            logger.info(f"fetching {package.spec} with npm ({number} of {len(missing)})")
            _pack(package, folder)
    for package in packages:
        path = folder / package.file
        if _integrity(path) != package.integrity:
            raise ConfigError(f"--packages: {path} is damaged, or not {package.spec}; remove it, then it is fetched")


@contextlib.contextmanager
def locked(folder: Path, *, option: str) -> Iterator[None]:
    """Makes ``folder`` if need be, and locks it against other processes; errors name ``--option``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / ".lock")
    except BlockingIOError:
        raise ConfigError(f"--{option}: another process is writing {folder}; wait for it") from None
    except OSError as error:
        raise ConfigError(f"--{option}={folder}: cannot be written ({error.strerror}); name another folder") from None
    with lock:
        yield


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a package's files, those that are ``wanted``; names are without the package's folder."""
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name) and (file := archive.extractfile(member)) is not None:
                yield name, file.read()


def _pack(package: Package, folder: Path) -> None:
    by_hand = f"put {package.file} into --packages=DIR (made by `npm pack {package.spec}` on any machine)"
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(f"{package.spec}: npm is not installed; install it (with Node.js), or {by_hand}")
    for stale in folder.glob(".npm-*"):  # of a killed process, since the folder is locked
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as temporary:
        command = [npm, "pack", package.spec, "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(command, cwd=temporary, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        archive = Path(temporary) / package.file
        if done.returncode or not archive.exists():
            reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
            raise ConfigError(f"{package.spec}: npm cannot fetch it ({reason[:300]}); check the network, or {by_hand}")
        if _integrity(archive) != package.integrity:
            raise ConfigError(f"{package.spec}: npm fetched another archive (by its checksum); {by_hand}")
        os.replace(archive, folder / package.file)


def _integrity(path: Path) -> str:
    with path.open("rb") as file:
        return "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
