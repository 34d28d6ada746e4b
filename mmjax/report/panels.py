"""The part of a report that shows real images and captions with what the model retrieved for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image


def image_cards(panel: Sequence[Mapping[str, Any]]) -> str:
    """A card an image: its own captions, and the captions retrieved for it with scores, right or wrong."""
    if not panel:
        return ""
    cards = []
    for entry in panel:
        own = "".join(f"<li>{escape(caption)}</li>" for caption in entry["captions"])
        found = "".join(
            f'<li class="{"right" if correct else "wrong"}"><i>{"✓" if correct else "✗"}</i>'
            f"<span>{escape(text)}</span><b>{score:.3f}</b></li>"
            for text, score, correct in entry["retrieved"]
        )
        cards.append(
            f'<article class="card">{picture(entry["image"], "validation image")}'
            f'<div><h4>Retrieved captions</h4><ol class="found">{found}</ol></div>'
            f'<div><h4>Its own captions</h4><ul class="own">{own}</ul></div></article>'
        )
    right = sum(bool(entry["retrieved"]) and bool(entry["retrieved"][0][2]) for entry in panel)
    return (
        f'<section><h2>From image to text</h2><p class="note">The captions of the whole split nearest to each image, '
        f"with cosines. The first is right for {right} of these {len(panel)}.</p>"
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def caption_cards(panel: Sequence[Mapping[str, Any]]) -> str:
    """A row a caption: its own image, then the images retrieved for it."""
    if not panel:
        return ""
    rows = []
    for entry in panel:
        found = "".join(
            f'<figure class="{"right" if correct else "wrong"}">{picture(image, "retrieved image")}'
            f"<figcaption>{'✓' if correct else '✗'} {score:.3f}</figcaption></figure>"
            for image, score, correct in entry["retrieved"]
        )
        own = f"<figure>{picture(entry['image'], 'own image')}<figcaption>its own</figcaption></figure>"
        rows.append(f'<article class="strip"><p>{escape(entry["caption"])}</p><div>{own}{found}</div></article>')
    return f'<section><h2>From text to image</h2><div class="strips">{"".join(rows)}</div></section>'


def picture(pixels: np.ndarray, words: str) -> str:
    """An ``<img>`` of u8[H, W], u8[H, W, 1] or u8[H, W, 3], as a PNG inside the page."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(
            f"an image of {pixels.dtype}{list(pixels.shape)}; expected uint8 [H, W], [H, W, 1] or [H, W, 3]"
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    # Few pixels are shown as they are, not blurred: that is what the model sees.
    small = ' class="small"' if max(pixels.shape[:2]) < 128 else ""
    return f'<img{small} alt="{escape(words)}" src="data:image/png;base64,{data}">'
