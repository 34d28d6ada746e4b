"""Attention without the linear maps around it: what may compute it, and the choice."""
