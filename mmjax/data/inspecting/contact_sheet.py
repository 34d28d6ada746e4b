"""Draws what the model sees: rows of real batches, after all transforms, with their texts."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmjax.core.config import ConfigError
from mmjax.core.printable import printable
from mmjax.data.preparing.plan import evenly_spaced
from mmjax.data.sequences import frames

logger = logging.getLogger(__name__)

_PAPER, _INK, _FAINT, _FALSE, _EDGE = "#ffffff", "#1f2328", "#6e7781", "#b42318", "#d0d7de"
_SIDE = 208  # approximate longer side of a picture in pixels; small pictures are enlarged by whole factors
_MIN_WIDTH = 168  # of a cell, for its texts
_MARGIN, _GAP, _PADDING = 28, 20, 12
_TEXT, _SMALL, _TITLE = 14, 12, 20
_MAX_CHARACTERS = 300  # that a font is chosen by
_MAX_LINES = 9  # of one text


class Steps(Protocol):
    """Batches by step, as ``mmjax.data.pipeline.Batches``."""

    def __getitem__(self, step: int, /) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image row: its pictures, its origin, and its texts, each with whether it is a true caption."""

    pictures: Sequence[np.ndarray]
    origin: str
    texts: Sequence[tuple[str, bool]]


def sample_cells(batches: Steps, decode: Callable[[np.ndarray], list[str]], *, count: int) -> list[Cell]:
    """``count`` rows of the first batches, evenly spaced, so that transforms of some rows show in proportion."""
    first = make_cells(batches[0], decode)
    if count <= len(first):
        return [first[place] for place in evenly_spaced(len(first), count)]
    step = 1
    while len(first) < count:
        first += make_cells(batches[step], decode)
        step += 1
    return first[:count]


def make_cells(batch: Mapping[str, Any], decode: Callable[[np.ndarray], list[str]]) -> list[Cell]:
    """The rows of a batch (see ``mmjax.data.pipeline``), with tokens decoded to text."""
    count = len(batch["image_ids"])
    texts_per_image = len(batch["tokens"]) // count
    texts = decode(batch["tokens"])
    cells = []
    for row in range(count):
        own_texts = []
        for i in range(row * texts_per_image, (row + 1) * texts_per_image):
            if batch["text_ids"][i, 0] >= 0:
                own_texts.append((texts[i], bool(batch["text_weight"][i].any())))
        origin = _origin(batch["image_ids"][row], batch["image_weight"][row])
        cells.append(Cell([pictures[row] for pictures in batch["images"].values()], origin, own_texts))
    return cells


def draw(cells: Sequence[Cell], *, title: str, subtitle: str = "", columns: int | None = None) -> Image.Image:
    """The sheet: each cell has its pictures side by side, its origin and its texts below, false ones in red."""
    pictures = [[_picture(pixels) for pixels in cell.pictures] for cell in cells]
    inner = max(sum(p.width for p in several) + 6 * (len(several) - 1) for several in pictures)
    inner = max(inner, _MIN_WIDTH)
    columns = min(columns or max(round(1300 / (inner + 2 * _PADDING + _GAP)), 1), len(cells))
    width = max(2 * _MARGIN + columns * (inner + 2 * _PADDING) + (columns - 1) * _GAP, 640)
    shown = "".join([title, subtitle, *(text for cell in cells for text, _ in cell.texts)])
    font, small, large = choose_fonts(shown, (_TEXT, _SMALL, _TITLE))
    heading = wrap_text(subtitle, small, width - 2 * _MARGIN, max_lines=3) if subtitle else []
    texts = [_lines(cell, font, small, inner) for cell in cells]
    heights = [
        max(p.height for p in several) + 2 * _PADDING + 8 + _height(lines)
        for several, lines in zip(pictures, texts, strict=True)
    ]
    rows = [max(heights[start : start + columns]) for start in range(0, len(cells), columns)]
    top = _MARGIN + _TITLE + 10 + len(heading) * (_SMALL + 5) + 12
    height = top + sum(rows) + (len(rows) - 1) * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 6), truncate_text(title, large, width - 2 * _MARGIN), font=large, fill=_INK)
    for line, text in enumerate(heading):
        pen.text((_MARGIN, _MARGIN + _TITLE + 4 + line * (_SMALL + 5)), text, font=small, fill=_FAINT)
    for place, (several, lines) in enumerate(zip(pictures, texts, strict=True)):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (inner + 2 * _PADDING + _GAP)
        upper = top + sum(rows[:row]) + row * _GAP
        box = (left, upper, left + inner + 2 * _PADDING, upper + rows[row])
        pen.rounded_rectangle(box, radius=8, outline=_EDGE, width=1)
        across = left + _PADDING
        for picture in several:
            sheet.paste(picture, (across, upper + _PADDING))
            across += picture.width + 6
        down = upper + _PADDING + max(p.height for p in several) + 8
        for text, kind, color, size in lines:
            pen.text((left + _PADDING, down), text, font=kind, fill=color)
            down += size
    return sheet


