"""Writes a run's low-rank adapters as PEFT's, for transformers' CLIPModel and SiglipModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.models.lora import list_adapters
from mmjax.weights.export.folders import Exported, write_json, write_rest
from mmjax.weights.export.tensors import save_safetensors
from mmjax.weights.layouts import hugging_face
from mmjax.weights.layouts import hugging_face_config as hf_config
from mmjax.weights.rules import CONV, Rule


def write_peft(model: Exported, folder: Path) -> None:
    """A folder for ``PeftModel.from_pretrained(base, DIR)``, where base is the model that the run started from."""
    adapters = model.adapters
    if adapters is None:
        raise ConfigError("--format=peft: the run has no adapters (lora.rank=0); use --format=hf")
    kind = hf_config.write_config(model.config)["model_type"]
    rules = list((hugging_face.siglip_rules if kind == "siglip" else hugging_face.clip_rules)(model.config))
    tensors: dict[str, np.ndarray] = {}
    modules: list[str] = []
    rank = 0
    for layer, a, b in list_adapters(model.params):
        rule = _rule(f"{layer}/kernel", rules)
        names = rule.names(len(a))
        for k, name in enumerate(names):
            module = name.removesuffix(".weight")
            of_layer = (a[k], b[k]) if rule.stacked else (a, b)
            for letter, tensor in zip("AB", _to_torch(*of_layer, convolution=rule.op is CONV), strict=True):
                tensors[f"base_model.model.{module}.lora_{letter}.weight"] = tensor
            modules.append(module)
        rank = a.shape[-1]
    base, _, revision = adapters.base.removeprefix("hf-hub:").removeprefix("local-dir:").partition("@")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": rank,
        "lora_alpha": adapters.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": modules,
    }
    write_json(folder / "adapter_config.json", config)
    save_safetensors(tensors, folder / "adapter_model.safetensors", dtype=model.dtype)
    write_rest(model, folder, library="peft", base=base)


def _rule(kernel: str, rules: list[Rule]) -> Rule:
    rule = next((rule for rule in rules if kernel in rule.ours), None)
    if rule is None or len(rule.ours) > 1 or not rule.theirs.endswith(".weight"):
        raise ConfigError(
            f"--format=peft: transformers has no linear layer of its own for {kernel}; use --format=hf, which merges it"
        )
    return rule


def _to_torch(a: np.ndarray, b: np.ndarray, *, convolution: bool) -> tuple[np.ndarray, np.ndarray]:
    """A as [rank, in] and B as [out, rank]; of a convolution, as the kernels of two convolutions."""
    rank = a.shape[-1]
    outputs = b.reshape(rank, -1).T
    return (CONV.write(a), outputs[..., None, None]) if convolution else (a.reshape(-1, rank).T, outputs)
