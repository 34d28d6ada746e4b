"""What recipes share: a model for each role, by backend."""

from __future__ import annotations

from typing import Any

from mmjax.core.config import ConfigError, choose

HUB = {
    "captioner": {"name": "hf", "model": "Salesforce/blip-image-captioning-large"},
    "writer": {"name": "hf", "model": "Qwen/Qwen2.5-7B-Instruct"},
    "student": {"name": "hf", "model": "Qwen/Qwen2.5-1.5B-Instruct"},
    "mask_filler": {"name": "hf", "model": "google-bert/bert-base-cased"},
    "tagger": {"name": "hf", "model": "dslim/bert-base-NER"},
    "detector": {"name": "hf", "model": "IDEA-Research/grounding-dino-base"},
    "image_generator": {"name": "hf", "model": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
    "scorer": {"name": "mmjax", "model": "openai/clip-vit-large-patch14"},
    "labeler": {"name": "mmjax", "model": "openai/clip-vit-large-patch14"},
}
"""A model of the Hugging Face hub for each role; papers' own ones stand in the recipes, where they are public."""

SERVED = {
    "captioner": "Qwen/Qwen2.5-VL-7B-Instruct",
    "writer": "Qwen/Qwen2.5-7B-Instruct",
    "student": "Qwen/Qwen2.5-1.5B-Instruct",
    "image_generator": "stable-diffusion-3.5-medium",
}
"""Roles that a service can take, at ``localhost:8000``; the others have models of the hub then."""

BACKENDS = ("scenes", "rules", "hf", "openai", "mmjax")


def models(backend: str, *roles: str, run: str = "", **hub: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A section for each role.

    Args:
        backend: ``scenes`` (oracles, for pictures of the source scenes), ``rules`` (for writers and taggers, beside
            models of the hub), ``hf``, ``openai``, or ``mmjax``.
        roles: Which models the recipe asks.
        run: Of ``mmjax``, what ``mmjax.load`` takes, for all roles.
        hub: Options of roles that differ from those of ``HUB``.
    """
    choose(backend, BACKENDS, path="backend")
    if backend == "scenes":
        return {role: {"name": "scenes"} for role in roles}
    if backend == "mmjax":
        if not run:
            raise ConfigError("run='': backend=mmjax needs a trained model; name a run folder, as run=runs/captioner")
        return {role: {"name": "mmjax", "model": run} for role in roles}
    sections = {role: {**HUB[role], **hub.get(role, {})} for role in roles}
    for role in roles:
        if backend == "openai" and role in SERVED:
            sections[role] = {"name": "openai", "url": "http://localhost:8000/v1", "model": SERVED[role]}
        if backend == "rules" and role in ("writer", "tagger"):
            sections[role] = {"name": "rules"}
    return sections
