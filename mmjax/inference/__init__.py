"""Trained models in use: embeddings, similarities and classes of pictures and texts."""
