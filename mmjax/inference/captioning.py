"""Texts for pictures by a model's decoder: the towers, the decoder and the decoding loop in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core import rng
from mmjax.core.config import ConfigError
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.captions.writer import CaptionWriter
from mmjax.inference.decoding import DecodingConfig, Loop, Special


class Captioner:
    """Writes texts for pictures.

    Args:
        merge: The model with parameters: its ``visual``, ``text`` and ``decoder``.
        tokenizer: That of the texts.
        decoding: How words are chosen.
        count: How many texts for a picture.
        prompt: How each begins; it is a part of them.
    """

    def __init__(
        self,
        merge: Callable[[Any], Any],
        tokenizer: Tokenizer,
        decoding: DecodingConfig,
        *,
        count: int = 1,
        prompt: str = "",
    ):
        if count < 1 or (count > 1 and decoding.method != "sample"):
            raise ConfigError(f"count={count}: several texts for a picture need method='sample'; others give one")
        special = Special(end=tokenizer.eos_id, pad=tokenizer.pad_id, start=tokenizer.bos_id)
        around = 1 + (special.start is not None)
        begun = _prompt_tokens(prompt, tokenizer) if prompt else ()
        room = tokenizer.context_length - around - len(begun)
        if max(decoding.min_length, 1) > room:
            name, value = ("min_length", decoding.min_length) if decoding.min_length > room else ("prompt", prompt)
            raise ConfigError(
                f"{name}={value!r}: the model's context holds {max(room, 0)} tokens beside start, prompt and end"
            )
        first = int(special.start is not None) + len(begun)
        # A text of that many words needs no end; without a limit the end's own place may hold one more.
        length = first + min(decoding.max_length or room + 1, room + 1)
        loop = Loop(decoding, special, length=length, first=first, prompt=begun)

        def caption(params: Any, images: Any, numbers: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
            model = merge(params)
            visual, text, decoder = model.visual, model.text, model.decoder
            tokens = visual.run(visual.embed(images), with_sequence=True).sequence
            cache = decoder.start(jnp.repeat(tokens, count, axis=0), text, length=loop.length)
            for place in range(decoder.first, first):  # start and prompt, which this decoder would write itself
                previous = jnp.full(len(tokens) * count, loop.begin[place - 1] if place else 0, jnp.int32)
                _, cache = decoder.next(cache, previous, jnp.int32(place), text)
            step = lambda cache, previous, position: decoder.next(cache, previous, position, text)  # noqa: E731
            keys = jax.vmap(jax.random.fold_in, (None, 0))(rng.key(seed, stream="caption"), numbers)
            keys = jax.vmap(functools.partial(jax.random.split, num=count))(keys).reshape(-1)
            texts, log_p = loop(step, cache, keys)
            return texts.reshape(len(tokens), count, -1), log_p.reshape(len(tokens), count)

        self._tokenizer, self._caption, self._run = tokenizer, caption, jax.jit(caption)

    def __call__(self, params: Any, images: Any, numbers: Any, *, seed: int = 0) -> tuple[jax.Array, jax.Array]:
        """Starts a batch of prepared pictures: tokens i32[B, count, L], and each text's log p f32[B, count].

        ``log p`` is the model's, before temperature and cuts. What is drawn for a picture depends on ``seed`` and its
        number (i32[B]) alone.
        """
        return self._run(params, images, numbers, jnp.uint32(seed))

    def writer(self) -> CaptionWriter:
        """Its first text for each picture, not compiled."""

        def write(params: Any, images: Any) -> jax.Array:
            numbers = jnp.arange(len(jax.tree.leaves(images)[0]), dtype=jnp.int32)
            return self._caption(params, images, numbers, jnp.uint32(0))[0][:, 0]

        return CaptionWriter(write, self._tokenizer.decode)

    def decode(self, tokens: np.ndarray) -> list[list[str]]:
        """The texts of i32[n, count, L]."""
        texts = self._tokenizer.decode(tokens.reshape(-1, tokens.shape[-1]))
        count = tokens.shape[1]
        return [texts[start : start + count] for start in range(0, len(texts), count)]


def _prompt_tokens(prompt: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    if tokenizer.unknown_fraction([prompt]):
        raise ConfigError(
            f"prompt={prompt!r}: has words that the model's tokenizer does not know; leave it out, or take a model "
            "whose training had them"
        )
    [row] = tokenizer([prompt]).tolist()
    return tuple(row[int(tokenizer.bos_id is not None) : row.index(tokenizer.eos_id)])
