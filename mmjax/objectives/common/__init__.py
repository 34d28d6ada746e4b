"""What objectives share: their interface (``base``), targets, and the logits matrix in tiles (``sweep``)."""
