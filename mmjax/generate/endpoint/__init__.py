"""Requests to a model behind a URL: retries, and a cache of the answers."""
