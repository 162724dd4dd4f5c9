"""What the studies share: training without an agent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from permenv import Pretraining


def train(run: Pretraining, groups: Iterable[np.ndarray | None]) -> bool:
    """Train a run and validate it once at the end.

    Args:
        run: The run.
        groups: For each SGD iteration, what `Pretraining.iterate` takes; None for random permutations.

    Returns:
        Whether all losses and predictions are finite; if not, `run.records` has no new validation.
    """
    for chosen in groups:
        run.iterate(chosen)
        if run.diverged:
            return False
    return run.validate()
