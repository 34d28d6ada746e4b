"""The oracles of the backend ``scenes``: what they know of the procedural world of ``mmjax.data.scenes``."""
