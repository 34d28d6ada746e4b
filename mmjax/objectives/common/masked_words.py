"""Masked language modelling: words of a text are hidden, and predicted from the rest and from the image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASK_FRACTION, RANDOM_FRACTION = 0.8, 0.1
"""Of the chosen words, those that a mask stands for and those that another word does; the rest stay (BERT)."""


class MaskedTexts(NamedTuple):
    """Texts with words hidden."""

    ids: jax.Array  # i32[M, L], some of them others
    masked: jax.Array  # bool[M, L]: where the mask stands
    chosen: jax.Array  # bool[M, L]: what is to be predicted


def mask_words(key: jax.Array, ids: jax.Array, *, eos_id: int, vocab_size: int, rate: float) -> MaskedTexts:
    """Chooses each word with probability ``rate``; of the chosen 80 % are masked, 10 % replaced, and 10 % stay.

    That is BERT's scheme (Devlin et al. 2019, arXiv:1810.04805) and ALBEF's. Special tokens are no words: the first
    position, where a start token may be, the end, and what follows it. ALBEF's code may choose the end token too.
    Another word is any id of the vocabulary.

    Args:
        key: A random key.
        ids: i32[M, L].
        eos_id: Ends a text.
        vocab_size: Number of ids.
        rate: Probability of a word to be chosen.
    """
    position = jnp.arange(ids.shape[1])
    ended = jnp.cumsum(ids == eos_id, axis=1) > 0
    by_choice, by_kind, by_word = jax.random.split(key, 3)
    chosen = (position > 0) & ~ended & (jax.random.uniform(by_choice, ids.shape) < rate)
    kind = jax.random.uniform(by_kind, ids.shape)
    other = jax.random.randint(by_word, ids.shape, 0, vocab_size, ids.dtype)
    masked = chosen & (kind < MASK_FRACTION)
    replaced = chosen & ~masked & (kind < MASK_FRACTION + RANDOM_FRACTION)
    return MaskedTexts(jnp.where(replaced, other, ids), masked, chosen)


def word_losses(
    logits: jax.Array,
    ids: jax.Array,
    chosen: jax.Array,
    soft: jax.Array | None = None,
    soft_weight: jax.Array | float = 0,
) -> tuple[jax.Array, jax.Array]:
    """Sums over the chosen words of each text: f32[M] of losses, and f32[M] of words that are predicted right.

    The loss of a word w with soft targets q is ``-(1 - a) log p_w - a Σ_v q_v log p_v``, for a = ``soft_weight``.

    Args:
        logits: f32[M, L, V].
        ids: i32[M, L], the words.
        chosen: bool[M, L].
        soft: q, f32[M, L, V]; None: the words alone.
        soft_weight: From 0 to 1.
    """
    log_probability = jax.nn.log_softmax(logits)
    each = -jnp.take_along_axis(log_probability, ids[..., None], axis=-1)[..., 0]
    if soft is not None:
        each = (1 - soft_weight) * each - soft_weight * jnp.sum(soft * log_probability, axis=-1)
    right = jnp.argmax(logits, axis=-1) == ids
    return jnp.sum(jnp.where(chosen, each, 0.0), axis=1), jnp.sum(chosen & right, axis=1, dtype=jnp.float32)