def choose_fonts(text: str, sizes: Sequence[int]) -> list[Any]:
    """Pillow's own font, or the one of this machine with the most characters of ``text`` that Pillow's lacks."""
    fonts = [ImageFont.load_default(size=size) for size in sizes]
    wanted = [c for c, _ in collections.Counter(c for c in text if not c.isspace()).most_common(_MAX_CHARACTERS)]
    missing = _missing(fonts[0], wanted)
    for path in _font_files() if missing else ():
        try:
            lacking = _missing(ImageFont.truetype(path, sizes[0]), wanted)
            if len(lacking) < len(missing):
                fonts, missing = [ImageFont.truetype(path, size) for size in sizes], lacking
        except OSError:  # not a font that FreeType reads
            continue
        if not missing:
            break
    if missing:
        logger.warning(
            f"the sheet lacks {len(missing)} characters ({''.join(missing[:8])}) that no font of this machine has; "
            "install one, such as Noto Sans CJK"
        )
    return fonts


def _font_files() -> list[str]:
    """The fonts of this machine, plain upright ones first."""
    folders = [
        "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
        "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
    ]  # fmt: skip
    files = [file for folder in folders for file in Path(folder).expanduser().rglob("*.[to]t[fc]")]
    styled = re.compile("bold|italic|oblique|light|thin|black|condensed|narrow|mono|serif", re.IGNORECASE)
    return [str(p) for p in sorted(files, key=lambda p: (bool(styled.search(p.stem)), "sans" not in p.stem.lower(), p))]


def _missing(font: Any, characters: Sequence[str]) -> list[str]:
    """The characters that ``font`` draws as it draws what is no character."""
    drawn = ((mask.size, bytes(mask)) for mask in map(font.getmask, ["\U0010ffff", *characters]))
    nothing = next(drawn)
    return [c for c, mask in zip(characters, drawn, strict=True) if mask == nothing]


def save(sheet: Image.Image, path: str) -> None:
    """Writes the sheet in the format of the file's extension."""
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--sheet={path}: cannot be written ({error}); name a .png file in a folder that exists"
        ) from None


def wrap_text(text: str, font: Any, width: float, *, max_lines: int) -> list[str]:
    """``text`` in at most ``max_lines`` of ``width`` pixels, broken between words if possible; … marks truncation."""
    lines: list[str] = []
    line = ""
    text = text[: max_lines * _longest(width)]  # more could never be shown
    text = printable(" ".join(text.split()))
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while (end := _fitting(word, font, width)) < len(word):  # a word wider than a line is broken
            end = max(end, 1)
            lines.append(word[:end])
            word = word[end:]
        line = word
        if len(lines) > max_lines:
            break
    lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], truncate_text(f"{lines[max_lines - 1]} …", font, width)]
    return lines


def truncate_text(text: str, font: Any, width: float) -> str:
    """``text``, or as much of it as fits into ``width`` pixels with … after it."""
    if _fitting(text, font, width) == len(text):
        return text
    text = text.removesuffix(" …")
    return f"{text[: _fitting(text, font, width - font.getlength(' …'))].rstrip()} …"


def _longest(width: float) -> int:
    """Of a line, in characters: some, as combining marks, take no room."""
    return 4 * int(width)


def _fitting(text: str, font: Any, width: float) -> int:
    """How many of the first characters fit into ``width`` pixels."""
    lengths = range(1, min(len(text), _longest(width)) + 1)
    return bisect.bisect_right(lengths, width, key=lambda length: font.getlength(text[:length]))


def _lines(cell: Cell, font: Any, small: Any, width: int) -> list[tuple[str, Any, str, int]]:
    """Text, font, color and height of each line below a picture."""
    lines = [(text, small, _FAINT, _SMALL + 4) for text in wrap_text(cell.origin, small, width, max_lines=2)]
    for text, true in cell.texts:
        lines.append(("", small, _FAINT, 4))
        shown = text if true else f"not: {text}"
        lines += [
            (line, font, _INK if true else _FALSE, _TEXT + 4)
            for line in wrap_text(shown or "(no words)", font, width, max_lines=_MAX_LINES)
        ]
    return lines


def _height(lines: Sequence[tuple[str, Any, str, int]]) -> int:
    return sum(size for *_, size in lines)


def _picture(pixels: np.ndarray) -> Image.Image:
    """A picture of about ``_SIDE`` pixels; small ones are enlarged without interpolation."""
    pixels = frames.draw(pixels) if pixels.ndim == 2 else pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)).convert("RGB")
    longer = max(image.size)
    factor = max(_SIDE // longer, 1)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longer > _SIDE:
        scale = _SIDE / longer
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        return image.resize(size, Image.Resampling.LANCZOS)
    return image


def _origin(ids: np.ndarray, weights: np.ndarray) -> str:
    members = [(int(i), float(w)) for i, w in zip(ids, weights, strict=True) if i >= 0 and w > 0]
    if len(members) == 1:
        return f"image {members[0][0]}"
    return "image " + " + ".join(f"{i} ({w:.0%})" for i, w in members)
