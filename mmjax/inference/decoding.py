"""Texts from a language model, word by word: greedy, by beams, or drawn; one compiled loop for a whole batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, ConfigError, Ge, Gt, Le
from mmjax.core.numerics import EXCLUDED

_BEAMS = 4

Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""``step(cache, previous, position)``: logits f32[N, V] of the token at ``position`` i32[], given the one before it
``previous`` i32[N], and the cache for the next one. Arrays of the cache have rows on their second axis.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How texts are chosen.

    ``greedy`` takes the most probable token each time. ``beam`` keeps the ``beams`` most probable beginnings (None: 4),
    and returns the text of the largest ``log p / n^length_penalty``, n being its number of tokens with the end.
    ``sample`` draws from the ``top_k`` most probable tokens (None: all), and of these from the fewest that together
    have the probability ``top_p`` (Holtzman et al. 2020, arXiv:1904.09751), after logits are divided by
    ``temperature``.

    Texts have ``min_length`` to ``max_length`` tokens beside start, prompt and end; None: as many as the context holds.
    Those that the limit cuts off have no end.
    """

    method: Literal["greedy", "beam", "sample"] = "greedy"
    max_length: Annotated[int, Ge(1)] | None = None
    min_length: Annotated[int, Ge(0)] = 0
    beams: Annotated[int, Between(1, 256)] | None = None
    length_penalty: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0
    top_k: Annotated[int, Ge(1)] | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None

    def __post_init__(self) -> None:
        methods = {
            "sample": {
                "temperature": self.temperature != 1,
                "top_k": self.top_k is not None,
                "top_p": self.top_p is not None,
            },
            "beam": {"beams": self.beams not in (None, 1), "length_penalty": self.length_penalty != 1},
        }
        for method, options in methods.items():
            for name, changed in options.items():
                if changed and self.method != method:
                    raise ConfigError(
                        f"{name}={getattr(self, name)}: is for method={method!r}, not {self.method!r}; set the method, "
                        "or leave it out"
                    )
        if self.max_length is not None and self.min_length > self.max_length:
            raise ConfigError(f"min_length={self.min_length}: is more than max_length={self.max_length}; lower it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Special:
    """The tokens that mean something to the loop."""

    end: int
    pad: int
    start: int | None = None  # the first token of every text; None: texts have none
    never: tuple[int, ...] = ()  # others that no text has

    @property
    def excluded(self) -> tuple[int, ...]:
        """Tokens that are never chosen."""
        return tuple({*self.never, self.pad, *([] if self.start is None else [self.start])} - {self.end})


@dataclasses.dataclass(frozen=True)
class Loop:
    """A decoding loop over texts of ``length`` positions.

    Args:
        config: How tokens are chosen.
        special: Start, end and padding.
        length: Positions of a text, with start and end.
        first: The first position that is chosen; those before it hold the start token and the prompt.
        prompt: Tokens of all texts after their start.
    """

    config: DecodingConfig
    special: Special
    length: int
    first: int
    prompt: tuple[int, ...] = ()

    @property
    def begin(self) -> tuple[int, ...]:
        """What all texts begin with."""
        return (*(() if self.special.start is None else (self.special.start,)), *self.prompt)

    def __call__(self, step: Step, cache: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Texts for N rows, each with a random key of its own.

        Returns:
            Tokens i32[N, length], ``start? body end pad*`` (without an end where the length was not enough), and the
            logarithm f32[N] of each text's probability under the model, before temperature and cuts.
        """
        if self.config.method == "beam":
            return self._beams(step, cache, keys.shape[0])
        return self._one_each(step, cache, keys)

    def _start(self, rows: int) -> jax.Array:
        tokens = jnp.full((rows, self.length), self.special.pad, jnp.int32)
        return tokens.at[:, : len(self.begin)].set(jnp.array(self.begin, jnp.int32)) if self.begin else tokens

    def _log_p(self, logits: jax.Array, position: jax.Array) -> jax.Array:
        """log p f32[N, V] of the tokens that may come here; very small for others."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        tokens = jnp.arange(log_p.shape[-1])
        allowed = jnp.ones_like(tokens, bool)
        for token in self.special.excluded:
            allowed &= tokens != token
        early = position - self.first < self.config.min_length
        return jnp.where(allowed & ~(early & (tokens == self.special.end)), log_p, EXCLUDED)

    def _one_each(self, step: Step, cache: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jnp.arange(keys.shape[0])

        def choose(log_p: jax.Array, position: jax.Array) -> jax.Array:
            if self.config.method == "greedy":
                return jnp.argmax(log_p, axis=-1)
            return draw(log_p, jax.vmap(jax.random.fold_in, (0, None))(keys, position), self.config)

        def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
            position, tokens, ended, total, cache = state
            previous = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(position - 1, 0), axis=1, keepdims=False)
            logits, cache = step(cache, previous, position)
            log_p = self._log_p(logits, position)
            chosen = choose(log_p, position).astype(jnp.int32)
            total = total + jnp.where(ended, 0.0, log_p[rows, chosen])
            chosen = jnp.where(ended, self.special.pad, chosen)
            tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, position, axis=1)
            return position + 1, tokens, ended | (chosen == self.special.end), total, cache

        start = (jnp.int32(self.first), self._start(len(rows)), rows < 0, jnp.zeros(len(rows)), cache)
        go_on = lambda state: (state[0] < self.length) & ~jnp.all(state[2])  # noqa: E731
        _, tokens, _, total, _ = jax.lax.while_loop(go_on, body, start)
        return tokens, total

    def _beams(self, step: Step, cache: Any, rows: int) -> tuple[jax.Array, jax.Array]:
        beams = self.config.beams or _BEAMS

        def score(log_p: jax.Array, position: jax.Array) -> jax.Array:
            """Of texts whose last token is at this position."""
            count = (position - self.first + 1).astype(jnp.float32)
            return log_p / count**self.config.length_penalty

        def reorder(cache: Any, source: jax.Array) -> Any:
            flat = (source + jnp.arange(rows)[:, None] * beams).reshape(-1)
            return jax.tree.map(lambda x: jnp.take(x, flat, axis=1), cache)

        def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
            position, tokens, total, done, done_score, done_total, cache = state
            previous = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(position - 1, 0), axis=2, keepdims=False)
            logits, cache = step(cache, previous.reshape(-1), position)
            log_p = self._log_p(logits, position).reshape(rows, beams, -1)
            vocabulary = log_p.shape[-1]
            # Twice as many as there are beams: half of them at most can end here.
            candidates = min(2 * beams, beams * vocabulary)
            best, place = jax.lax.top_k((total[..., None] + log_p).reshape(rows, -1), candidates)
            source, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
            texts = jnp.take_along_axis(tokens, source[..., None], axis=1)
            texts = jax.lax.dynamic_update_index_in_dim(texts, token, position, axis=2)
            ends = (token == self.special.end) | (position == self.length - 1)

            scores = jnp.where(ends & (best > EXCLUDED / 2), score(best, position), 2 * EXCLUDED)
            scores, kept = jax.lax.top_k(jnp.concatenate([done_score, scores], axis=1), beams)
            done = jnp.take_along_axis(jnp.concatenate([done, texts], axis=1), kept[..., None], axis=1)
            done_total = jnp.take_along_axis(jnp.concatenate([done_total, best], axis=1), kept, axis=1)

            total, kept = jax.lax.top_k(jnp.where(ends, 2 * EXCLUDED, best), beams)
            tokens = jnp.take_along_axis(texts, kept[..., None], axis=1)
            cache = reorder(cache, jnp.take_along_axis(source, kept, axis=1))
            return position + 1, tokens, total, done, scores, done_total, cache

        def go_on(state: tuple[Any, ...]) -> jax.Array:
            position, _, total, _, done_score, _, _ = state
            # The best that a beginning can become: all that follows is certain, and it is as long as can be.
            most = total[:, 0] / jnp.float32(self.length - self.first) ** self.config.length_penalty
            return (position < self.length) & jnp.any(most > done_score[:, -1])

        repeated = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), cache)
        tokens = jnp.repeat(self._start(rows)[:, None], beams, axis=1)
        total = jnp.where(jnp.arange(beams) > 0, EXCLUDED, jnp.zeros((rows, beams)))
        worst = jnp.full((rows, beams), 2 * EXCLUDED)
        start = (jnp.int32(self.first), tokens, total, tokens, worst, worst, repeated)
        _, _, _, done, _, done_total, _ = jax.lax.while_loop(go_on, body, start)
        return done[:, 0], done_total[:, 0]


def draw(log_p: jax.Array, keys: jax.Array, config: DecodingConfig) -> jax.Array:
    """i32[N]: a token of each row of log p f32[N, V], drawn with the row's own key."""
    return jax.vmap(jax.random.categorical)(keys, cut(log_p / config.temperature, config))


def cut(logits: jax.Array, config: DecodingConfig) -> jax.Array:
    """Logits f32[N, V] with all but ``top_k`` tokens, and of these all but the ``top_p`` nucleus, made impossible."""
    if config.top_k is None and config.top_p is None:
        return logits
    vocabulary = logits.shape[-1]
    best, tokens = jax.lax.top_k(logits, min(config.top_k or vocabulary, vocabulary))
    if config.top_p is not None and config.top_p < 1:
        p = jax.nn.softmax(best, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        best = jnp.where(before < config.top_p, best, EXCLUDED)
    put = functools.partial(jnp.put_along_axis, axis=-1, inplace=False)
    return put(jnp.full_like(logits, EXCLUDED), tokens, best)
