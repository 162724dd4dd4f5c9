"""What a policy gains over random permutations, by hand and against a slow reference."""

import math

import numpy as np
import pytest

from experiments.common.reports.effect import (
    Curves,
    accuracy_ratio,
    first_crossing,
    iterations_needed,
    iterations_saved,
)

ITERATIONS = np.array([0, 10, 20, 40])


def curves(*errors) -> Curves:
    return Curves(ITERATIONS, np.array(errors, dtype=float))


RANDOM = curves([1, 0.9, 0.8, 0.6], [1, 1.0, 0.9, 0.8])


def test_accuracy_is_compared_at_equal_iterations():
    policy = curves([1, 0.8, 0.6, 0.4], [1, 0.9, 0.7, 0.6])
    assert accuracy_ratio(policy, RANDOM, 1.0).value == pytest.approx(1.0 / 0.6)  # (0.6 + 0.4) / (0.4 + 0.2)
    assert accuracy_ratio(policy, RANDOM, 0.5).value == pytest.approx(0.7 / 0.3)  # at iteration 20
    assert accuracy_ratio(policy, RANDOM, 0.75).value == pytest.approx(0.85 / 0.45)  # halfway from 20 to 40


def test_runs_that_are_compared_from_the_middle_on_begin_at_progress_0():
    late = Curves(ITERATIONS + 1000, RANDOM.errors)
    np.testing.assert_array_equal(late.progress, RANDOM.progress)
    assert accuracy_ratio(late, RANDOM, 0.7).value == pytest.approx(1)


def test_a_policy_against_itself_gains_nothing():
    assert accuracy_ratio(RANDOM, RANDOM, 0.5).value == 1
    assert iterations_needed(RANDOM, RANDOM) == pytest.approx((1, 1, 1))


def test_a_policy_needs_all_iterations_to_reach_its_own_end():
    """The means of resampled runs are rounded; they must be so alike."""
    errors = np.linspace(1, 0.8, 4) + np.random.default_rng(0).random((10, 4)) * np.linspace(0, 1e-3, 4)
    assert iterations_needed(curves(*errors), curves(*errors)).high == 1


def test_iterations_needed_are_those_of_the_mean_curve():
    policy = curves([1, 0.8, 0.6, 0.4], [1, 0.9, 0.7, 0.6])  # mean 1, 0.85, 0.65, 0.5; random ends at 0.7
    assert iterations_needed(policy, RANDOM).value == pytest.approx((10 + 10 * 0.15 / 0.2) / 40)


def test_an_error_that_is_never_reached_needs_infinitely_many_iterations():
    worse = curves([1, 1, 1, 0.9], [1, 1, 1, 0.9])
    assert iterations_needed(worse, RANDOM).value == math.inf


def slow_share(policy, random, seeds):
    """The share of the iterations at which the mean curve of some runs is at random's end, on a fine grid."""
    grid = np.linspace(0, 40, 4001)
    mean = np.interp(grid, ITERATIONS, policy.errors[seeds].mean(axis=0))
    below = np.flatnonzero(mean <= random.errors[seeds, -1].mean() + 1e-12)
    return grid[below[0]] / 40 if len(below) else math.inf


@pytest.mark.parametrize("gain", [0.1, 0.0])
def test_the_intervals_of_iterations_contain_what_pairs_of_seeds_give(gain):
    """Without a gain, many of the resampled policies never reach the error."""
    rng = np.random.default_rng(0)
    random = Curves(ITERATIONS, 1 - np.sort(rng.random((12, 4)), axis=1))
    policy, other = (Curves(ITERATIONS, random.errors - gain + 0.1 * rng.normal(size=(12, 4))) for _ in range(2))
    needed, saved = [], []
    for _ in range(1000):
        seeds = rng.integers(12, size=12)
        shares = [slow_share(each, random, seeds) for each in (policy, other)]
        needed.append(shares[0])
        saved.append(0.0 if shares == [math.inf, math.inf] else shares[1] - shares[0])
    found = iterations_needed(policy, random)
    assert (found.low, found.high) == pytest.approx(quantiles(needed), abs=0.05)
    found = iterations_saved(policy, other, random)
    if gain:
        assert (found.low, found.high) == pytest.approx(quantiles(saved), abs=0.05)
    else:
        assert (found.low, found.high) == (-math.inf, math.inf)


def quantiles(values):
    return np.quantile(values, 0.025, method="lower"), np.quantile(values, 0.975, method="higher")


@pytest.mark.parametrize("seed", range(5))
def test_the_first_crossing_against_a_fine_grid(seed):
    rng = np.random.default_rng(seed)
    errors, target = rng.random(4), rng.uniform(0.1, 0.9)
    (found,) = first_crossing(ITERATIONS, errors[None], np.array([target]))
    grid = np.linspace(0, 40, 400_001)
    below = np.flatnonzero(np.interp(grid, ITERATIONS, errors) <= target)
    # a target that is met only between validations, on the way up, is not there: errors are known at validations
    assert found == pytest.approx(grid[below[0]] if len(below) else math.inf, abs=1e-3)


def test_a_run_that_diverged_has_error_1_from_there_on():
    whole = {"iterations": [0, 10, 20], "errors": [1.0, 0.9, 0.8], "diverged": False}
    broken = {"iterations": [0, 10, 14], "errors": [1.0, 0.95, 1.0], "diverged": True}
    found = Curves.of([broken, whole])
    np.testing.assert_array_equal(found.iterations, [0, 10, 20])
    np.testing.assert_array_equal(found.errors, [[1, 0.95, 1], [1, 0.9, 0.8]])


def test_runs_of_other_lengths_are_not_compared():
    runs = [{"iterations": [0, 10], "errors": [1, 0.9]}, {"iterations": [0, 5, 10], "errors": [1, 0.9, 0.8]}]
    with pytest.raises(ValueError, match="cannot be compared"):
        Curves.of(runs)
