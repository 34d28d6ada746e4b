"""Pictures in the style of others: by Gram matrices of VGG-19 (Gatys et al. 2016), or by color statistics alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.augment.common.style_codes import apply_codes, mix_codes, style_codes
from mmjax.core.config import ConfigError
from mmjax.data import pictures
from mmjax.data.sample import Unreadable
from mmjax.generate.backend import Failure, Picture, PictureRequest
from mmjax.generate.pixels import resize
from mmjax.models.style_transfer.gram import GramConfig, transfer_style
from mmjax.models.style_transfer.layers import from_torch
from mmjax.models.style_transfer.vgg import layer_names
from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.tensors import WeightsError

STATISTICS = "statistics"
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class ImageGenerator:
    """Answers the mode ``image``: the request's picture in the style of one of ``styles``, drawn by its seed.

    The prompt is not looked at. ``strength`` is how far the statistics go to those of the style, or with VGG multiplies
    the weight of the style. The new picture has no scene graph, whose colors would no longer be true.

    Args:
      styles: a folder of pictures whose styles are taken, each scaled to the size of the picture.
      model: ``statistics`` (mean and deviation of each color, as ``augment=style``), or VGG-19's weights by
        torchvision's names (``features.0.weight``), as ``.pth`` or ``.safetensors``.
      revision: what tells versions of the pictures apart in the provenance.
      optimization: with VGG, layers, weights and optimizer (``mmjax.models.style_transfer.gram.GramConfig``).
    """

    def __init__(
        self, *, styles: str, model: str = STATISTICS, revision: str = "", optimization: GramConfig | None = None
    ):
        self.model, self.revision = model, revision
        if model == STATISTICS and optimization is not None:
            raise ConfigError(f"optimization: model={model!r} optimizes nothing; set model to VGG-19's weights")
        self._config = optimization or GramConfig()
        self._styles = sorted(p for p in Path(styles).glob("*") if p.suffix.lower() in SUFFIXES)
        if not self._styles:
            raise ConfigError(f"styles={styles!r}: no pictures there; expected a folder of {', '.join(SUFFIXES)}")

    @functools.cached_property
    def _params(self) -> dict[str, np.ndarray]:
        file = open_tensors(self.model)
        needed = [f"{name}.{kind}" for name in layer_names().values() for kind in ("weight", "bias")]
        if missing := [name for name in needed if name not in file.tensors]:
            raise WeightsError(f"{self.model}: has no {missing[0]!r}; expected VGG-19 by torchvision's names")
        return from_torch({name: file.read(name) for name in needed})

    @functools.cached_property
    def _transfer(self) -> Callable[..., Any]:
        return jax.jit(transfer_style, static_argnames="config")

    def make(self, requests: Sequence[PictureRequest], seeds: Sequence[int]) -> list[Picture | Failure]:
        """One picture a request, of the request's size."""
        return [self._make(request, seed) for request, seed in zip(requests, seeds, strict=True)]

    def _make(self, request: PictureRequest, seed: int) -> Picture | Failure:
        if request.mode != "image" or request.picture is None:
            return Failure(f"style: answers the mode 'image' with a picture, not {request.mode!r}")
        path = self._styles[int(np.random.default_rng(seed).integers(len(self._styles)))]
        try:
            style = Picture(pictures.decode(path.read_bytes(), key=path.name))
        except (OSError, Unreadable) as error:
            return Failure(f"style: {path.name}: {error}")
        content = request.picture.pixels
        style = resize(style, (content.shape[0], content.shape[1]))
        if self.model == STATISTICS:
            return Picture(mix_statistics(content, style.pixels, 1.0 if request.strength is None else request.strength))
        config = self._config.with_strength(request.strength)
        x, target = (np.asarray(pixels, np.float32) / 255 for pixels in (content, style.pixels))
        made, losses = self._transfer(self._params, x, target, jax.random.key(seed), config=config)
        if not np.isfinite(losses).all():
            return Failure("style: the loss is not finite; use optimizer='adam' or a smaller style_weight")
        return Picture(np.round(255 * np.asarray(made)).astype(np.uint8))


def mix_statistics(content: np.ndarray, style: np.ndarray, strength: float) -> np.ndarray:
    """``content`` u8[H, W, 3] with means and deviations that are ``strength`` of the style's."""
    own, other = (style_codes(jnp.asarray(pixels)) for pixels in (content, style))
    new = apply_codes(jnp.asarray(content, jnp.float32), own, mix_codes(own, other, jnp.float32(strength)))
    return np.asarray(np.clip(np.round(np.asarray(new)), 0, 255), np.uint8)
