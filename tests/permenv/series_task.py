"""A user-defined task in 60 lines: order the segments of one-dimensional series."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

import permenv

SEGMENTS, LENGTH = 6, 24


@dataclass(frozen=True)
class Series:
    """(N, SEGMENTS * LENGTH) float32 numbers."""

    values: np.ndarray
    name: str = "series"

    @property
    def fingerprint(self) -> str:  # a checkpoint continues only on the same data
        return hashlib.blake2b(self.values.tobytes(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.values)


def make_trunk() -> torch.nn.Module:
    """Features of segments (N, 1, LENGTH)."""
    return torch.nn.Sequential(torch.nn.Conv1d(1, 16, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool1d(2))


class SeriesTask(permenv.Task):
    """Order the segments of a series. A sample is [series]."""

    name = data_keyword = "series"
    preset_changes = {"tiny": {"backbone": make_trunk, "num_permutations": 50}}  # noqa: RUF012 - constant
    piece_shape = (1, LENGTH)

    @classmethod
    def load(cls, given, config):
        """By default 500 sums of a ramp and a sine."""
        if given is None:
            rng, time = np.random.default_rng(config.scenes_seed), np.linspace(0, 1, SEGMENTS * LENGTH)
            given = rng.uniform(2, 4, (500, 1)) * time + np.sin(20 * time + rng.uniform(0, 6, (500, 1)))
        return Series(np.asarray(given, dtype=np.float32))

    @classmethod
    def count_pieces(cls, config):
        return SEGMENTS

    def pieces(self, samples, orders=None, rng=None):
        """Cut series into segments; in training noise is added."""
        segments = self.data.values[samples[:, 0]].reshape(-1, SEGMENTS, 1, LENGTH)
        orders = self.true_orders(len(samples)) if orders is None else orders
        segments = np.take_along_axis(segments, orders[:, :, None, None], axis=1)
        if rng is not None:
            segments = segments + rng.normal(0, 0.05, segments.shape).astype(np.float32)
        return torch.from_numpy(segments).to(self.device)
