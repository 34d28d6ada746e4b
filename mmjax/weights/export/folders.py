"""Writes a model as a folder that transformers or open_clip load, or as a file of big_vision."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.models.config import ClipConfig
from mmjax.weights.export.open_clip_config import write_model_cfg
from mmjax.weights.export.tensors import save_safetensors, to_tensors
from mmjax.weights.export.token_ids import EMBEDDING, exchange_rows, exchange_tokens
from mmjax.weights.layouts import big_vision, hugging_face, open_clip
from mmjax.weights.layouts import hugging_face_config as hf_config


class Adapters(NamedTuple):
    """What low-rank adapters among the parameters belong to."""

    scale: float  # of A·B
    base: str  # the model whose kernels they add to, as its user named it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A model to write.

    Attributes:
        config: The model.
        params: By path, as float32.
        adapters: If ``params`` has adapters beside its kernels.
        tokenizer: The folder of its tokenizer, if it has one.
        card: The text of its ``README.md``, without the front matter.
        recipe: What it was trained with, kept beside it as ``mmjax_config.json``.
        license: Of the weights, for the front matter.
        dtype: Of the tensors in files.
    """

    config: ClipConfig
    params: Mapping[str, np.ndarray]
    tokenizer: Path | None
    card: str
    recipe: Mapping[str, Any]
    adapters: Adapters | None = None
    license: str | None = None
    dtype: str = "float32"


def write_hugging_face(model: Exported, folder: Path) -> None:
    """A folder for ``CLIPModel.from_pretrained`` or ``SiglipModel.from_pretrained``, and their processors."""
    with tempfile.TemporaryDirectory() as temporary:
        _write_hugging_face(_with_end_token(model, Path(temporary) / "tokenizer"), folder)


def _with_end_token(model: Exported, tokenizer: Path) -> Exported:
    """With another id for an end token of id 2, which CLIPModel takes for "the token of the highest id"."""
    text = model.config.text_cfg
    if text.pool_type != "eos" or text.eos_id != 2 or not text.vocab_size or model.tokenizer is None:
        return model
    last = text.vocab_size - 1
    exchange_tokens(model.tokenizer, tokenizer, 2, last)
    config = dataclasses.replace(model.config, text_cfg=dataclasses.replace(text, eos_id=last))
    params = {**model.params, EMBEDDING: exchange_rows(model.params[EMBEDDING], 2, last)}
    return dataclasses.replace(model, config=config, params=params, tokenizer=tokenizer)


def _write_hugging_face(model: Exported, folder: Path) -> None:
    config = hf_config.write_config(model.config) | {"dtype": model.dtype}
    preprocessor = hf_config.write_preprocessor(model.config)
    rules = hugging_face.siglip_rules if config["model_type"] == "siglip" else hugging_face.clip_rules
    tensors = to_tensors(model.params, rules(model.config))
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor)
    save_safetensors(tensors, folder / "model.safetensors", dtype=model.dtype)
    write_rest(model, folder, library="transformers")


def write_open_clip(model: Exported, folder: Path) -> None:
    """A folder for ``open_clip.create_model_and_transforms("local-dir:…")``, and for the hub."""
    vision = model.config.vision_cfg
    section = write_model_cfg(model.config, has_tokenizer=model.tokenizer is not None)
    prefix = "text." if section.get("custom_text") else ""
    tensors = to_tensors(model.params, open_clip.rules(model.config, text_prefix=prefix))
    preprocess = {"size": [vision.image_size] * 2, "mode": "RGB", "mean": list(vision.image_mean),
                  "std": list(vision.image_std), "interpolation": "bicubic", "resize_mode": vision.image_resize,
                  "fill_color": 0}  # fmt: skip
    write_json(folder / "open_clip_config.json", {"model_cfg": section, "preprocess_cfg": preprocess})
    save_safetensors(tensors, folder / "open_clip_model.safetensors", dtype=model.dtype)
    write_rest(model, folder, library="open_clip")


def write_big_vision(model: Exported, folder: Path) -> None:
    """A folder with ``model.npz`` in big_vision's layout; how pictures are prepared stands beside it, for us."""
    big_vision.check_expressible(model.config)
    tensors = to_tensors(big_vision.to_new_positions(model.config, model.params), big_vision.rules(model.config))
    if model.dtype != "float32":
        raise ConfigError(f"--dtype={model.dtype}: big_vision's files hold float32; leave it out")
    write_json(folder / "preprocessor_config.json", hf_config.write_preprocessor(model.config))
    np.savez(folder / "model.npz", **{f"params/{name}": tensor for name, tensor in tensors.items()})  # type: ignore[arg-type]
    write_rest(model, folder, library="big_vision")


FORMATS: dict[str, Callable[[Exported, Path], None]] = {
    "hf": write_hugging_face,
    "open_clip": write_open_clip,
    "big_vision": write_big_vision,
}


def write_rest(model: Exported, folder: Path, *, library: str, base: str | None = None) -> None:
    """Tokenizer, model card and recipe; ``base`` is the model that adapters are for."""
    if model.tokenizer is not None:
        for path in sorted(model.tokenizer.iterdir()):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    front = [
        "---", "tags:", "- clip", "- mmjax", f"library_name: {library}", *([f"base_model: {base}"] if base else []),
        "pipeline_tag: zero-shot-image-classification", f"license: {model.license or 'unknown'}", "---", "",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(front) + model.card, encoding="utf-8")
    write_json(folder / "mmjax_config.json", dict(model.recipe))


def write_json(path: Path, section: Mapping[str, Any]) -> None:
    """Writes a section for people to read."""
    path.write_text(json.dumps(section, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
