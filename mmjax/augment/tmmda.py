"""TMMDA: tokens of other modalities mixed in, made plausible by a generator, and attended to by the tower's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Similarity, Tap, Terms, TowerInfo, View
from mmjax.augment.common.divergences import jensen_shannon
from mmjax.augment.common.gan import Discriminator, Game, Generator, dense, played
from mmjax.augment.common.mixing import flipped, shared_source
from mmjax.augment.common.schedules import Schedule, Strength
from mmjax.augment.common.token_mixing import (
    CrossAttention,
    Modality,
    Side,
    aligned,
    modalities_of,
    same_example,
    standardised,
    token_mix,
)
from mmjax.core.config import ConfigError
from mmjax.core.numerics import EXCLUDED, masked_mean
from mmjax.core.types import Metrics, Provenance


class Augmentation(base.Base):
    """Token mixup data augmentation (Zhao et al. 2023, doi:10.1145/3543507.3583406) for dual encoders.

    The modalities are language and each modality of images. With tokens ``x_k`` at the tap, ``t_k`` the same at mean
    0 and variance 1 and held still, the other modalities' ``t_m`` brought to the width of ``t_k`` and to its length
    (the nearest relative place among words or patches), ``u ~ U(0, 1)`` for each place, and ``ε ~ N(0, I)``::

        mix_k = t_(k+1) if u > 1 - first, t_(k+2) if u < second, …, else t_k
        x̃_k = G_k(mix_k + noise · ε)
        loss = adversarial · GAN(D_k; t_k, x̃_k) + jsd · JS(softmax t_k ‖ softmax x̃_k)     means over k and places
        x'_k = x_k + σ(x_k) · attention_k((x_k - mean x_k) / σ(x_k) as queries, x̃_k as keys and values)

    and x' runs through the rest of the towers. The others of k are in cyclic order, each further one with the
    interval of ``second`` after the one before it, so with one modality of images there is ``first`` alone. Only
    words and patches are replaced, never the first or the end token, padding or a class token; one u is drawn for
    all modalities, for the longest, of which shorter ones use the beginning. G and D (Goodfellow et al. 2014,
    arXiv:1406.2661; see ``common.gan``) work token by token and learn without moving the towers; D sees words and
    patches alone. Modalities of images share one tower, and so its G, D and attention; a linear map changes the width
    between language and images, and between images nothing does. The plain towers are what is evaluated.

    Where the others come from decides what x' may be used for. ``own``, the paper's: from the same pair. A text with
    parts of its own image gives the pair's answer away, so its embedding e' is only compared with clean ones e, held
    still as is the scale s: to be told from other examples of its own modality, and to be as similar to the other
    side m as the clean one is::

        contrast · mean CE(softmax_j s e'_ki·e_kj, i) + rows · mean JS(softmax_j s e'_ki·e_mj ‖ softmax_j s e_ki·e_mj)

    ``other``: from another pair, row N - 1 - i (and none where it shows the same example). Then x' is one more term of
    the run's objective, labelled as its own pair alone. A label by the share of foreign tokens can be met on noise,
    by recognising the partner's clean tokens in the batch; and so can any label where the same places are replaced
    in an image and in its text, so each side then draws its own u.

    The released code differs: it computes both losses and returns neither, adds the noise behind G, mixes no language
    into sound, counts padding, takes logarithms of zero, and mixes at random when it evaluates. It has one modality
    for each encoder, aligned word by word, takes features as they are instead of standardised, and has no loss
    weights; those here are ours.

    Options: ``tap``, ``sides`` whose sequences are augmented, ``foreign``; mixing ``first``, ``second``; G and D
    ``adversarial``, ``adversary`` (``minimax``: D's loss reversed, ``nonsaturating``), ``jsd``, ``noise``,
    ``dropout``; ``heads`` of the attention; for own tokens ``contrast``, ``rows``; of their Adam ``learning_rate``,
    ``clip_norm``.
    """

    def __init__(
        self,
        *,
        towers: TowerInfo,
        rngs: nnx.Rngs,
        weight: Strength = 1.0,
        tap: Tap = "tokens@-1",
        sides: Literal["both", "text", "image"] = "both",
        foreign: Literal["own", "other"] = "own",
        first: Strength = 0.15,
        second: Strength = 0.15,
        adversarial: Strength = 0.1,
        adversary: Game = "minimax",
        jsd: Strength = 0.1,
        noise: Strength = 0.1,
        dropout: float = 0.1,
        heads: int = 8,
        contrast: Strength = 0.1,
        rows: Strength = 1.0,
        learning_rate: Strength = 1e-4,
        clip_norm: float = 1.0,
    ):
        super().__init__(weight=weight)
        towers.check(tap, kinds=("tokens",), path="augment.tmmda.tap")
        for name, value, low, high in (
            ("first", first, 0, 1),
            ("second", second, 0, 1),
            ("adversarial", adversarial, 0, None),
            ("jsd", jsd, 0, None),
            ("noise", noise, 0, None),
            ("dropout", dropout, 0, 0.99),
            ("heads", heads, 1, None),
            ("contrast", contrast, 0, None),
            ("rows", rows, 0, None),
            ("learning_rate", learning_rate, 0, None),
        ):
            schedules.check(value, path=f"augment.tmmda.{name}", low=low, high=high)
        if not clip_norm > 0:
            raise ConfigError(f"augment.tmmda.clip_norm={clip_norm}: must be positive")
        self.tap, self.foreign, self.adversary, self.dropout = tap, foreign, adversary, dropout
        self.first, self.second, self.noise = first, second, noise
        self.adversarial, self.jsd, self.contrast, self.rows = adversarial, jsd, contrast, rows
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        image, text = towers.widths(tap)
        self.text = Enhancer(text, foreign=image, heads=heads, rngs=rngs) if sides != "image" else None
        self.image = Enhancer(image, foreign=text, heads=heads, rngs=rngs) if sides != "text" else None

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view: first captions and all images, those of the chosen sides enhanced."""
        modalities = modalities_of(clean)
        self._check_room(others=len(modalities) - 1)
        keys = jax.random.split(key, 3)
        longest = max(m.content.shape[1] for m in modalities)
        enhanced: dict[Side, jax.Array] = {}
        terms: Terms = {}
        metrics: Metrics = {}
        chosen = [m.side for m in modalities if getattr(self, m.side) is not None]
        for side, part in zip(dict.fromkeys(chosen), keys[1:], strict=False):
            # Places replaced alike in an image and its text would tell that they belong together.
            common = keys[0] if self.foreign == "own" else jax.random.fold_in(part, 0)
            u = jax.random.uniform(common, (clean.examples, longest))
            enhanced[side], losses, found = self._enhanced(side, modalities, u, part, step)
            for name, value in losses.items():
                terms[name] = terms.get(name, jnp.float32(0)) + value * chosen.count(side) / len(chosen)
            metrics |= {f"{side}_{name}": value for name, value in found.items()}
        pairs, n = clean.pairs(), clean.examples
        text = enhanced.get("text")
        view = View(
            role="consistency" if self.foreign == "own" else "task",
            name="enhanced" if self.foreign == "own" else "task",
            image=enhanced.get("image"),
            text=text,
            image_source=clean.image_source,
            text_source=clean.text_source if text is None else jax.tree.map(lambda x: x[:n], pairs.text_source),
            ids=None if text is None or pairs.token_mask is None else pairs.token_mask.ids[:n],
        )
        return Augmented(views=[view], terms=terms, metrics=metrics)

    def compare(
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """The contrast of enhanced rows with clean ones, and how their similarities changed; of own tokens alone."""
        if self.foreign == "other":
            return {}, {}
        (view,), n = views, clean.examples
        still, pairs, similarity = jax.lax.stop_gradient((clean, clean.pairs(), similarity))
        contrasts, changes = [], []

        def add(new: jax.Array, old: jax.Array, source: Provenance, across: jax.Array, across_valid: jax.Array) -> None:
            contrasts.append(own_contrast(new, old, source=source, similarity=similarity))
            logits = [similarity.logits(rows, across) for rows in (old, new)]
            change = jensen_shannon(*logits, where=across_valid[None, :])
            changes.append(masked_mean(change, source.valid))

        if self.text is not None:
            source = jax.tree.map(lambda x: x[:n], pairs.text_source)
            add(view.text, pairs.text[:n], source, still.image, still.image_source.valid)
        if self.image is not None:
            for at in range(0, still.image.shape[0], n):
                source = jax.tree.map(lambda x, at=at: x[at : at + n], still.image_source)
                add(view.image[at : at + n], still.image[at : at + n], source, still.text, still.text_source.valid)
        contrast, change = jnp.mean(jnp.stack(contrasts)), jnp.mean(jnp.stack(changes))
        terms = {
            "contrast": schedules.at(self.contrast, step) * contrast,
            "rows": schedules.at(self.rows, step) * change,
        }
        return terms, {"own_contrast": contrast, "rows_divergence": change}

    def _enhanced(
        self, side: Side, modalities: Sequence[Modality], u: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Terms, Metrics]:
        """The enhanced sequences of one tower, the losses of its networks, and what they do."""
        networks: Enhancer = getattr(self, side)
        probabilities = schedules.at(self.first, step), schedules.at(self.second, step)
        own = [k for k, modality in enumerate(modalities) if modality.side == side]
        mixes = []
        for k in own:
            still, content = modalities[k].still, modalities[k].content
            others = [self._lent(m, modalities[k], networks) for m in (*modalities[k + 1 :], *modalities[:k])]
            mixes.append(
                token_mix(still, others, u[:, : content.shape[1]], probabilities=probabilities, content=content)
            )
        tokens, still, valid, content = (
            _joined([getattr(modalities[k], name) for k in own]) for name in ("tokens", "still", "valid", "content")
        )
        mixed, source = (_joined(parts) for parts in zip(*mixes, strict=True))
        keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        noise = schedules.at(self.noise, step) * jax.random.normal(keys[0], mixed.shape, jnp.float32)
        made = networks.generator(mixed + noise.astype(mixed.dtype), keys[1], dropout=self.dropout)
        game, metrics = played(
            networks.discriminator, still, made, where=content, game=self.adversary, key=keys[2], dropout=self.dropout
        )
        divergence = masked_mean(jensen_shannon(still, made), content)
        factor = schedules.at(self.adversarial, step)
        terms = {name: factor * value for name, value in game.items()}
        terms["jsd"] = schedules.at(self.jsd, step) * divergence

        unit, spread = standardised(tokens)
        added = networks.attention(unit, made, valid=valid).astype(jnp.float32)
        enhanced = tokens.astype(jnp.float32) + jax.lax.stop_gradient(spread) * added
        enhanced = jnp.where(valid[..., None], enhanced.astype(tokens.dtype), tokens)
        metrics |= {
            "divergence": divergence,
            "mixed_share": masked_mean(source > 0, content),
            "made_length": _length(made, content) / jnp.maximum(_length(still, content), 1e-6),
            "added_length": _length(added, valid) / jnp.maximum(_length(still, valid), 1e-6),
        }
        return enhanced, terms, metrics

    def _lent(self, other: Modality, onto: Modality, networks: Enhancer) -> tuple[jax.Array, jax.Array]:
        """Tokens for each place of another modality, and where there are any."""
        tokens, content = other.still, other.content
        if other.side != onto.side:
            tokens = dense(networks.projection, tokens)
        if self.foreign == "other":
            # A partner that shows the same example would lend this pair's own tokens.
            stranger = ~same_example(onto.source) & ~same_example(other.source)
            tokens, content = flipped(tokens), flipped(content) & stranger[:, None]
        return aligned(tokens, content, onto=onto.content)

    def _check_room(self, *, others: int) -> None:
        first, second = (max(s.extremes) if isinstance(s, Schedule) else s for s in (self.first, self.second))
        share = first + second * (others - 1)
        if share > 1:
            raise ConfigError(
                f"augment.tmmda.second={second}: with first={first} and {others} other modalities {share:g} of all "
                f"tokens would be replaced; lower either"
            )


class Enhancer(nnx.Module):
    """The networks of one tower's tokens."""

    def __init__(self, width: int, *, foreign: int, heads: int, rngs: nnx.Rngs):
        self.projection = nnx.Linear(foreign, width, rngs=rngs)
        self.generator = Generator(width, rngs=rngs)
        self.discriminator = Discriminator(width, rngs=rngs)
        self.attention = CrossAttention(width, heads=heads, rngs=rngs)


def own_contrast(new: jax.Array, old: jax.Array, *, source: Provenance, similarity: Similarity) -> jax.Array:
    """``mean_i [lse_j s e'_i·e_j - s e'_i·e_i]`` f32[] over unit rows; an example that comes twice is no negative."""
    logits = similarity.logits(new, old)
    itself = jnp.eye(new.shape[0], dtype=bool)
    allowed = source.valid[None, :] & ~shared_source(source, source) | itself
    loss = jax.nn.logsumexp(jnp.where(allowed, logits, EXCLUDED), axis=1) - jnp.diagonal(logits)
    return masked_mean(loss, source.valid)


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _length(x: jax.Array, where: jax.Array) -> jax.Array:
    """The root of the mean square of tokens ``where``; a number that nothing is learnt from."""
    square = jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), axis=-1)
    return jnp.sqrt(masked_mean(square, where))
