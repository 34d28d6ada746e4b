"""Training objectives, one a file, over ``Provenance`` targets; how their matrix is walked is shared."""

SHARED = ("base", "ring", "sweep", "targets", "tiles")
