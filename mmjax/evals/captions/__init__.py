"""Captions against references, against pictures, and as a collection: what the literature's metrics measure."""
