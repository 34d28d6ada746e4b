"""A picture of what the model sees: rows of real batches, after all transforms, with the texts that belong to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmjax.core.config import ConfigError
from mmjax.data.preparing.planning import spread

_PAPER, _INK, _FAINT, _FALSE, _EDGE = "#ffffff", "#1f2328", "#6e7781", "#b42318", "#d0d7de"
_SIDE = 208  # pixels of the longer side of a picture, about: small ones are enlarged by whole numbers
_NARROWEST = 168  # for the texts
_MARGIN, _GAP, _PADDING = 28, 20, 12
_TEXT, _SMALL, _TITLE = 14, 12, 20
_MOST_LINES = 9  # of one text


class Steps(Protocol):
    """``mmjax.data.pipeline.Batches``."""

    def __getitem__(self, step: int, /) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image row: its pictures, where it comes from, and its texts, each with whether it is a true caption."""

    pictures: Sequence[np.ndarray]
    origin: str
    texts: Sequence[tuple[str, bool]]


def chosen(batches: Steps, decode: Callable[[np.ndarray], list[str]], *, count: int) -> list[Cell]:
    """So many rows of the first batches, evenly spaced: what is done to some rows of a batch shows by its share."""
    first = cells(batches[0], decode)
    if count <= len(first):
        return [first[place] for place in spread(len(first), count)]
    step = 1
    while len(first) < count:
        first += cells(batches[step], decode)
        step += 1
    return first[:count]


def cells(batch: Mapping[str, Any], decode: Callable[[np.ndarray], list[str]]) -> list[Cell]:
    """The rows of a batch (``mmjax.data.pipeline``), tokens turned back into text."""
    count = len(batch["image_ids"])
    each = len(batch["tokens"]) // count
    texts = decode(batch["tokens"])
    made = []
    for row in range(count):
        mine = []
        for place in range(row * each, (row + 1) * each):
            if batch["text_ids"][place, 0] >= 0:
                mine.append((texts[place], bool(batch["text_weight"][place].any())))
        origin = _origin(batch["image_ids"][row], batch["image_weight"][row])
        made.append(Cell([pictures[row] for pictures in batch["images"].values()], origin, mine))
    return made


def draw(made: Sequence[Cell], *, title: str, subtitle: str = "", columns: int | None = None) -> Image.Image:
    """The sheet: each cell's pictures side by side, its origin, and its texts wrapped beneath, false ones in red."""
    pictures = [[_picture(pixels) for pixels in cell.pictures] for cell in made]
    inner = max(sum(p.width for p in several) + 6 * (len(several) - 1) for several in pictures)
    inner = max(inner, _NARROWEST)
    columns = min(columns or max(round(1300 / (inner + 2 * _PADDING + _GAP)), 1), len(made))
    width = max(2 * _MARGIN + columns * (inner + 2 * _PADDING) + (columns - 1) * _GAP, 640)
    font, small, large = (ImageFont.load_default(size=size) for size in (_TEXT, _SMALL, _TITLE))
    heading = wrapped(subtitle, small, width - 2 * _MARGIN, most=3) if subtitle else []
    texts = [_lines(cell, font, small, inner) for cell in made]
    heights = [
        max(p.height for p in several) + 2 * _PADDING + 8 + _height(lines)
        for several, lines in zip(pictures, texts, strict=True)
    ]
    rows = [max(heights[start : start + columns]) for start in range(0, len(made), columns)]
    top = _MARGIN + _TITLE + 10 + len(heading) * (_SMALL + 5) + 12
    height = top + sum(rows) + (len(rows) - 1) * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 6), fitted(title, large, width - 2 * _MARGIN), font=large, fill=_INK)
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


def save(sheet: Image.Image, path: str) -> None:
    """Writes the sheet as the format that the name ends in; raises where it cannot."""
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--sheet={path}: cannot be written ({error}); give a file .png in a folder that is there"
        ) from None


def wrapped(text: str, font: Any, width: float, *, most: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words where possible; … says that there is more."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:  # a word wider than a line is broken
            part = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:part])
            word = word[part:]
        line = word
    lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], fitted(f"{lines[most - 1]} …", font, width)]
    return lines


def fitted(text: str, font: Any, width: float) -> str:
    """``text``, or as much of its beginning as goes into ``width`` pixels with … after it."""
    if font.getlength(text) <= width:
        return text
    text = text.removesuffix(" …")
    while text and font.getlength(f"{text} …") > width:
        text = text[:-1].rstrip()
    return f"{text} …"


def _lines(cell: Cell, font: Any, small: Any, width: int) -> list[tuple[str, Any, str, int]]:
    """Text, font, color and height of each line beneath a picture."""
    lines = [(text, small, _FAINT, _SMALL + 4) for text in wrapped(cell.origin, small, width, most=2)]
    for text, true in cell.texts:
        lines.append(("", small, _FAINT, 4))
        shown = text if true else f"not: {text}"
        lines += [
            (line, font, _INK if true else _FALSE, _TEXT + 4)
            for line in wrapped(shown or "(no words)", font, width, most=_MOST_LINES)
        ]
    return lines


def _height(lines: Sequence[tuple[str, Any, str, int]]) -> int:
    return sum(size for *_, size in lines)


def _picture(pixels: np.ndarray) -> Image.Image:
    """A picture of about ``_SIDE``: small ones enlarged pixel by pixel, so that each can be seen."""
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
