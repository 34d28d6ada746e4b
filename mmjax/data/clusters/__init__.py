"""Batches of similar examples: a table of nearest neighbors beside a source, and the order that it gives."""
