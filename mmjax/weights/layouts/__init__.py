"""The layouts that weights come in: the names of their tensors, and their configurations."""
