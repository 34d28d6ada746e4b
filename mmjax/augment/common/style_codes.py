"""Styles of pictures as statistics: each channel's mean and deviation, or the amplitudes of its frequencies."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_EXACT = jax.lax.Precision.HIGHEST
_LEAST_DEVIATION = 1.0  # in gray levels: a flat channel has no contrast to scale
_RIDGE = 1e-5  # on correlations, so that a factor exists where codes lie in a plane


def style_codes(x: jax.Array) -> jax.Array:
    """Mean and logarithm of the standard deviation of each channel: [..., H, W, C] -> f32[..., 2C]."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=(-3, -2), keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=(-3, -2)))
    return jnp.concatenate([mean[..., 0, 0, :], jnp.log(jnp.maximum(deviation, _LEAST_DEVIATION))], axis=-1)


def apply_codes(x: jax.Array, own: jax.Array, new: jax.Array) -> jax.Array:
    """``σ_new (x - μ) / σ + μ_new``: pictures f32[..., H, W, C] of codes ``own`` f32[..., 2C] with codes ``new``."""
    (mean, log_deviation), (new_mean, new_log_deviation) = (
        jnp.split(codes[..., None, None, :], 2, axis=-1) for codes in (own, new)
    )
    # As changes of the picture, so that equal codes leave every bit.
    return x + jnp.expm1(new_log_deviation - log_deviation) * (x - mean) + (new_mean - mean)


def mix_codes(own: jax.Array, other: jax.Array, strength: jax.Array) -> jax.Array:
    """Codes f32[..., 2C] whose means and deviations are ``strength`` of the other's and the rest of the own."""
    (mean, log_deviation), (its_mean, its_log_deviation) = (jnp.split(codes, 2, axis=-1) for codes in (own, other))
    mixed = log_deviation + jnp.log1p(strength * jnp.expm1(its_log_deviation - log_deviation))
    return jnp.concatenate([mean + strength * (its_mean - mean), mixed], axis=-1)


def sample_normal(key: jax.Array, mean: jax.Array, factor: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    """f32[*shape, D]: draws of ``N(mean, factor factorᵀ)``."""
    noise = jax.random.normal(key, (*shape, len(mean)), jnp.float32)
    return mean + jnp.einsum("...j,ij->...i", noise, factor, precision=_EXACT)


def fit_normal(codes: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean f32[D] of the valid codes f32[B, D], and a factor A f32[D, D] of their covariance, ``A Aᵀ = Σ``."""
    weight = valid.astype(jnp.float32)[:, None]
    count = jnp.maximum(jnp.sum(weight), 1.0)
    mean = jnp.sum(weight * codes, axis=0) / count
    deviations = weight * (codes - mean)
    covariance = jnp.einsum("bi,bj->ij", deviations, deviations, precision=_EXACT) / jnp.maximum(count - 1, 1.0)
    scale = jnp.sqrt(jnp.diagonal(covariance))
    safe = jnp.maximum(scale, 1e-6)
    correlations = covariance / (safe[:, None] * safe) + _RIDGE * jnp.eye(len(scale), dtype=jnp.float32)
    return mean, scale[:, None] * jnp.linalg.cholesky(correlations)


def mix_amplitudes(x: jax.Array, other: jax.Array, strength: jax.Array, *, band: float) -> jax.Array:
    """``A' = (1 - a) A + a A_other`` for frequencies in the band, with the phases of ``x``.

    Args:
        x, other: f32[..., H, W, C].
        strength: a, f32[..., 1, 1, 1].
        band: the lowest frequencies in both directions, as a fraction of all.
    """
    height, width = x.shape[-3:-1]
    own, its = (jnp.fft.rfft2(v, axes=(-3, -2)) for v in (x, other))
    amplitude = jnp.abs(own)
    safe = jnp.where(amplitude > 0, amplitude, 1.0)
    cosine, sine = jnp.where(amplitude > 0, own.real / safe, 1.0), own.imag / safe
    inside = (jnp.abs(jnp.fft.fftfreq(height))[:, None] <= band / 2) & (jnp.fft.rfftfreq(width) <= band / 2)
    change = jnp.where(inside[..., None], strength * (jnp.abs(its) - amplitude), 0.0)
    return x + jnp.fft.irfft2(jax.lax.complex(change * cosine, change * sine), s=(height, width), axes=(-3, -2))
