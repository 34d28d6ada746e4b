"""Renders scenes with anti-aliased signed distance functions in numpy; three modalities share every edge.

A thing covers a pixel by ``clip(1/2 - d, 0, 1)``, with d its signed distance in pixels, evaluated only within its box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.data.scenes.world import FRAME, SHAPES, TEXTURES, Scene, Thing

MODALITIES = ("image", "depth", "thermal")
PALETTE = np.array(
    [
        *((220, 40, 40), (40, 170, 60), (45, 75, 220), (235, 215, 50)),
        *((140, 60, 190), (240, 140, 30), (60, 205, 215), (245, 130, 180)),
    ],
    np.float32,
)
DARK, LIGHT, TINT = 40.0, 215.0, 12.0
PERIOD = 6.4  # of stripes and dots, in units of the frame's 1/64
TEXTURE_DARKNESS = 0.55
NOISE = {"image": 4.0, "depth": 3.0, "thermal": 6.0}  # standard deviation in gray levels

Array = np.ndarray


def render(scene: Scene, *, image_size: int, noise: Mapping[str, np.random.Generator]) -> dict[str, Array]:
    """Renders one picture per modality.

    ``image`` is RGB; ``depth`` is 255 (1 - z) over a ground that comes nearer towards the bottom; ``thermal`` is a
    blurred temperature that depends on color and shape. The latter two repeat one channel three times (as a broadcast
    view, without copies), so that every modality has the same shape.

    Args:
      scene: what to render.
      image_size: height and width in pixels.
      noise: for each modality to render, the generator of its pixel noise.

    Returns:
      Modality to u8[image_size, image_size, 3].
    """
    layers = [_Layer(t, image_size) for t in sorted(scene.things, key=lambda t: -t.z)]
    painters = {"image": _image, "depth": _depth, "thermal": _thermal}
    return {m: _finish(painters[m](scene, layers, image_size), NOISE[m], rng) for m, rng in noise.items()}


class _Layer:
    """One thing's box in pixels, with its coverage and coordinates there."""

    def __init__(self, thing: Thing, image_size: int):
        scale = image_size / FRAME
        x, y, radius = thing.x * scale, thing.y * scale, thing.radius * scale
        reach = radius * _EXTENT[thing.shape] + 0.5
        left, right = max(0, math.floor(x - reach)), min(image_size, math.ceil(x + reach))
        top, bottom = max(0, math.floor(y - reach)), min(image_size, math.ceil(y + reach))
        self.thing = thing
        self.box = slice(top, bottom), slice(left, right)
        self.u = np.arange(left + 0.5 - x, right - x, dtype=np.float32)[None, :]
        self.v = np.arange(top + 0.5 - y, bottom - y, dtype=np.float32)[:, None]
        distance = _DISTANCE[thing.shape](self.u * np.float32(1 / radius), self.v * np.float32(1 / radius))
        self.coverage = _soft(distance * np.float32(radius))
        self.period = PERIOD * scale

    def paint(self, canvas: Array, value: Any) -> None:
        patch = canvas[self.box]
        coverage = self.coverage if canvas.ndim == 2 else self.coverage[..., None]
        patch += coverage * (value - patch)


def _image(scene: Scene, layers: list[_Layer], image_size: int) -> Array:
    canvas = np.empty((image_size, image_size, 3), np.float32)
    canvas[:] = np.float32(LIGHT if scene.light else DARK) + np.float32(TINT) * np.array(scene.tint, np.float32)
    for layer in layers:
        color = PALETTE[layer.thing.color] * np.float32(layer.thing.shade)
        mark = _mark(layer)
        if mark is None:
            layer.paint(canvas, color)
        else:
            layer.paint(canvas, (1 - np.float32(1 - TEXTURE_DARKNESS) * mark)[..., None] * color)
    return canvas


