"""Random-access readers, one a file: each has a class ``Source``."""
