"""Means, intervals and areas of repeated runs."""

import numpy as np
import pytest

from experiments.common.statistics import area, mean_and_interval, mean_and_sd


def test_the_area_is_the_mean_error_over_the_run():
    assert area([0, 10, 40], [1.0, 0.5, 0.1]) == pytest.approx((10 * 0.75 + 30 * 0.3) / 40)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_and_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3, 0.3))


def test_the_interval_of_many_normal_values_is_that_of_the_textbook():
    values = list(np.random.default_rng(1).normal(0, 1, 400))
    mean, low, high = mean_and_interval(values)
    assert low < mean < high
    assert mean == pytest.approx(np.mean(values))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_mean_and_standard_deviation():
    assert mean_and_sd([1.0, 3.0]) == pytest.approx({"mean": 2.0, "sd": 2**0.5})
    assert mean_and_sd([0.7]) == {"mean": 0.7, "sd": 0.0}