def _depth(scene: Scene, layers: list[_Layer], image_size: int) -> Array:
    ground = 25.5 * (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    canvas = np.repeat(ground[:, None], image_size, axis=1)
    for layer in layers:
        layer.paint(canvas, np.float32(255 * (1 - layer.thing.z)))
    return canvas


def _thermal(scene: Scene, layers: list[_Layer], image_size: int) -> Array:
    canvas = np.full((image_size, image_size), 0.25 * 255, np.float32)
    for layer in layers:
        heat = (len(SHAPES) * layer.thing.color + layer.thing.shape) * 37 % 11 / 10
        layer.paint(canvas, np.float32(255 * heat))
    return _blur(_blur(canvas).T).T


def _blur(canvas: Array) -> Array:
    """The binomial filter (1 4 6 4 1) / 16 along the columns, with repeated borders."""
    p = np.pad(canvas, ((2, 2), (0, 0)), mode="edge")
    outer, inner = p[:-4] + p[4:], p[1:-3] + p[3:-1]
    return (outer + 4 * inner + 6 * canvas) * np.float32(1 / 16)


def _finish(canvas: Array, sigma: float, rng: np.random.Generator) -> Array:
    canvas = canvas + np.float32(sigma) * rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas += np.float32(0.5)
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    pixels.flags.writeable = False
    return pixels


def _soft(distance: Array) -> Array:
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _mark(layer: _Layer) -> Array | None:
    """The darkness of the texture at each pixel of the box, relative to the thing; None if it is plain."""
    texture, period = TEXTURES[layer.thing.texture], np.float32(layer.period)
    if texture == "striped":  # half of each period, along the diagonal
        across = (layer.u + layer.v) * np.float32(math.sqrt(0.5))
        return _soft(np.abs(_fold(across, period)) - period / 4)
    if texture == "dotted":  # discs on a square lattice
        return _soft(np.hypot(_fold(layer.u, period), _fold(layer.v, period)) - np.float32(0.35) * period)
    return None


def _fold(x: Array, period: np.float32) -> Array:
    """``x`` modulo ``period``, in [-period/2, period/2)."""
    return x - period * np.floor(x / period + np.float32(0.5))


# Signed distances (exact, or a lower bound near corners) in units of the thing's radius, v down.


def _circle(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - np.float32(0.95)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)


def _triangle(u: Array, v: Array) -> Array:
    # Apex (0, -0.95), base from (-1, 0.75) to (1, 0.75).
    norm = math.hypot(1.7, 1.0)
    return np.maximum(
        np.abs(u) * np.float32(1.7 / norm) - (v + np.float32(0.95)) / np.float32(norm), v - np.float32(0.75)
    )


def _cross(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    arm, width = np.float32(0.95), np.float32(0.3)
    return np.minimum(np.maximum(a - arm, b - width), np.maximum(a - width, b - arm))


def _star(u: Array, v: Array) -> Array:
    # Five points: fold the angle from the upper point into one half of a point, then one edge is left.
    inner = 0.42
    sector = np.float32(2 * math.pi / 5)
    angle = np.arctan2(u, -v)
    angle = np.abs(angle - sector * np.round(angle / sector))
    length = np.hypot(u, v)
    tip, notch = (1.0, 0.0), (inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5))
    edge = math.hypot(notch[0] - tip[0], notch[1] - tip[1])
    normal = notch[1] / edge, (tip[0] - notch[0]) / edge
    return length * (np.float32(normal[0]) * np.cos(angle) + np.float32(normal[1]) * np.sin(angle)) - np.float32(
        normal[0]
    )


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.hypot(u, v) - np.float32(0.75)) - np.float32(0.22)


def _diamond(u: Array, v: Array) -> Array:
    return (np.abs(u) + np.abs(v) - 1) * np.float32(math.sqrt(0.5))


def _hexagon(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(a * np.float32(math.sqrt(0.75)) + b * np.float32(0.5), b) - np.float32(0.86)


_DISTANCE: tuple[Callable[[Array, Array], Array], ...] = (
    *(_circle, _square, _triangle, _cross),
    *(_star, _ring, _diamond, _hexagon),
)
_EXTENT = (0.95, 0.82, 1.0, 0.95, 1.0, 0.97, 1.0, 1.0)  # half the side of the smallest centered box
