"""What the augmentations share: their interface (``base``), schedules, mixing, and the networks that some train."""
