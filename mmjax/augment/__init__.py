"""Augmentations inside the compiled step, one a file: each has a class ``Augmentation`` (see ``base``)."""

SHARED = ("base", "mixing", "networks", "schedules")
