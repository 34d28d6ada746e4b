"""Readers of published benchmarks, in the layouts in which they are passed on; each module has a class ``Source``."""
