"""TMMDA: tokens of other modalities mixed in, refined by a generator, and attended to by the tower's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Similarity, Tap, Terms, TowerInfo, View
from mmjax.augment.common.divergences import jensen_shannon
from mmjax.augment.common.gan import Discriminator, GanLoss, Generator, gan_losses
from mmjax.augment.common.layers import apply_linear
from mmjax.augment.common.mixing import flipped, shared_source
from mmjax.augment.common.schedules import Fraction, Strength
from mmjax.augment.common.token_mixing import (
    CrossAttention,
    Modality,
    Side,
    align_by_position,
    mix_tokens,
    normalize_tokens,
    shares_example_with_partner,
    split_modalities,
)
from mmjax.core.config import Between, ConfigError, Ge, Gt
from mmjax.core.numerics import EXCLUDED, masked_mean
from mmjax.core.types import Metrics, Provenance


class Augmentation(base.Base):
    """Mixes tokens of other modalities into a sequence and attends to the result: TMMDA, for dual encoders.

    Token mixup data augmentation (Zhao et al. 2023, doi:10.1145/3543507.3583406). The modalities are
    language and each modality of images. ``x_k`` are the tokens at the tap, ``t_k`` the same at mean 0 and variance 1
    with stopped gradient. The others' ``t_m`` are brought to the width of ``t_k`` and to its length (the nearest
    relative position among words or patches). With ``u ~ U(0, 1)`` for each position, and ``ε ~ N(0, I)``::

        mix_k = t_(k+1) if u > 1 - first, t_(k+2) if u < second, …, else t_k
        x̃_k = G_k(mix_k + noise · ε)
        loss = adversarial · GAN(D_k; t_k, x̃_k) + jsd · JS(softmax t_k ‖ softmax x̃_k)   means over k and positions
        x'_k = x_k + σ(x_k) · attention_k((x_k - mean x_k) / σ(x_k) as queries, x̃_k as keys and values)

    and x' runs through the rest of the towers. The factor σ(x_k) of the attention has a stopped gradient: the spread of
    a tower's tokens is not trained to scale what is added to them. The others of k are in cyclic order, and each
    further one has the interval of ``second`` after the one before it; with one modality of images there is ``first``
    alone. Only words and patches are replaced, never the first or the end token, padding or a class token. One u is
    drawn for all modalities, for the longest; shorter ones use its beginning. G and D (Goodfellow et al. 2014,
    arXiv:1406.2661; see ``common.gan``) work token by token and do not train the towers; D sees words and patches only.
    Modalities of images share one tower, and so its G, D and attention. A linear map changes the width between language
    and images; between images there is none. Evaluation uses the plain towers.

    Where the other tokens come from decides what x' may be used for. ``foreign="own"``, the paper's: from the same
    pair. A text with parts of its own image gives the pair's answer away, so its embedding e' is only compared with
    clean ones e, which have a stopped gradient as has the scale s: it should be told from other examples of its own
    modality, and be as similar to the other side m as the clean one::

        contrast · mean CE(softmax_j s e'_ki·e_kj, i)
        + cross_similarity · mean JS(softmax_j s e'_ki·e_mj ‖ softmax_j s e_ki·e_mj)

    ``foreign="other"``: from another pair, row N - 1 - i (and none if it shows the same example). Then x' is one more
    term of the run's objective, labeled as its own pair alone. A label by the fraction of foreign tokens can be met
    on noise, by recognizing the partner's clean tokens in the batch; so can any label if the same positions are
    replaced in an image and in its text, so each side then draws its own u.

    The released code differs: it computes both losses and returns neither, adds the noise behind G, mixes no language
    into sound, counts padding, takes logarithms of zero, and mixes at random when it evaluates. It has one modality
    for each encoder, aligned word by word, takes features as they are instead of normalized, and has no loss weights;
    those here are ours.

    Args:
        weight: the factor on all terms.
        tap: where tokens are mixed.
        sides: whose sequences are augmented.
        foreign: tokens of the ``own`` pair or of an ``other`` one.
        first: the probability of a token of the first other modality.
        second: that of each further modality.
        adversarial: the factor on the losses of G and D.
        adversary: how G is trained: by D's reversed loss or by one of its own.
        jsd: the factor on the divergence of G's tokens.
        noise: the standard deviation of G's input noise.
        dropout: the drop rate in G and D.
        heads: of the attention.
        contrast: the factor on the contrast within a modality, for ``foreign="own"``.
        cross_similarity: the factor on the change of similarities to the other side, for ``foreign="own"``.
        learning_rate: of the networks' Adam.
        clip_norm: the limit of the norm of their gradient.
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
        first: Fraction = 0.15,
        second: Fraction = 0.15,
        adversarial: Strength = 0.1,
        adversary: GanLoss = "minimax",
        jsd: Strength = 0.1,
        noise: Strength = 0.1,
        dropout: Annotated[float, Between(0, 0.99)] = 0.1,
        heads: Annotated[int, Ge(1)] = 8,
        contrast: Strength = 0.1,
        cross_similarity: Strength = 1.0,
        learning_rate: Strength = 1e-4,
        clip_norm: Annotated[float, Gt(0)] = 1.0,
    ):
        super().__init__(weight=weight)
        towers.check_tap(tap, kinds=("tokens",), path="augment.tmmda.tap")
        self.tap, self.foreign, self.adversary, self.dropout = tap, foreign, adversary, dropout
        self.first, self.second, self.noise = first, second, noise
        self.adversarial, self.jsd = adversarial, jsd
        self.contrast, self.cross_similarity = contrast, cross_similarity
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        image, text = towers.widths(tap)
        self.text = Enhancer(text, foreign=image, heads=heads, rngs=rngs) if sides != "image" else None
        self.image = Enhancer(image, foreign=text, heads=heads, rngs=rngs) if sides != "text" else None

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view: first captions and all images, those of the chosen sides enhanced."""
        modalities = split_modalities(clean)
        self._check_probabilities(others=len(modalities) - 1)
        keys = jax.random.split(key, 3)
        longest = max(m.content.shape[1] for m in modalities)
        enhanced: dict[Side, jax.Array] = {}
        terms: Terms = {}
        metrics: Metrics = {}
        chosen = [m.side for m in modalities if self._enhancer(m.side) is not None]
        for side, side_key in zip(dict.fromkeys(chosen), keys[1:], strict=False):
            # With another pair's tokens, equal positions in an image and its text would tell that they belong together.
            u_key = keys[0] if self.foreign == "own" else jax.random.fold_in(side_key, 0)
            u = jax.random.uniform(u_key, (clean.examples, longest))
            enhanced[side], losses, measured = self._enhance(side, modalities, u, side_key, step)
            for name, value in losses.items():
                terms[name] = terms.get(name, jnp.float32(0)) + value * chosen.count(side) / len(chosen)
            metrics |= {f"{side}_{name}": value for name, value in measured.items()}
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
        """With tokens of the own pair: contrast of enhanced with clean rows, and how their similarities changed."""
        if self.foreign == "other":
            return {}, {}
        (view,), n = views, clean.examples
        clean, pairs, similarity = jax.lax.stop_gradient((clean, clean.pairs(), similarity))
        compared = []  # new and old rows, their sources, and the rows of the other side with their validity
        if self.text is not None:
            source = jax.tree.map(lambda x: x[:n], pairs.text_source)
            compared.append((view.text, pairs.text[:n], source, clean.image, clean.image_source.valid))
        if self.image is not None:
            for i in range(0, clean.image.shape[0], n):
                source = jax.tree.map(lambda x, i=i: x[i : i + n], clean.image_source)
                rows = view.image[i : i + n], clean.image[i : i + n]
                compared.append((*rows, source, clean.text, clean.text_source.valid))
        contrasts, changes = [], []
        for new, old, source, across, across_valid in compared:
            contrasts.append(own_contrast(new, old, source=source, similarity=similarity))
            logits = [similarity.logits(rows, across) for rows in (old, new)]
            change = jensen_shannon(*logits, where=across_valid[None, :])
            changes.append(masked_mean(change, source.valid))
        contrast, change = jnp.mean(jnp.stack(contrasts)), jnp.mean(jnp.stack(changes))
        terms = {
            "contrast": schedules.value_at(self.contrast, step) * contrast,
            "cross_similarity": schedules.value_at(self.cross_similarity, step) * change,
        }
        return terms, {"own_contrast": contrast, "cross_similarity_divergence": change}

    def _enhancer(self, side: Side) -> Enhancer | None:
        return self.text if side == "text" else self.image

    def _enhance(
        self, side: Side, modalities: Sequence[Modality], u: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Terms, Metrics]:
        """The enhanced sequences of one tower, the losses of its networks, and metrics."""
        networks = self._enhancer(side)
        assert networks is not None
        probabilities = schedules.value_at(self.first, step), schedules.value_at(self.second, step)
        own = [k for k, modality in enumerate(modalities) if modality.side == side]
        mixes = []
        for k in own:
            normalized, content = modalities[k].normalized, modalities[k].content
            others = [self._lend_tokens(m, modalities[k], networks) for m in (*modalities[k + 1 :], *modalities[:k])]
            mixes.append(
                mix_tokens(normalized, others, u[:, : content.shape[1]], probabilities=probabilities, content=content)
            )
        tokens, normalized, valid, content = (
            _concatenate([getattr(modalities[k], name) for k in own])
            for name in ("tokens", "normalized", "valid", "content")
        )
        mixed, origin = (_concatenate(arrays) for arrays in zip(*mixes, strict=True))
        keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        noise = schedules.value_at(self.noise, step) * jax.random.normal(keys[0], mixed.shape, jnp.float32)
        fake = networks.generator(mixed + noise.astype(mixed.dtype), keys[1], dropout=self.dropout)
        losses, metrics = gan_losses(
            networks.discriminator,
            normalized,
            fake,
            where=content,
            gan_loss=self.adversary,
            key=keys[2],
            dropout=self.dropout,
        )
        divergence = masked_mean(jensen_shannon(normalized, fake), content)
        factor = schedules.value_at(self.adversarial, step)
        terms = {name: factor * value for name, value in losses.items()}
        terms["jsd"] = schedules.value_at(self.jsd, step) * divergence

        queries, deviation = normalize_tokens(tokens)
        added = networks.attention(queries, fake, valid=valid).astype(jnp.float32)
        enhanced = tokens.astype(jnp.float32) + jax.lax.stop_gradient(deviation) * added
        enhanced = jnp.where(valid[..., None], enhanced.astype(tokens.dtype), tokens)
        metrics |= {
            "divergence": divergence,
            "mixed_fraction": masked_mean(origin > 0, content),
            "fake_length": _rms(fake, content) / jnp.maximum(_rms(normalized, content), 1e-6),
            "added_length": _rms(added, valid) / jnp.maximum(_rms(normalized, valid), 1e-6),
        }
        return enhanced, terms, metrics

    def _lend_tokens(self, other: Modality, onto: Modality, networks: Enhancer) -> tuple[jax.Array, jax.Array]:
        """Another modality's token for each position of ``onto``, and where there is one."""
        tokens, content = other.normalized, other.content
        if other.side != onto.side:
            tokens = apply_linear(networks.projection, tokens)
        if self.foreign == "other":
            # A partner that shows the same example would lend this pair's own tokens.
            differs = ~shares_example_with_partner(onto.source) & ~shares_example_with_partner(other.source)
            tokens, content = flipped(tokens), flipped(content) & differs[:, None]
        return align_by_position(tokens, content, onto=onto.content)

    def _check_probabilities(self, *, others: int) -> None:
        first, second = schedules.largest_value(self.first), schedules.largest_value(self.second)
        total = first + second * (others - 1)
        if total > 1:
            raise ConfigError(
                f"augment.tmmda.second={second}: with first={first} and {others} other modalities {total:g} of all "
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
    """``mean_i [lse_j s e'_i·e_j - s e'_i·e_i]`` f32[] over unit rows; a repeated example is not a negative."""
    logits = similarity.logits(new, old)
    itself = jnp.eye(new.shape[0], dtype=bool)
    allowed = source.valid[None, :] & ~shared_source(source, source) | itself
    loss = jax.nn.logsumexp(jnp.where(allowed, logits, EXCLUDED), axis=1) - jnp.diagonal(logits)
    return masked_mean(loss, source.valid)


def _concatenate(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)


def _rms(x: jax.Array, where: jax.Array) -> jax.Array:
    """The root mean square of tokens ``where``, without gradient."""
    square = jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), axis=-1)
    return jnp.sqrt(masked_mean(square, where))
