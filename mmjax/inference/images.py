"""Pictures as users have them: paths, encoded bytes, Pillow's images and arrays."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from PIL import Image, ImageOps

from mmjax.core.config import ConfigError
from mmjax.core.files import check_regular
from mmjax.data.pictures.channels import WHITE, Color, to_rgb
from mmjax.data.sample import Example, Sample, Unreadable, as_unreadable
from mmjax.data.sequences import frames
from mmjax.data.transform_chain import TransformChain
from mmjax.models.config import VisionConfig

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Pictures: TypeAlias = Mapping[str, Picture]
"""Of one example, by modality."""

PRESENT = "/present"
"""The key under which a batch of pictures by modality has which of them are there; no modality has such a name."""


def list_pictures(images: Iterable[Any]) -> list[Any]:
    """``images`` as a list; raises for one picture alone and for none."""
    one = isinstance(images, str | os.PathLike | bytes | Image.Image | Mapping) or getattr(images, "ndim", 4) < 4
    if one:
        raise TypeError(f"images: expected a list of pictures, got one {type(images).__name__}; wrap it in a list")
    listed = list(images)
    if not listed:
        raise ValueError("images: the list is empty; give at least one picture")
    return listed


def read_picture(
    picture: Picture, index: int, *, chain: TransformChain, modality: str, background: Color | None, channels: int = 3
) -> np.ndarray:
    """The picture as evaluation sees it, u8[H, W, channels].

    Args:
        picture: Any kind; arrays are u8[H, W], or have 1, 3 or 4 (with alpha) channels.
        index: In the user's list, for messages.
        chain: What evaluation does to pictures.
        modality: The key that ``chain`` knows them by.
        background: What transparent pictures are put on; white if None.
        channels: 3, or 1 for a tower that takes gray pictures.

    Raises:
        Unreadable: with the path or the index.
    """
    key = str(picture) if isinstance(picture, str | os.PathLike) else f"images[{index}]"
    try:
        example: Example = {"id": 0, "key": key, "captions": [""], modality: _pixels(picture, background or WHITE)}
        sample = Sample(id=0, key=key, captions=[""])
        pixels = chain.decode_and_transform(sample, example, number=0).images[modality]
        if channels == 1 and np.ptp(pixels, axis=2).any():
            raise Unreadable("corrupt image", f"has colors, and the model takes gray pictures as {modality!r}")
        return pixels[..., :channels]
    except Exception as error:
        raise as_unreadable(error, key) from None


def read_modalities(
    pictures: Picture | Pictures,
    index: int,
    *,
    chain: TransformChain,
    channels: Mapping[str, int],
    background: Color | None,
) -> dict[str, np.ndarray]:
    """The pictures that an example has, by modality, as evaluation sees them; one alone is of the first modality.

    Raises:
        Unreadable: as ``read_picture``.
        ConfigError: if they are of no modality, or of another one.
    """
    named = pictures if isinstance(pictures, Mapping) else {next(iter(channels)): pictures}
    if not named or not set(named) <= set(channels):
        raise ConfigError(
            f"images[{index}] has {', '.join(map(repr, named)) or 'no picture'}: the model takes one or more of "
            f"{', '.join(map(repr, channels))}"
        )
    read = functools.partial(read_picture, chain=chain, background=background)
    return {name: read(picture, index, modality=name, channels=channels[name]) for name, picture in named.items()}


def make_reader(
    vision: VisionConfig, *, chain: TransformChain, modality: str, background: Color | None
) -> tuple[Callable[[Any, int], Any], Callable[[list[Any]], dict[str, np.ndarray]]]:
    """What reads one of a user's pictures for a tower, by its place in the list, and what makes a batch of several."""
    reading: dict[str, Any] = {"chain": chain, "background": background}
    channels = dict(zip(vision.modalities, vision.modality_channels, strict=True))
    if vision.fusion == "gated":
        read = functools.partial(read_modalities, channels=channels, **reading)
        return read, functools.partial(stack_modalities, vision=vision)
    one: Callable[[Any, int], Any] = functools.partial(
        read_picture, modality=modality, channels=channels.get(modality, 3), **reading
    )
    if vision.stem == "frames":
        one = functools.partial(read_frames, length=vision.max_frames, features=vision.modality_channels[0])
    return one, lambda rows: {modality: np.stack(rows)}


def stack_modalities(examples: Sequence[Mapping[str, np.ndarray]], vision: VisionConfig) -> dict[str, np.ndarray]:
    """A batch of the tower's modalities, zeros where an example lacks one, and under ``PRESENT`` which it has."""
    rows = {
        name: np.zeros((len(examples), vision.image_size, vision.image_size, channels), np.uint8)
        for name, channels in zip(vision.modalities, vision.modality_channels, strict=True)
    }
    for i, example in enumerate(examples):
        for name, pixels in example.items():
            rows[name][i] = pixels
    return rows | {PRESENT: np.array([[name in example for name in vision.modalities] for example in examples])}


def split_present(images: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """The pictures by modality, and bool[N, M] of ``PRESENT`` if a batch has it."""
    return {name: x for name, x in images.items() if name != PRESENT}, images.get(PRESENT)


def read_frames(sequence: Picture, index: int, *, length: int, features: int) -> np.ndarray:
    """A sequence as the tower sees it, f32[length, features + 1], of an array [T, features] or a file of NumPy's.

    Raises:
        Unreadable: with the path or the index.
    """
    key = str(sequence) if isinstance(sequence, str | os.PathLike) else f"images[{index}]"
    try:
        if isinstance(sequence, str | os.PathLike):
            check_regular(path := Path(sequence).expanduser())
            sequence = path.read_bytes()
        read = frames.read(sequence if isinstance(sequence, bytes) else np.asarray(sequence), key=key)
        if read.shape[1] != features:
            raise Unreadable("bad row", f"{read.shape[1]} features a frame, and the model takes {features}")
        return frames.pad(read, length)
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
