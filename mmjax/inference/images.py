"""Pictures as users have them: paths, encoded bytes, Pillow's images and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from mmjax.core.files import check_regular
from mmjax.data.pictures.channels import WHITE, Color, to_rgb
from mmjax.data.sample import Example, Sample, Unreadable, as_unreadable
from mmjax.data.sequences import frames
from mmjax.data.transform_chain import TransformChain

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def list_pictures(images: Iterable[Picture]) -> list[Picture]:
    """``images`` as a list; raises for one picture alone and for none."""
    one = isinstance(images, str | os.PathLike | bytes | Image.Image) or getattr(images, "ndim", 4) < 4
    if one:
        raise TypeError(f"images: expected a list of pictures, got one {type(images).__name__}; wrap it in a list")
    listed = list(images)
    if not listed:
        raise ValueError("images: the list is empty; give at least one picture")
    return listed


def read_picture(
    picture: Picture, index: int, *, chain: TransformChain, modality: str, background: Color | None
) -> np.ndarray:
    """The picture as evaluation sees it, u8[H, W, 3].

    Args:
        picture: Any kind; arrays are u8[H, W], or have 1, 3 or 4 (with alpha) channels.
        index: In the user's list, for messages.
        chain: What evaluation does to pictures.
        modality: The key that ``chain`` knows them by.
        background: What transparent pictures are put on; white if None.

    Raises:
        Unreadable: with the path or the index.
    """
    key = str(picture) if isinstance(picture, str | os.PathLike) else f"images[{index}]"
    try:
        example: Example = {"id": 0, "key": key, "captions": [""], modality: _pixels(picture, background or WHITE)}
        sample = Sample(id=0, key=key, captions=[""])
        return chain.decode_and_transform(sample, example, number=0).images[modality]
    except Exception as error:
        raise as_unreadable(error, key) from None


def read_frames(sequence: Picture, index: int, *, length: int) -> np.ndarray:
    """A sequence of features as the tower sees it, f32[length, D + 1], of an array [T, D] or a file of NumPy's.

    Raises:
        Unreadable: with the path or the index.
    """
    key = str(sequence) if isinstance(sequence, str | os.PathLike) else f"images[{index}]"
    try:
        if isinstance(sequence, str | os.PathLike):
            check_regular(path := Path(sequence).expanduser())
            sequence = path.read_bytes()
        return frames.pad(
            frames.read(sequence if isinstance(sequence, bytes) else np.asarray(sequence), key=key), length
        )
    except Exception as error:
        raise as_unreadable(error, key) from None


def _pixels(picture: Picture, background: Color) -> bytes | np.ndarray:
    """What the chain takes: encoded bytes, or u8[H, W, C]."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        check_regular(path := Path(picture).expanduser())
        return path.read_bytes()
    if isinstance(picture, Image.Image):
        return to_rgb(ImageOps.exif_transpose(picture), background)
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 4 and array.size:
        return to_rgb(Image.fromarray(array), background)
    if array.dtype != np.uint8 or array.ndim != 3 or not array.size:
        raise Unreadable("corrupt image", f"{array.dtype}{list(array.shape)}, not uint8[H, W, 1, 3 or 4]")
    return array
