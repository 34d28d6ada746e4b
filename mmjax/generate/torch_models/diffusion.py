"""Image generators of diffusers: from text, a picture, an instruction, inside a mask, or with boxes (GLIGEN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.generate.backend import Failure, Picture, PictureRequest
from mmjax.generate.pixels import paste_outside, resize, to_pillow
from mmjax.generate.torch_models.loading import TorchModel, import_diffusers, import_torch

_AUTO = {
    "text": "AutoPipelineForText2Image",
    "image": "AutoPipelineForImage2Image",
    "inpaint": "AutoPipelineForInpainting",
}
_SPECIAL = {"instruct": "InstructPix2Pix", "layout": "GLIGEN"}
"""A part of the names of the pipelines that alone can do it."""
_SEEDS = 1 << 63


class Diffusion:
    """A pipeline, which takes the forms that the modes of its requests need.

    Args:
      options: the model and where it runs.
      variant: of the files; None is the plain one.
      side: pictures are worked on with that shorter side; None leaves them as they are.
    """

    def __init__(self, options: TorchModel, *, variant: str | None, side: int | None):
        torch, diffusers = import_torch(), import_diffusers()
        self._options, self._side = options, side
        diffusers.utils.logging.disable_progress_bar()  # the command has its own
        self._device = options.torch_device()
        self._loaded = options.read(diffusers.DiffusionPipeline, dtype=getattr(torch, options.dtype), variant=variant)
        self._loaded.set_progress_bar_config(disable=True)
        self._loaded.to(self._device)
        self._pipelines: dict[str, Any] = {}
        self._multiple = int(getattr(self._loaded, "vae_scale_factor", 8))

    def make(self, requests: Sequence[PictureRequest], seeds: Sequence[int]) -> list[Picture | Failure]:
        """A picture for each request; outside its mask and to the size that was asked for."""
        for mode in {request.mode for request in requests}:
            self._pipeline(mode)
        return self._options.run(requests, seeds, self._make, group=self._common)

    def _pipeline(self, mode: str) -> Any:
        """The pipeline for a mode; all share their weights."""
        if mode not in self._pipelines:
            name = type(self._loaded).__name__
            special = next((m for m, part in _SPECIAL.items() if part in name), None)
            if mode in _SPECIAL or special is not None:
                if mode != special:
                    wanted = f"a pipeline of {_SPECIAL[mode]}" if mode in _SPECIAL else "a plain pipeline"
                    raise ConfigError(f"model={self._options.model!r}: {name} does no {mode!r}; name {wanted}")
                self._pipelines[mode] = self._loaded
            else:
                try:
                    self._pipelines[mode] = getattr(import_diffusers(), _AUTO[mode]).from_pipe(self._loaded)
                except ValueError as error:
                    raise ConfigError(f"model={self._options.model!r}: {name} does no {mode!r} ({error})") from None
                self._pipelines[mode].set_progress_bar_config(disable=True)
        return self._pipelines[mode]

    def _common(self, request: PictureRequest) -> tuple[Any, ...]:
        """What requests of one batch have in common."""
        numbers = (request.strength, request.guidance, request.image_guidance, request.steps)
        # GLIGEN's pipeline takes the boxes of one picture.
        alone = id(request) if request.mode == "layout" else None
        return request.mode, self._working_size(request), numbers, alone

    def _working_size(self, request: PictureRequest) -> tuple[int, int] | None:
        """Height and width that the model works with, in multiples of what its autoencoder needs."""
        size = request.size if request.picture is None else request.picture.pixels.shape[:2]
        if size is None:
            return None
        scale = 1.0 if self._side is None else self._side / min(size)
        height, width = (max(1, round(edge * scale / self._multiple)) * self._multiple for edge in size)
        return height, width

    def _make(self, requests: list[PictureRequest], seeds: list[int]) -> list[Picture | Failure]:
        torch, first = import_torch(), requests[0]
        pipeline, size = self._pipeline(first.mode), self._working_size(first)
        options: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "generator": [torch.Generator("cpu").manual_seed(seed % _SEEDS) for seed in seeds],
            "guidance_scale": first.guidance,
            "num_inference_steps": first.steps,
            "output_type": "pil",
        }
        if first.mode in ("image", "instruct", "inpaint"):
            options["image"] = [to_pillow(_resized(request, size)) for request in requests]
        if first.mode in ("image", "inpaint"):
            options["strength"] = first.strength
        if first.mode == "instruct":
            options["image_guidance_scale"] = first.image_guidance
        if first.mode == "inpaint":
            options["mask_image"] = [_mask_image(request, size) for request in requests]
        if size is not None and first.mode in ("text", "layout", "inpaint"):
            options |= {"height": size[0], "width": size[1]}
        if first.mode == "layout":
            if not first.boxes:
                raise ValueError("mode 'layout' needs boxes")
            options["gligen_boxes"] = [[b.x1, b.y1, b.x2, b.y2] for b in first.boxes]
            options["gligen_phrases"] = [b.phrase for b in first.boxes]
            options |= {"prompt": first.prompt, "gligen_scheduled_sampling_beta": 1.0}
        made = pipeline(**{name: value for name, value in options.items() if value is not None})
        flagged = getattr(made, "nsfw_content_detected", None) or [False] * len(requests)
        return [
            Failure("the safety checker held the picture back") if withheld else _finish(request, np.asarray(image))
            for request, image, withheld in zip(requests, made.images, flagged, strict=True)
        ]


def _resized(request: PictureRequest, size: tuple[int, int] | None) -> Picture:
    if request.picture is None or size is None:
        raise ValueError(f"mode {request.mode!r} needs a picture")
    return resize(request.picture, size)


def _mask_image(request: PictureRequest, size: tuple[int, int] | None) -> Image.Image:
    if request.mask is None or request.picture is None or size is None:
        raise ValueError("mode 'inpaint' needs a picture and a mask")
    if request.mask.shape != request.picture.pixels.shape[:2]:
        raise ValueError(f"the mask has shape {request.mask.shape}, the picture {request.picture.pixels.shape[:2]}")
    image = Image.fromarray(request.mask.astype(np.uint8) * 255)
    return image.resize((size[1], size[0]), Image.Resampling.NEAREST)


def _finish(request: PictureRequest, pixels: np.ndarray) -> Picture:
    """In the size that was asked for, or else the original's, and with the original outside the mask."""
    made = Picture(np.ascontiguousarray(pixels[..., :3]))
    original = request.picture
    if request.mode == "inpaint":
        assert original is not None and request.mask is not None
        made = paste_outside(made, original, request.mask)
    size = request.size or (None if original is None else original.pixels.shape[:2])
    return made if size is None else resize(made, size)
