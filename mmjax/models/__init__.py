"""Towers as NNX modules; they know nothing of meshes, data or training."""
