"""Paired comparisons of a few runs: intervals, tests, Holm's correction, and how many seeds a difference needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 10_000  # of an answer; a difference that needs more is none that anybody will look for

NAN = math.nan
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


class Interval(NamedTuple):
    """Mean and standard deviation of n values, and the mean's 95 % confidence interval by Student's t."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


class Difference(NamedTuple):
    """Values minus those of a baseline, in pairs: their interval, a two-sided p of the paired t test, and the signs."""

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    up: int
    down: int


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean, spread and interval; NaN for what one value cannot say."""
    array = np.asarray(values, np.float64)
    n, mean = len(array), float(np.mean(array))
    if n < 2:
        return Interval(n, mean, NAN, NAN, NAN)
    sd = float(np.std(array, ddof=1))
    half = _quantile(n - 1) * sd / math.sqrt(n)
    return Interval(n, mean, sd, mean - half, mean + half)


def paired_difference(values: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray) -> Difference:
    """``values - baseline``, pair by pair."""
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    interval = mean_interval(differences)
    return Difference(
        *interval,
        p=_two_sided_p(interval.mean, interval.sd / math.sqrt(interval.n), interval.n - 1),
        up=int(np.sum(differences > 0)),
        down=int(np.sum(differences < 0)),
    )


def welch_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The difference of two means of values that are not paired, with Welch's interval; ``n`` counts both.

    Welch 1947 (Biometrika 34): standard error and degrees of freedom of unequal variances.
    """
    a, b = (mean_interval(v) for v in (values, baseline))
    mean = a.mean - b.mean
    if min(a.n, b.n) < 2:
        return Interval(a.n + b.n, mean, NAN, NAN, NAN)
    squares = a.sd**2 / a.n, b.sd**2 / b.n
    error = math.sqrt(sum(squares))
    if not error:
        return Interval(a.n + b.n, mean, 0.0, mean, mean)
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / (a.n - 1) + squares[1] ** 2 / (b.n - 1))
    half = _quantile(freedom) * error
    return Interval(a.n + b.n, mean, error, mean - half, mean + half)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, so that with probability 95 % none below 0.05 is a chance finding.

    Holm 1979 (Scandinavian Journal of Statistics 6): the i-th smallest of m is multiplied by m - i + 1, and is no
    smaller than the ones before it. NaN counts for nothing.
    """
    corrected, largest = [NAN] * len(p), 0.0
    known = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def seeds_needed(difference: float, sd: float) -> int | None:
    """The fewest pairs with which a paired t test finds ``difference`` with power 0.8.

    Args:
        difference: The true mean of the differences.
        sd: Their standard deviation.

    Returns:
        At least 2; None if it is more than ``MOST_SEEDS``, or there is nothing to go by.
    """
    if not (sd >= 0 and math.isfinite(sd)) or not difference or math.isnan(difference):
        return None
    effect = abs(difference) / sd if sd else math.inf
    low, high = 1, MOST_SEEDS  # power grows with n: of ``high`` it is enough, of ``low`` it is not
    if _power(effect, high) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle) >= POWER else (middle, high)
    return high


def seeds_needed_range(difference: float, sd: float, n: int) -> tuple[int | None, int | None]:
    """``seeds_needed`` at both ends of the 95 % interval of ``sd``, an estimate from n differences (chi-squared)."""
    if n < 2 or math.isnan(sd):
        return None, None
    low, high = (sd * math.sqrt((n - 1) / special.chdtri(n - 1, tail)) for tail in (0.025, 0.975))
    return seeds_needed(difference, low), seeds_needed(difference, high)


def detectable(sd: float, n: int) -> float:
    """The smallest mean difference that n pairs find with power 0.8."""
    if n < 2 or math.isnan(sd):
        return NAN
    low, high = 0.0, 1.0
    while _power(high, n) < POWER:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, n) >= POWER else (middle, high)
    return high * sd


def _power(effect: float, n: int) -> float:
    """Of the two-sided paired t test of n pairs, where the mean is ``effect`` standard deviations.

    That is the tail of the noncentral t distribution: the mean of Φ(√n·effect - t·s) + Φ(-√n·effect - t·s) over s, the
    estimated spread of a standard deviation of 1. It is integrated here, because ``scipy.special.nctdtr`` gives NaN for
    one degree of freedom, and for thousands.
    """
    if n < 2:
        return 0.0
    if math.isinf(effect):
        return 1.0
    freedom, shift, limit = n - 1, effect * math.sqrt(n), _quantile(n - 1)
    low, high = (math.sqrt(special.chdtri(freedom, tail) / freedom) for tail in (1 - 1e-14, 1e-14))
    s = low + (high - low) * (_NODES + 1) / 2
    log_density = (freedom - 1) * np.log(s) - freedom * s**2 / 2
    weights = _WEIGHTS * np.exp(log_density - log_density.max())
    power = special.ndtr(shift - limit * s) + special.ndtr(-shift - limit * s)
    return float(np.sum(weights * power) / np.sum(weights))


def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _two_sided_p(mean: float, error: float, freedom: int) -> float:
    if math.isnan(error):
        return NAN
    if not error:
        return float(mean == 0)
    return float(2 * special.stdtr(freedom, -abs(mean) / error))
