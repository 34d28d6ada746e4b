"""Augmentations inside the compiled step, one a file: each has a class ``Augmentation`` (see ``base``)."""

SHARED = (
    "adversary",
    "alignment",
    "base",
    "consistency",
    "crossing",
    "divergences",
    "mixing",
    "networks",
    "schedules",
    "shortening",
    "vae",
)
