"""Weights that others trained: files of tensors. Imports no jax."""
