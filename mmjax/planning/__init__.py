"""A training step compiled for accelerators that are not attached, and what it would need there."""
