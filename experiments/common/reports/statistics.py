"""Statistics of repeated runs: numbers with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000
_LEVEL = 0.95
_BOOTSTRAP = f"bootstrap over the seeds, {_RESAMPLES} resamples"
_RATIOS = "Fieller's with Student's t"
OF_MEANS = f"{_LEVEL:.0%}, Student's t"
OF_RATIOS = f"{_LEVEL:.0%}, {_RATIOS}"
INTERVAL = f"{_LEVEL:.0%}: of means Student's t; of ratios of means {_RATIOS}; of shares of iterations {_BOOTSTRAP}"
"""What the interval of an `Estimate` is, in words: of `mean_of`, of `ratio_of_means`, and of all in one report."""


class Estimate(NamedTuple):
    """A number and its interval, see `INTERVAL`."""

    value: float
    low: float
    high: float

    def as_columns(self, name: str) -> dict[str, float | None]:
        """Return NAME, NAME_low and NAME_high for JSON, which has no infinity: None in its place."""
        columns = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {column: value if math.isfinite(value) else None for column, value in columns.items()}

    @classmethod
    def of_columns(cls, columns: Mapping[str, float | None], name: str) -> Estimate:
        """Return what `as_columns` was called on.

        Where an end is None, it is infinite. Where the value is None, it was not reached, and the ends say nothing.
        """
        value, low, high = (columns[each] for each in (name, f"{name}_low", f"{name}_high"))
        return cls(
            math.nan if value is None else value, -math.inf if low is None else low, math.inf if high is None else high
        )

    def __format__(self, form: str) -> str:
        """Format as "value [low, high]", and a value that is not finite as "not reached".

        Ends are left out where both are infinite, as of a single run, or the value itself, as of a reference.
        """
        if not math.isfinite(self.value):
            return "not reached"
        if (math.isinf(self.low) and math.isinf(self.high)) or self.low == self.value == self.high:
            return f"{self.value:{form}}"
        low = f"{self.low:{form}}" if math.isfinite(self.low) else "-∞"
        high = f"{self.high:{form}}" if math.isfinite(self.high) else "∞"
        return f"{self.value:{form}} [{low}, {high}]"


def estimate(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> Estimate:
    """Estimate a statistic of several runs, whose seeds are resampled: a bootstrap percentile interval.

    Of fewer than about ten runs such an interval is too narrow; of three it is at most the range. Means and their
    ratios have better ones: `mean_of`, `ratio_of_means`. A resample whose value is not a number may be anything, so it
    widens the interval to both sides.

    Args:
        statistic: Takes (N, count) indices of runs and returns (N,) values. Where it indexes the runs of two policies
            alike, the interval is that of paired runs.
        count: Number of runs.
    """
    resampled = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    values, tail = statistic(resampled), (1 - _LEVEL) / 2
    # "lower" and "higher": between a finite and an infinite value there is nothing to interpolate
    low = np.quantile(np.nan_to_num(values, nan=-np.inf, posinf=np.inf, neginf=-np.inf), tail, method="lower")
    high = np.quantile(np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=-np.inf), 1 - tail, method="higher")
    return Estimate(float(statistic(np.arange(count)[None])[0]), float(low), float(high))


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """Estimate the mean, with the interval of Student's t, which holds for few runs as well.

    Args:
        values: (runs,). Pass the differences of paired runs to compare two policies. A single run has no interval: its
            ends are infinite.
    """
    from scipy.special import stdtrit  # slow to import

    array = np.asarray(values, np.float64)
    mean, count = float(array.mean()), len(array)
    if count < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = float(stdtrit(count - 1, (1 + _LEVEL) / 2) * array.std(ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - half, mean + half)


def p_of_mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the p-value of Student's t test that the mean is 0, two-sided; 1 for a single value, NaN if one is NaN.

    Args:
        values: (runs,).
    """
    from scipy.special import stdtr  # slow to import

    array = np.asarray(values, np.float64)
    mean, count = array.mean(), len(array)
    if math.isnan(mean):
        return math.nan
    if count < 2:
        return 1.0
    error = array.std(ddof=1) / math.sqrt(count)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(count - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, by the method of Holm (1979).

    Returns:
        In the given order, the least level at which all of them together would have each one rejected, at most 1.
    """
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = most
    return corrected


def ratio_of_means(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """Estimate the ratio of the means of paired values, with Fieller's interval, which holds for few runs as well.

    A ratio ρ lies in the interval if, by Student's t test, the mean of ours - ρ theirs is not different from 0.

    Args:
        ours: (runs,).
        theirs: (runs,), of the same seeds. If their mean is not different from 0, or there is a single run, the ends of
            the interval are infinite.
    """
    from scipy.special import stdtrit  # slow to import

    above, below = ours.mean(), theirs.mean()
    ratio, count = float(above / below), len(ours)
    if count < 2:
        return Estimate(ratio, -math.inf, math.inf)
    # (above - ρ below)² = t² var(ours - ρ theirs) / runs, as a ρ² - 2 b ρ + c = 0
    covariance = np.cov(ours, theirs) * stdtrit(count - 1, (1 + _LEVEL) / 2) ** 2 / count
    a, b, c = below**2 - covariance[1, 1], above * below - covariance[0, 1], above**2 - covariance[0, 0]
    if a <= 0:
        return Estimate(ratio, -math.inf, math.inf)
    root = math.sqrt(max(b**2 - a * c, 0))  # rounded, it may be below 0
    return Estimate(ratio, float((b - root) / a), float((b + root) / a))


def mean_and_sd(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return {"mean", "sd"}, the sample standard deviation; 0 of a single value."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
