"""The blocks that a recipe's stages name, one a file."""
