"""From a source's examples to batches of numpy arrays; nothing here imports jax.

An example comes from one of ``sources``, is read by ``reader``, goes through the transforms of ``transform_chain``, and
becomes a row of ``pipeline``'s batches, in the order of ``order``.
"""
