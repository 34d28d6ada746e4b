"""The models behind the blocks: one file a backend."""
