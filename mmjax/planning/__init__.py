"""Ahead-of-time compilation of a training step with no accelerator attached, and the resources it needs."""
