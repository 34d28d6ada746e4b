"""mmjax: CLIP-like image-text models in JAX, with multimodal augmentation inside the compiled step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmjax.inference.loading import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported at its first use, because it takes jax with it.
    if name != "load":
        raise AttributeError(f"module 'mmjax' has no attribute {name!r}")
    from mmjax.inference.loading import load

    return load
