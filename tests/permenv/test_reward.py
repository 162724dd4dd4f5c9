"""The reward: Eq. 7 and appendix E."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from permenv.reward import extrapolate, reward

errors = st.floats(0, 1)


@given(errors, errors, st.integers(0, 10**6), st.integers(1, 10**4))
def test_equal_spacing_is_equation_7(before, now, iteration, spacing):
    history = [(iteration, before), (iteration + spacing, now)]
    assert extrapolate(history, iteration + 2 * spacing) == pytest.approx(2 * now - before)


@given(errors, errors, st.integers(1, 10**4), st.integers(1, 10**4))
def test_unequal_spacing_is_the_straight_line(before, now, first_gap, second_gap):
    history = [(5, before), (5 + first_gap, now)]
    line = np.polynomial.Polynomial.fit([5, 5 + first_gap], [before, now], 1)
    expected = line(5 + first_gap + second_gap)
    assert extrapolate(history, 5 + first_gap + second_gap) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_error_extrapolates_flat():
    assert extrapolate([(0, 0.8)], 50) == 0.8


def test_two_errors_at_one_iteration_extrapolate_flat():
    assert extrapolate([(0, 0.9), (100, 0.8), (100, 0.7)], 150) == 0.7


def test_only_the_last_two_errors_count():
    assert extrapolate([(0, 0.1), (10, 0.9), (20, 0.8)], 30) == pytest.approx(0.7)


def test_no_error_yet():
    with pytest.raises(ValueError, match="validate once"):
        extrapolate([], 0)


def test_the_reward_is_the_gain_over_the_baseline():
    assert reward(0.7, 0.65) == pytest.approx(0.05)
    assert reward(0.7, 0.75) == pytest.approx(-0.05)
