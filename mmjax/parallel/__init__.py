"""Meshes and sharding policies; nothing else builds them."""
