"""The styles of emoji: their packages, authors and licenses, and where each package has its pictures."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.fetching.packages import Package, members

_SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclasses.dataclass(frozen=True)
class Origin:
    """A package, and who made its content under which license."""

    package: Package
    author: str
    license: str
    url: str


@dataclasses.dataclass(frozen=True)
class Style(Origin):
    """Pictures of one kind; ``read`` gives their encoded bytes by code from the package's archive."""

    read: Callable[[Path], dict[str, bytes]]
    svg: bool = False


def code(text: str) -> str:
    """Code points as all packages agree on them: upper case, between hyphens, without variation selectors."""
    return "-".join(point for point in text.upper().split("-") if point != "FE0F")


def _in_folder(folder: str) -> Callable[[Path], dict[str, bytes]]:
    """Reads the files of ``folder``, which are named by their codes."""

    def read(path: Path) -> dict[str, bytes]:
        pictures = members(path, lambda name: name.rpartition("/")[0] == folder)
        return {code(PurePath(name).stem): data for name, data in pictures}

    return read


def _icon_set(path: Path) -> dict[str, bytes]:
    """Reads Iconify's JSON: bodies of SVG by name, and names by code."""
    content = {name: json.loads(data) for name, data in members(path, {"icons.json", "chars.json"}.__contains__)}
    icons, aliases = content["icons.json"]["icons"], content["icons.json"].get("aliases", {})
    side = content["icons.json"].get("height", 16)
    pictures = {}
    for points, name in content["chars.json"].items():
        name = aliases.get(name, {}).get("parent", name)
        if name in icons:
            pictures[code(points)] = f'<svg {_SVG} viewBox="0 0 {side} {side}">{icons[name]["body"]}</svg>'.encode()
    return pictures


NAMES = Origin(
    Package(
        "emojibase-data", "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    "Miles Johnson; names and keywords from Unicode CLDR, © Unicode, Inc.",
    "MIT and Unicode License",
    "https://github.com/milesj/emojibase",
)  # fmt: skip
STYLES: Mapping[str, Style] = {
    "google": Style(
        Package(
            "emoji-datasource-google", "16.0.0",
            "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        ),
        "Noto Emoji, Google", "Apache-2.0", "https://github.com/googlefonts/noto-emoji", _in_folder("img/google/64"),
    ),
    "twitter": Style(
        Package(
            "emoji-datasource-twitter", "16.0.0",
            "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ),
        "Twemoji, Twitter, Inc. and contributors", "CC-BY-4.0", "https://github.com/jdecked/twemoji",
        _in_folder("img/twitter/64"),
    ),
    "openmoji": Style(
        Package(
            "openmoji", "17.0.0",
            "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        ),
        "OpenMoji, the open-source emoji and icon project", "CC-BY-SA-4.0", "https://openmoji.org",
        _in_folder("color/svg"), svg=True,
    ),
    "fluent_flat": Style(
        Package(
            "@iconify-json/fluent-emoji-flat", "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        "Fluent Emoji, Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji", _icon_set,
        svg=True,
    ),
    "fluent_3d": Style(
        Package(
            "@lobehub/fluent-emoji-3d", "1.1.0",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        "Fluent Emoji, Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji",
        _in_folder("assets"),
    ),
}  # fmt: skip


def check_renderer(styles: Mapping[str, Style]) -> None:
    """Raises ConfigError if one of the ``styles`` needs what draws SVG, and that is not installed."""
    drawn = [name for name, style in styles.items() if style.svg]
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        if drawn:
            rest = ",".join(name for name in styles if name not in drawn)
            raise ConfigError(
                f"--styles: {' and '.join(drawn)} are SVG, and resvg-py is not installed; "
                f"pip install 'mmjax[emoji]', or use --styles={rest}"
            ) from None


def to_png(data: bytes, *, svg: bool, size: int) -> bytes:
    """A picture in the middle of a white square of ``size`` pixels."""
    if svg:
        import resvg_py

        # Twice as large as needed, for the antialiasing of the resize.
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=2 * size, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2), mask=picture)
    png = io.BytesIO()
    square.resize((size, size), Image.Resampling.LANCZOS).save(png, "PNG")
    return png.getvalue()
