"""Training objectives, one a file, over ``Provenance`` targets."""

SHARED = ("targets",)
