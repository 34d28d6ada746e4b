"""What recipes share: the models of each backend, by their role."""

from __future__ import annotations

from typing import Any

from mmjax.core.config import ConfigError, choose

HF = {
    "captioner": {"model": "Salesforce/blip2-opt-2.7b"},
    "scorer": {"name": "clip", "model": "open_clip:ViT-L-14"},
}
"""Models of the Hugging Face hub for each role; a recipe's paper may use others."""

BACKENDS = ("scenes", "hf", "openai")


def models(backend: str, *roles: str, **options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A section for each role.

    Args:
        backend: ``scenes`` (an oracle, no model), ``hf`` or ``openai``.
        roles: Which models the recipe asks.
        options: Of ``hf``, options of a role that differ from those of ``HF``.
    """
    choose(backend, BACKENDS, path="backend")
    if backend == "scenes":
        return {role: {"name": "scenes"} for role in roles}
    sections = {}
    for role in roles:
        section = {"name": "hf", **HF[role], **options.get(role, {})}
        if backend == "openai" and role in ("captioner", "writer", "image_generator"):
            section = {"name": "openai", "model": "default"}
        sections[role] = section
    return sections


__all__ = ["ConfigError", "models"]
