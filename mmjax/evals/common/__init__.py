"""What evaluators share: embedding a split (``embedder``), exact ranks, and batches over several processes."""
