"""Hard negatives that other models make: masked words, other names, and edits by a language model."""
