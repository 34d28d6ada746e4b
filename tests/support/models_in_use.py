"""The smallest model that ``mmjax.load`` takes: random weights, words, and pictures of 32 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mmjax
from mmjax import cli
from mmjax.core.config import build
from mmjax.core.state import flatten
from mmjax.data.tokenizer import load as load_tokenizer
from mmjax.inference.model import Model
from mmjax.models.config import ClipConfig, with_tokenizer
from mmjax.weights.export.folders import Exported, write_open_clip
from support import clip_models

CAPTIONS = ["a red circle", "a blue square", "a green ring left of a cat", "a dog"]
_TOWER = {"width": 16, "layers": 1}
_MODEL: dict[str, Any] = {
    "vision_cfg": {**_TOWER, "image_size": 32, "patch_size": 8, "head_width": 8},
    "text_cfg": {**_TOWER, "context_length": 8, "heads": 2, "vocab_size": None},
}


def write(
    folder: Path,
    *,
    seed: int = 0,
    embed_dim: int = 16,
    writer: Callable[[Exported, Path], None] = write_open_clip,
    **text: Any,
) -> Path:
    """Writes the model to a folder in a library's layout; ``text`` changes the text tower."""
    tokenizer = load_tokenizer("word", context_length=8, captions=CAPTIONS)
    tokenizer.save(folder / "tokenizer")
    section = {**_MODEL, "embed_dim": embed_dim, "text_cfg": {**_MODEL["text_cfg"], **text}}
    config = with_tokenizer(build(ClipConfig, section, path="model"), tokenizer)
    _, shapes = clip_models.split(config)
    drawn = flatten(clip_models.random_params(shapes, seed=seed))
    params = {path: np.asarray(array) for path, array in drawn.items()}
    exported = Exported(config=config, params=params, tokenizer=folder / "tokenizer", card="", recipe={})
    writer(exported, folder)
    return folder


def load(folder: Path, **options: Any) -> Model:
    """Writes and loads it, on one device."""
    return mmjax.load(write(folder), devices=jax.devices()[:1], batch_size=16, **options)


def embed(spec: Path, pictures: Path, out: Path) -> Path:
    """Writes the embeddings of a folder of pictures."""
    flags = [f"--model={spec}", f"--path={pictures}", f"--output={out}", "--batch-size=16", "--shard-rows=4"]
    assert cli.main(["embed", *flags]) == 0
    return out
