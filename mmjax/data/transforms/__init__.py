"""Input-level augmentations, one a file; numpy only."""
