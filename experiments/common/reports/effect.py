"""What a policy gains over random permutations: accuracy at equal iterations, and iterations for equal accuracy.

All metrics compare runs of the same seeds, which begin with the same network and the same validation set. They are
ratios of means over the seeds: a mean of ratios would be decided by the seeds in which random permutations have learned
nothing yet. Their intervals are of paired runs, see `statistics.ratio_of_means` and `statistics.estimate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.common.reports.statistics import Estimate, estimate, ratio_of_means


@dataclass(frozen=True, eq=False)
class Curves:
    """The errors of several runs of one policy.

    Attributes:
        iterations: (V,) int, SGD iterations before each validation, ascending.
        errors: (seeds, V), E.
    """

    iterations: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> Curves:
        """Collect runs, each with "iterations" and "errors".

        A run that diverged has fewer validations than the others; from there on it has the error 1.

        Raises:
            ValueError: If the runs were validated at different iterations.
        """
        longest = max((run["iterations"] for run in runs if not run.get("diverged")), key=len, default=None)
        if longest is None:
            longest = max((run["iterations"] for run in runs), key=len)
        errors = np.ones((len(runs), len(longest)))
        for row, run in zip(errors, runs, strict=True):
            validated = list(run["iterations"])[:-1] if run.get("diverged") else list(run["iterations"])
            if validated != list(longest)[: len(validated)]:
                raise ValueError(f"validations at the iterations {validated} and {list(longest)} cannot be compared")
            row[: len(validated)] = run["errors"][: len(validated)]
        return cls(np.array(longest), errors)

    @property
    def progress(self) -> np.ndarray:
        """(V,), the share of the iterations before each validation, from 0 to 1."""
        first, last = self.iterations[[0, -1]]
        return (self.iterations - first) / (last - first)

    def accuracies(self, share: float) -> np.ndarray:
        """Return (seeds,), the accuracy after a share of the iterations, linear between validations."""
        return np.array([1 - np.interp(share, self.progress, row) for row in self.errors])


def accuracy_ratio(policy: Curves, reference: Curves, share: float) -> Estimate:
    """Divide mean accuracies at equal iterations.

    Args:
        policy: Runs of the policy.
        reference: Runs with random permutations, of the same seeds.
        share: Of the run's iterations, in (0, 1].
    """
    return ratio_of_means(policy.accuracies(share), reference.accuracies(share))


def iterations_needed(policy: Curves, reference: Curves) -> Estimate:
    """Return the share of the run's iterations after which the mean error is that of the reference at its end.

    Args:
        policy: Runs of the policy.
        reference: Runs with random permutations, of the same seeds.

    Returns:
        In (0, 1], linear between validations; infinite if the error is not reached.
    """
    return estimate(lambda seeds: _shares_needed(policy, reference, seeds), len(policy.errors))


def time_needed(needs: Estimate, cost: float) -> Estimate:
    """Return `iterations_needed` as a share of the time that random permutations take, which need no validation.

    Args:
        needs: What `iterations_needed` returned.
        cost: The share of the policy's time that is not training, in [0, 1); it is taken as exact.
    """
    return Estimate(*(share / (1 - cost) for share in needs))


def iterations_saved(policy: Curves, other: Curves, reference: Curves) -> Estimate:
    """Return how many iterations less than another policy one needs to reach the reference's final error.

    Args:
        policy: Runs of the policy.
        other: Runs of the other one, of the same seeds.
        reference: Runs with random permutations, of the same seeds.

    Returns:
        As a share of the run's iterations, see `iterations_needed`; below 0 if the policy needs more. Infinite where
        one of them does not reach the error, NaN where neither does.
    """

    def saved(seeds: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # neither reaches it
            return _shares_needed(other, reference, seeds) - _shares_needed(policy, reference, seeds)

    return estimate(saved, len(policy.errors))


def _shares_needed(policy: Curves, reference: Curves, seeds: np.ndarray) -> np.ndarray:
    """Return (resamples,) of `iterations_needed`, for (resamples, runs) indices of runs."""
    # as the means of the policy are computed: rounded otherwise, a curve might not reach its own end
    targets = reference.errors[seeds].mean(axis=1)[:, -1]
    return first_crossing(policy.progress, policy.errors[seeds].mean(axis=1), targets)


def first_crossing(moments: np.ndarray, errors: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Find where curves first fall to a target.

    Args:
        moments: (V,), of the validations, ascending.
        errors: (N, V).
        targets: (N,).

    Returns:
        (N,) moments, linear between validations; infinite where the target is not reached.
    """
    reached = errors <= targets[:, None]
    after = reached.argmax(axis=1)
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(errors))
    high, low = errors[rows, before], errors[rows, after]
    part = np.where(high > low, (high - targets) / np.where(high > low, high - low, 1), 0)
    crossing = moments[before] + part * (moments[after] - moments[before])
    return np.where(reached.any(axis=1), crossing, np.inf)
