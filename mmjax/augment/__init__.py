"""Augmentations inside the compiled step, one a file: each has a class ``Augmentation`` (see ``common.base``)."""
