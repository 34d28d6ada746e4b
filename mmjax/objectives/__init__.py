"""Training objectives, one a file: each has a class ``Objective`` (see ``common.base``)."""
