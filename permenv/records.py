"""What is kept of every validation of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

PHASES = ("reset", "free", "update")
"""What a validation ends."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One validation of a run.

    Attributes:
        iteration: SGD iterations before it.
        phase: What it ended: "reset", "free" iterations or an "update".
        errors: By task, E.
        cross_entropies: By task, mean of -log y_l over all (permutation, sample) pairs, in nats.
        observation: ŝ, (|C|, 2) float32; of a joint task (tasks, |C|, 2).
        choices: (tasks, |C|) int64, how often each group was chosen since the previous validation; where all
            permutations were drawn with equal probability, how many samples had one of the group.
    """

    iteration: int
    phase: str
    errors: dict[str, float]
    cross_entropies: dict[str, float]
    observation: np.ndarray
    choices: np.ndarray

    @property
    def error(self) -> float:
        """E; of a joint task the mean over the tasks."""
        return mean(self.errors)


def mean(by_task: Mapping[str, float]) -> float:
    """Mean over the tasks."""
    return sum(by_task.values()) / len(by_task)
