"""Checkpoints: saved beside training, verified by checksums, read back onto any mesh."""
