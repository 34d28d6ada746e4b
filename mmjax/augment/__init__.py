"""Augmentations inside the compiled step, one a file."""
