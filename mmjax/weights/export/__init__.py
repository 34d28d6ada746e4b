"""Models as folders and files that others load: transformers, open_clip, big_vision."""
