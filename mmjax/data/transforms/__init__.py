"""Input-level augmentations, one a file: each has a class ``Transform`` (see ``common.base``).

They use numpy alone, never jax.
"""
