"""The statistics of comparisons against scipy.stats, tables of others, and plain simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmjax.commands.comparing import statistics

T975 = {3: 4.302653, 4: 3.182446, 5: 2.776445, 6: 2.570582, 7: 2.446912, 8: 2.364624}
"""Student's t at 0.975 for n - 1 degrees of freedom, from printed tables."""

VALUES = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))


def test_spread_against_a_worked_example():
    # Ten values with mean 5, sd 3.0277; t(0.975, 9) = 2.26216: half-width 2.26216 * 3.0277 / sqrt(10) = 2.1659.
    got = statistics.mean_interval(np.arange(10) + 0.5)
    assert got.mean == 5 and got.n == 10
    np.testing.assert_allclose(
        [got.sd, got.high - got.mean, got.mean - got.low], [3.02765, 2.16585, 2.16585], rtol=1e-5
    )
    single = statistics.mean_interval([1.0])
    assert single.mean == 1 and all(math.isnan(value) for value in (single.sd, single.low, single.high))


@pytest.mark.parametrize(("n", "quantile"), T975.items())
def test_intervals_of_few_seeds_use_the_exact_quantile(n, quantile):
    values = np.random.default_rng(n).normal(size=n)
    got = statistics.mean_interval(values)
    np.testing.assert_allclose(got.high - got.mean, quantile * values.std(ddof=1) / math.sqrt(n), rtol=1e-6)


@settings(max_examples=60)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=9))
def test_a_paired_difference_is_that_of_scipy(pairs):
    own, baseline = np.array(pairs).T
    got = statistics.paired_difference(own, baseline)
    differences = own - baseline
    assert (got.up, got.down) == (sum(differences > 0), sum(differences < 0))
    if differences.std() < 1e-9:  # scipy has no answer
        assert got.p == float(got.mean == 0) or got.p < 1e-6
        return
    reference = stats.ttest_rel(own, baseline)
    interval = reference.confidence_interval(0.95)
    np.testing.assert_allclose(got.p, reference.pvalue, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose([got.low, got.high], [interval.low, interval.high], rtol=1e-9, atol=1e-9)


def test_differences_without_spread_or_pairs():
    same = statistics.paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.mean, same.sd, same.p, same.up, same.down) == (0, 0, 1, 0, 0)
    assert statistics.paired_difference([2.0, 3.0], [1.0, 2.0]).p == 0
    assert math.isnan(statistics.paired_difference([2.0], [1.0]).p)


def test_welch_is_that_of_scipy():
    g = np.random.default_rng(0)
    for n, m in ((2, 2), (3, 8), (8, 5)):
        a, b = g.normal(1, 1, n), g.normal(0, 3, m)
        got, interval = statistics.welch_difference(a, b), stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        np.testing.assert_allclose([got.low, got.high], [interval.low, interval.high], rtol=1e-9)
        assert got.n == n + m
    assert statistics.welch_difference([2.0, 2.0], [1.0, 1.0])[1:] == (1, 0, 1, 1)
    assert math.isnan(statistics.welch_difference([2.0], [1.0, 3.0]).low)


def test_holm_against_a_worked_example_and_its_definition():
    # 0.01·4, then 0.02·3 = 0.06, then 0.03·2 = 0.06, then 0.04·1 is raised to the one before it.
    np.testing.assert_allclose(statistics.holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([]) == [] and statistics.holm([0.7, 0.9]) == [1, 1]
    with_gap = statistics.holm([0.02, math.nan, 0.01])
    np.testing.assert_allclose(with_gap, [0.02, math.nan, 0.02])


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    rejected, order = set(), np.argsort(p, kind="stable")
    for rank, place in enumerate(order):
        if not p[place] < 0.05 / (len(p) - rank):
            break
        rejected.add(int(place))
    assert {i for i, value in enumerate(statistics.holm(p)) if value < 0.05} == rejected


def test_the_number_of_seeds_against_published_values():
    # G*Power 3.1, two-sided paired t test, alpha 0.05, power 0.8: d = 0.2, 0.5, 0.8, 1 need 199, 34, 15, 10 pairs.
    assert [statistics.seeds_needed(d, 1) for d in (0.2, 0.5, -0.8, 1)] == [199, 34, 15, 10]
    assert statistics.seeds_needed(10, 20) == 34 and statistics.seeds_needed(1, 0) == 2
    for difference, sd in ((0, 1), (1e-4, 1), (1, math.nan), (math.nan, 1)):
        assert statistics.seeds_needed(difference, sd) is None


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 20])
def test_the_detectable_difference_is_found_with_that_power(n):
    sd = 2.5
    d = statistics.detectable(sd, n)
    samples = np.random.default_rng(n).normal(d, sd, (100_000, n))
    found = np.abs(samples.mean(1)) / (samples.std(1, ddof=1) / math.sqrt(n)) > stats.t.ppf(0.975, n - 1)
    assert abs(found.mean() - 0.8) < 5 * math.sqrt(0.16 / 100_000)
    if n > 2:  # scipy's noncentral t has no value there
        shift, limit = d / sd * math.sqrt(n), stats.t.ppf(0.975, n - 1)
        assert abs(stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift) - 0.8) < 1e-6
    assert statistics.seeds_needed(1.001 * d, sd) <= n < statistics.seeds_needed(0.98 * d, sd)
    assert math.isnan(statistics.detectable(sd, 1))


def test_the_range_of_seeds_is_that_of_the_spreads_interval():
    low, high = statistics.seeds_needed_range(1.0, 1.0, 8)
    ends = 1.0 * np.sqrt(7 / stats.chi2.ppf([0.975, 0.025], 7))
    assert (low, high) == tuple(statistics.seeds_needed(1.0, end) for end in ends)
    assert low < statistics.seeds_needed(1.0, 1.0) < high
    assert statistics.seeds_needed_range(1.0, math.nan, 1) == (None, None)
