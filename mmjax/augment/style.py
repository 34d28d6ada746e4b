"""Random styles for a part of the pictures: colors and textures change, shapes and captions stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import schedules, style_codes
from mmjax.augment.common.batch_change import PixelChange, change_leading_rows, parse_ratio
from mmjax.augment.common.schedules import Fraction, Strength
from mmjax.augment.common.style_network import LoadedStyleNetwork, StyleNetwork
from mmjax.core.config import Between, ConfigError, Gt
from mmjax.core.types import Metrics

Form = Literal["statistics", "mixstyle", "fourier", "network"]
Draw = Literal["fixed", "uniform", "beta"]

_MIXSTYLE_ALPHA = 0.1  # of the Beta distribution in both papers' code


class Augmentation(PixelChange):
    """Style randomization (Jackson et al. 2019, arXiv:1809.05375), inside the compiled step.

    A picture c with the style P(c) is drawn again in the style z::

        z = α N(μ, Σ) + (1 - α) P(c)

    In the form ``statistics`` a style is ``P(c) = (mean, log σ)`` of each channel, N(μ, Σ) is fitted to the styles of
    the batch at hand, and the new picture is ``σ_z (x - mean) / σ + mean_z``. It has no weights and costs next to
    nothing. Two other forms take the style of another picture c'::

        mixstyle:  (mean, σ)_z = α (mean, σ)(c') + (1 - α) (mean, σ)(c)     Zhou et al. 2021, arXiv:2104.02008
        fourier:   A_z = α A(c') + (1 - α) A(c), with c's phases           Xu et al. 2021, arXiv:2105.14488

    where A are the amplitudes of all frequencies, or with a small ``band`` of the low ones (Yang & Soatto 2020,
    arXiv:2004.05498). These papers mix with ``1 - α ~ Beta(0.1, 0.1)`` or uniformly: ``draw``. The form ``network`` is
    the first paper's own: a trained network draws the picture in a style of 100 numbers (Ghiasi et al. 2017,
    arXiv:1705.06830), N(μ, Σ) is that of paintings, and P(c) the mean of ImageNet or predicted; see
    ``mmjax.augment.common.style_network``. At α = 0 it gives the picture as it draws it, not as it was.

    A fixed part of the rows is changed: the first of each group of neighbors (``ratio``), since rows come shuffled.
    The partner c' is the next row of the group. Pictures stay in 0 to 255 and are rounded.

    Args:
        alpha: α, or what bounds it.
        ratio: unchanged to changed rows, as the paper counts, ``16:1`` to ``1:32``; ``0:1`` changes all.
        form: what a style is.
        draw: α for each changed row: ``fixed``, ``uniform`` in [0, alpha], or alpha times Beta(0.1, 0.1).
        spread: the factor on N's deviation from its mean, in the form ``statistics``.
        network: its weights and use, as a section.
        band: the fraction of low frequencies that the form ``fourier`` mixes; 1 mixes all of them.
        modalities: which pictures are changed.
    """

    def __init__(
        self,
        *,
        alpha: Fraction = 0.5,
        ratio: str = "1:1",
        form: Form = "statistics",
        draw: Draw = "fixed",
        spread: Strength = 1.0,
        band: Annotated[float, Gt(0), Between(0, 1)] = 1.0,
        network: StyleNetwork | None = None,
        modalities: tuple[str, ...] = ("image",),
    ):
        self.fraction = parse_ratio(ratio, path="augment.style.ratio")
        self.alpha, self.form, self.draw, self.spread, self.band = alpha, form, draw, spread, band
        self.modalities = tuple(modalities)
        if (form == "network") != (network is not None):
            raise ConfigError(
                f"augment.style.form={form!r}: form='network' and network={{'weights': FOLDER}} need each other; set "
                "both or none"
            )
        self.network = None if network is None else LoadedStyleNetwork(network)

    def change_pixels(
        self, images: Mapping[str, jax.Array], *, valid: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """The pictures, the first rows of each group in other styles."""
        images, metrics = dict(images), Metrics()
        for i, name in enumerate(self.modalities):
            if name not in images:
                raise ConfigError(f"augment.style.modalities={self.modalities}: the data has {', '.join(images)}")
            old = images[name]
            images[name] = self.restyle(old, valid=valid, key=jax.random.fold_in(key, i), step=step)
            change = jnp.abs(images[name].astype(jnp.float32) - old.astype(jnp.float32))
            metrics[f"{name}_change"] = jnp.mean(change)
        return images, metrics | {"alpha": schedules.value_at(self.alpha, step)}

    def restyle(self, x: jax.Array, *, valid: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
        """One modality u8[B, H, W, C] with its leading rows in other styles, on the scale of 0 to 255."""
        strength_key, noise_key = jax.random.split(key)
        alpha, spread = (schedules.value_at(strength, step) for strength in (self.alpha, self.spread))
        codes = style_codes.style_codes(x) if self.form in ("statistics", "mixstyle") else None

        def change(groups: jax.Array, count: int) -> jax.Array:
            rows = groups[:, :count].astype(jnp.float32)
            shape = rows.shape[:2]
            strength = draw_strength(strength_key, alpha, shape=shape, draw=self.draw)[..., None]
            if codes is not None:
                by_group = codes.reshape(*groups.shape[:2], -1)
                own = by_group[:, :count]
                if self.form == "mixstyle":
                    mixed = style_codes.mix_codes(own, _next_rows(by_group, count), strength)
                else:
                    mean, factor = style_codes.fit_normal(codes, valid)
                    target = style_codes.sample_normal(noise_key, mean, spread * factor, shape=shape)
                    mixed = own + strength * (target - own)
                new = style_codes.apply_codes(rows, own, mixed)
            elif self.network is None:
                other = _next_rows(groups, count).astype(jnp.float32)
                new = style_codes.mix_amplitudes(rows, other, strength[..., None, None], band=self.band)
            else:
                flat = rows.reshape(-1, *rows.shape[2:])
                new = self.network(flat, strength.reshape(-1, 1), noise_key).reshape(rows.shape)
            return jnp.round(jnp.clip(new, 0, 255)).astype(x.dtype)

        return change_leading_rows(x, self.fraction, change, path="augment.style.ratio")


def _next_rows(groups: jax.Array, count: int) -> jax.Array:
    """The partner of each of the first ``count`` rows of a group: the next row."""
    return jnp.roll(groups, -1, axis=1)[:, :count]


def draw_strength(key: jax.Array, alpha: jax.Array, *, shape: tuple[int, ...], draw: Draw) -> jax.Array:
    """f32[shape]: α of each changed row."""
    if draw == "uniform":
        return alpha * jax.random.uniform(key, shape)
    if draw == "beta":
        return alpha * jax.random.beta(key, _MIXSTYLE_ALPHA, _MIXSTYLE_ALPHA, shape, jnp.float32)
    return jnp.full(shape, alpha)
