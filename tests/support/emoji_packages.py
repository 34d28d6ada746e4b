"""Small packages in npm's layout with emoji that nobody drew, and what builds a data set of them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from mmjax.data.fetching import emoji
from mmjax.data.fetching.emoji_names import Emoji
from mmjax.data.fetching.emoji_styles import NAMES, STYLES

PLAIN = ("google", "twitter", "fluent_3d")  # drawn without resvg-py
FAMILY = ("1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F")  # running, in three ways
FLAG, COMPONENT, UNDRAWN = "1F6A9", "1F9B0", "1F600"
CODES = [*(f"1F4{number:02X}" for number in range(40)), *FAMILY, FLAG, COMPONENT, UNDRAWN]


def write(folder: Path) -> dict[str, object]:
    """The packages in ``folder``, and what ``mock.patch.multiple`` makes of ``emoji`` to build from them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"names": _names(), "fluent_flat": _icons(), "openmoji": {f"color/svg/{c}.svg": _svg(c) for c in CODES}}
    for style, path, kind in (
        ("google", "img/google/64/{}.png", "PNG"),
        ("twitter", "img/twitter/64/{}.png", "PNG"),
        ("fluent_3d", "assets/{}.webp", "WEBP"),
    ):
        codes = [code for code in CODES if (style, code) != ("twitter", UNDRAWN)]
        files[style] = {path.format(code.lower()): _picture(style, code, kind) for code in codes}
    files["google"] |= {"img/google/sheets/all.png": b"no emoji", "LICENSE": b"of google\n"}
    origins = {}
    for name, origin in {"names": NAMES, **STYLES}.items():
        data = _archive(files[name])
        (folder / origin.package.file).write_bytes(data)
        checksum = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
        package = dataclasses.replace(origin.package, integrity=checksum)
        origins[name] = dataclasses.replace(origin, package=package)
    return {"NAMES": origins.pop("names"), "STYLES": origins}


def build(output: Path, packages: Path, **options: object) -> dict[str, object]:
    """The data set of the packages, of the styles that need no resvg-py."""
    arguments = {"held_out": "twitter", "styles": PLAIN, "size": 16, "locales": ("de",), "package_folder": packages}
    with mock.patch.multiple(emoji, **write(packages)):
        return emoji.fetch(output, **{**arguments, **options})


def plain(code: str) -> str:
    return code.replace("-FE0F", "")


def family(code: str) -> str:
    return Emoji(code, "", "", (), "", "", {}).family


def _names() -> dict[str, bytes]:
    def entries(language: str) -> list[dict[str, object]]:
        made: list[dict[str, object]] = []
        for order, code in enumerate(CODES):
            group = {FLAG: 9, COMPONENT: 2}.get(code, order % 2)
            entry = {"label": f"{language} thing,  {order}", "hexcode": code, "emoji": chr(int(code[:5], 16))}
            made.append(entry | {"tags": ["thing", "round", "!"], "order": order, "group": group, "subgroup": group})
        return [*reversed(made), {"label": "letter", "hexcode": "1F1E6", "emoji": "A"}]

    groups = {"0": "food-drink", "1": "objects", "2": "component", "9": "flags"}
    meta = {"groups": groups, "subgroups": {"0": "food-fruit", "1": "tool", "2": "hair-style", "9": "flag"}}
    values = {"en/data.json": entries("a"), "de/data.json": entries("ein"), "meta/groups.json": meta}
    return {name: json.dumps(value).encode() for name, value in values.items()}


def _icons() -> dict[str, bytes]:
    bodies = {f"icon-{code}": {"body": f'<circle cx="16" cy="16" r="9" fill="#{_color(code)}"/>'} for code in CODES}
    icons = {"icons": bodies, "aliases": {"other": {"parent": f"icon-{CODES[0]}"}}, "height": 32}
    chars = {code.lower(): f"icon-{code}" for code in CODES[1:]} | {CODES[0].lower(): "other"}
    return {"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps(chars).encode()}


def _svg(code: str) -> bytes:
    rectangle = f'<rect x="18" y="18" width="36" height="36" fill="#{_color(code)}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{rectangle}</svg>'.encode()


def _color(code: str) -> str:
    return hashlib.sha256(plain(code).encode()).hexdigest()[:6]


def _picture(style: str, code: str, kind: str) -> bytes:
    """Half as high as wide: transparent on the left, of the code's color on the right."""
    pixels = np.zeros((16, 32, 4), np.uint8)
    pixels[:, :16, :3] = 77  # what transparent pixels hide shall not be seen
    pixels[:, 16:] = [*bytes.fromhex(_color(code)), 255]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return file.getvalue()


def _archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
