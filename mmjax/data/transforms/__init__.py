"""Input-level augmentations, one a file: each has a class ``Transform`` (see ``base``); numpy only, never jax."""

SHARED = ("base", "boxes")
