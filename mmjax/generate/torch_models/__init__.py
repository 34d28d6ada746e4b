"""Models of transformers and diffusers, a file a role; torch is imported when the first one is loaded."""
