"""Statistics of repeated runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 10_000
_LEVEL = 0.95
INTERVAL = f"{_LEVEL:.0%}, bootstrap of the mean, {_RESAMPLES} resamples"
"""What the interval of `mean_and_interval` is, in words."""


def mean_and_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the mean and both ends of its bootstrap percentile interval, see `INTERVAL`."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(np.mean(values)), float(low), float(high)


def mean_and_sd(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return {"mean", "sd"}, the sample standard deviation; 0 of a single value."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def area(iterations: Sequence[int], errors: Sequence[float]) -> float:
    """Return the area under the error curve divided by its length: the mean error over the run, in [0, 1]."""
    return float(np.trapezoid(errors, iterations) / (iterations[-1] - iterations[0]))
