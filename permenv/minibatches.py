"""The mini-batches of a run: which samples are drawn, and the pieces that are made of them.

All draws are from streams of their own, keyed by the iteration (`permenv.streams`). So a task can begin to read the
samples of later iterations while the network is trained.
"""

from __future__ import annotations

import copy

import numpy as np

from permenv.distributed import Ranks
from permenv.streams import Purpose, stream
from permenv.tasks import Task
from permenv.training import Batch


class MiniBatches:
    """The mini-batches of one task of a run, of which each rank makes its shard.

    Args:
        task: What is shuffled.
        number: Of the task within the run.
        held_out: (|X_val|, k) int64, samples whose items are left out.
        ranks: The processes that train the run together.
    """

    def __init__(self, task: Task, number: int, held_out: np.ndarray, ranks: Ranks):
        self._task = task
        self._number = number
        self._ranks = ranks
        self._trainable = task.trainable(held_out)
        self._announced = 0  # the last iteration whose samples were announced

    def make(self, seed: int, iteration: int, labels: np.ndarray) -> Batch:
        """Make the mini-batch of an iteration.

        Args:
            seed: Of the run.
            iteration: SGD iterations before it.
            labels: (B,) int, the permutation of each sample as an index into Ψ.

        Returns:
            This rank's shard of it.
        """
        rows, samples = self._ranks.shard(len(labels)), self._draw(seed, iteration, len(labels))
        augmentation = stream(seed, Purpose.AUGMENTATION, iteration, self._number)
        pieces = self._task.shard_of_pieces(rows, samples, self._task.permutations[labels], augmentation)
        return Batch(pieces, labels[rows])

    def announce(self, seed: int, iteration: int, count: int) -> None:
        """Let the task read this rank's samples of the iterations after this one, each once.

        Args:
            seed: Of the run.
            iteration: SGD iterations before the current one.
            count: B, samples of a mini-batch.
        """
        last = iteration + self._task.read_ahead
        for later in range(max(iteration, self._announced) + 1, last + 1):
            self._task.announce(self._draw(seed, later, count)[self._ranks.shard(count)])
        self._announced = last

    def fork(self) -> MiniBatches:
        """Copy them for a fork of the run. Nothing counts as announced: with another seed it draws other samples."""
        twin = copy.copy(self)
        twin._announced = 0
        return twin

    def _draw(self, seed: int, iteration: int, count: int) -> np.ndarray:
        """Draw the samples of an iteration, (B, k) int64."""
        rng = stream(seed, Purpose.SAMPLES, iteration, self._number)
        return self._task.draw(self._trainable, count, rng)
