"""From sources to batches; numpy only, never imports jax."""
