"""Grad-CAM of a fusion encoder: which image tokens a match is owed to, by its cross-attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.block_stack import run_blocks


def named_block(layers: int) -> int:
    """The block that is looked at: the third of ALBEF's six with cross-attention, the eighth (from 0) of its twelve."""
    return (layers - 1) // 2


def grad_cam(fusion: Any, image: jax.Array, text: jax.Array, ids: jax.Array) -> jax.Array:
    """The map of each pair, by ALBEF's way (Li et al. 2021, arXiv:2107.07651, section 6.4 and its ``Grounding.py``).

    ::

        map_k = mean over heads h and tokens l of the text of [a_hlk · max(∂s/∂a_hlk, 0)]

    a are the cross-attention's weights in ``named_block``, and s is the logit of "match". The mean is over the text's
    own tokens; ALBEF's code divides by the longest text of the batch, which changes no order within a map.

    Args:
        fusion: A ``FusionEncoder`` of the kind ``cross``.
        image: [B, T, image_width].
        text: [B, L, width].
        ids: i32[B, L].

    Returns:
        f32[B, T], of all image tokens.
    """
    number, valid = named_block(fusion.config.layers), fusion.valid(ids)
    x, context = text.astype(fusion.dtype), image.astype(fusion.dtype)
    graph, state = nnx.split(fusion.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[number], state))
    options: dict[str, Any] = {
        "scan": fusion.scan, "remat": "none", "valid": valid, "context": context, "row_sharding": fusion.row_sharding,
    }  # fmt: skip
    before, _ = run_blocks(fusion.blocks, x, stop=number, **options)
    own = block.ln_1(before) if block.block_norm == "pre" else before
    attended = block.attn(own, own, mask=valid[:, None, None, :])

    def score(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The sum of all logits, if the weights had ``added`` on top, and the weights."""
        cross, weights = block.cross_attn, jnp.zeros(())

        def attend_context(queries: jax.Array) -> jax.Array:
            nonlocal weights
            q, (k, v) = cross.query(queries), cross.keys_values(context)
            q = q if cross.ln_q is None else cross.ln_q(q)
            logits = jnp.einsum("blhd,bkhd->bhlk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits, axis=-1)
            heads = jnp.einsum("bhlk,bkhd->blhd", (weights + added).astype(v.dtype), v)
            if cross.ln_inner is not None:
                heads = cross.ln_inner(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)
            return cross.out(heads)

        after = block.complete(before, attended, attend_context=attend_context)
        last, _ = run_blocks(fusion.blocks, after, start=number + 1, position=0, **options)
        return jnp.sum(fusion.match_logits(last)[:, 1]), weights

    shape = (len(image), block.cross_attn.query.outputs[0], text.shape[1], image.shape[1])
    slope, weights = jax.grad(score, has_aux=True)(jnp.zeros(shape))
    of_text = valid[:, None, :, None].astype(jnp.float32)
    total = jnp.sum(weights * jnp.maximum(slope, 0) * of_text, axis=(1, 2))
    return total / (shape[1] * jnp.sum(of_text, axis=(1, 2)))
