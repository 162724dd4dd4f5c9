"""Means and their intervals of repeated runs."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.reports.statistics import (
    Estimate,
    estimate,
    holm,
    mean_and_sd,
    mean_of,
    p_of_mean,
    ratio_of_means,
)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_of([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3, 0.3))


def test_the_interval_of_many_normal_values_is_that_of_the_textbook():
    values = list(np.random.default_rng(1).normal(0, 1, 400))
    mean, low, high = mean_of(values)
    assert low < mean < high
    assert mean == pytest.approx(np.mean(values))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_of_few_values_is_students(count):
    values = np.random.default_rng(count).normal(3, 2, count)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_of(values) == pytest.approx((values.mean(), *expected))


def test_a_single_value_has_no_interval():
    found = mean_of([0.5])
    assert found == (0.5, -math.inf, math.inf)
    assert f"{found:.0%}" == "50%"
    assert found.as_columns("error") == {"error": 0.5, "error_low": None, "error_high": None}


def test_runs_are_resampled_in_pairs():
    """The differences of paired values are all alike, whatever the values are."""
    first = np.random.default_rng(0).random(10)
    second = first + 0.25
    found = estimate(lambda runs: second[runs].mean(axis=1) - first[runs].mean(axis=1), 10)
    assert found == pytest.approx((0.25, 0.25, 0.25))


def pairs_of(seeds, rng, *, mean=0.1):
    """Return paired accuracies of as many seeds; those of ours have one and a half times the mean of theirs."""
    hard = rng.normal(0, 0.02, seeds)
    return 1.5 * mean + hard + rng.normal(0, 0.01, seeds), mean + hard + rng.normal(0, 0.01, seeds)


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_a_ratio_is_in_the_interval_if_the_t_test_allows_it(seeds):
    ours, theirs = pairs_of(seeds, np.random.default_rng(3), mean=0.5)
    value, low, high = ratio_of_means(ours, theirs)
    assert value == pytest.approx(ours.mean() / theirs.mean())
    ratios = np.linspace(-1, 4, 5001)
    allowed = [ratio for ratio in ratios if scipy.stats.ttest_1samp(ours - ratio * theirs, 0).pvalue > 0.05]
    assert (low, high) == pytest.approx((min(allowed), max(allowed)), abs=0.002)


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_interval_of_ratios_has_the_true_one_in_95_percent(seeds):
    rng = np.random.default_rng(0)
    found = [ratio_of_means(*pairs_of(seeds, rng)) for _ in range(2000)]
    assert np.mean([low <= 1.5 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.015)


def test_the_interval_of_a_ratio_has_no_end_where_the_divisor_may_be_0():
    ours, theirs = np.array([0.2, 0.3, 0.1]), np.array([0.1, -0.05, 0.02])
    assert ratio_of_means(ours, theirs) == (ours.mean() / theirs.mean(), -math.inf, math.inf)
    assert ratio_of_means(ours[:1], theirs[:1]) == (ours[0] / theirs[0], -math.inf, math.inf)


def test_runs_that_are_compared_with_themselves_have_the_ratio_1():
    values = 1 + np.random.default_rng(0).random(5)
    assert ratio_of_means(values, values) == pytest.approx((1, 1, 1))


def test_an_infinite_end_of_an_interval_stays_infinite():
    values = np.array([1.0, 1.0, 1.0, math.inf])
    found = estimate(lambda runs: values[runs].max(axis=1), 4)
    assert found == (math.inf, 1, math.inf)


@pytest.mark.parametrize("unknown", [1, 10])
def test_resamples_that_are_no_number_widen_the_interval(unknown):
    values = np.array([math.nan] * unknown + [0.5] * (10 - unknown))
    _, low, high = estimate(lambda runs: values[runs[:, 0]], 10)
    assert (low, high) == (-math.inf, math.inf)


def test_an_estimate_is_shown_with_its_interval():
    assert f"{Estimate(0.5, 0.25, 0.75):.0%}" == "50% [25%, 75%]"
    assert f"{Estimate(1.0, 1.0, 1.0):.0%}" == "100%"
    assert f"{Estimate(0.5, 0.25, math.inf):.0%}" == "50% [25%, ∞]"
    assert f"{Estimate(0.5, -math.inf, 0.75):.0%}" == "50% [-∞, 75%]"
    assert f"{Estimate(math.inf, 0.25, math.inf):.0%}" == "not reached"


@pytest.mark.parametrize("found", [(0.5, 0.25, math.inf), (0.5, -math.inf, 0.75), (0.5, -math.inf, math.inf)])
def test_an_estimate_is_read_from_its_columns(found):
    assert Estimate.of_columns(Estimate(*found).as_columns("error"), "error") == found


def test_a_value_that_was_not_reached_is_read_as_one():
    for value in (math.inf, -math.inf, math.nan):
        columns = Estimate(value, -math.inf, math.inf).as_columns("needs")
        assert f"{Estimate.of_columns(columns, 'needs'):.0%}" == "not reached"


def test_the_columns_of_an_estimate_are_valid_json():
    columns = Estimate(0.5, 0.25, math.inf).as_columns("needs")
    assert columns == {"needs": 0.5, "needs_low": 0.25, "needs_high": None}
    json.dumps(columns, allow_nan=False)


def test_mean_and_standard_deviation():
    assert mean_and_sd([1.0, 3.0]) == pytest.approx({"mean": 2.0, "sd": 2**0.5})
    assert mean_and_sd([0.7]) == {"mean": 0.7, "sd": 0.0}


def test_the_p_value_is_that_of_scipy():
    values = [0.3, -0.1, 0.4, 0.2]
    assert p_of_mean(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    assert math.isnan(p_of_mean([math.nan]))
    assert (p_of_mean([0.3]), p_of_mean([0.0, 0.0]), p_of_mean([0.3, 0.3])) == (1, 1, 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.999))
def test_holm_rejects_what_its_steps_reject(p_values, level):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - step) * p_values[index] > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected
