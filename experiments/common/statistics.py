"""Statistics of repeated runs: figures with their bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000
_LEVEL = 0.95
INTERVAL = f"{_LEVEL:.0%}, bootstrap over the seeds, {_RESAMPLES} resamples"
"""What the interval of an `Estimate` is, in words."""


class Estimate(NamedTuple):
    """A figure and its bootstrap percentile interval, see `INTERVAL`."""

    value: float
    low: float
    high: float

    def as_columns(self, name: str) -> dict[str, float | None]:
        """Return NAME, NAME_low and NAME_high for JSON, which has no infinity: None in its place."""
        columns = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {column: value if math.isfinite(value) else None for column, value in columns.items()}

    def __format__(self, form: str) -> str:
        """Format all three: "value [low, high]"; an infinite value was not reached."""
        low, high = (f"{end:{form}}" if math.isfinite(end) else "∞" for end in (self.low, self.high))
        return f"{self.value:{form}} [{low}, {high}]" if math.isfinite(self.value) else "not reached"


def estimate(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> Estimate:
    """Estimate a statistic of several runs, whose seeds are resampled.

    Args:
        statistic: Takes (N, count) indices of runs and returns (N,) values. Where it indexes the runs of two policies
            alike, the interval is that of paired runs.
        count: Number of runs.
    """
    resampled = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    values, tail = statistic(resampled), (1 - _LEVEL) / 2
    # "lower" and "higher": between a finite and an infinite value there is nothing to interpolate
    low, high = np.quantile(values, tail, method="lower"), np.quantile(values, 1 - tail, method="higher")
    return Estimate(float(statistic(np.arange(count)[None])[0]), float(low), float(high))


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """Estimate the mean."""
    array = np.asarray(values)
    return estimate(lambda runs: array[runs].mean(axis=1), len(array))


def ratio_of_means(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """Estimate the ratio of the means of paired values, (runs,) each."""
    return estimate(lambda runs: ours[runs].mean(axis=1) / theirs[runs].mean(axis=1), len(ours))


def mean_and_sd(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return {"mean", "sd"}, the sample standard deviation; 0 of a single value."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
