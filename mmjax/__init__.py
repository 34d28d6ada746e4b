"""mmjax: CLIP-like image-text models in JAX, with multimodal augmentation inside the compiled step."""

__version__ = "0.1.0"
