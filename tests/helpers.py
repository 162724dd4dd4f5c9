"""What several test files share: a small configuration, rollouts, the real data's folder."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

ROOT = Path(__file__).parents[1]
"""The repository."""

REAL_DATA = Path(os.environ.get("PERMENV_DATA", ROOT.parent / "shared" / "data"))
"""Folder of real data, which need not be there."""

SMALL: dict[str, Any] = {
    "device": "cpu",
    "num_scenes": 60,
    "num_permutations": 24,
    "num_groups": 4,
    "num_validation": 12,
    "batch_size": 8,
    "samples_per_action": 2,
    "iterations_per_update": 2,
    "free_iterations": 1,
    "total_updates": 50,
    "fc6": 16,
    "fc7": 32,
    "num_clips": 16,
    "clip_frames": 10,
    "temporal_fc6": 16,
    "lstm": 16,
}
"""Overrides of the tiny preset that make a run of a few iterations take a fraction of a second."""


def rollout(env: gym.Env, actions: Iterable[Any]) -> list[tuple]:
    """Observations, rewards, endings and infos of some actions."""
    return [env.step(action) for action in actions]


def assert_same(first: list[tuple], second: list[tuple]) -> None:
    """Compare two rollouts, bit for bit."""
    for (observation, *rest), (other, *others) in zip(first, second, strict=True):
        np.testing.assert_array_equal(observation, other)
        assert rest == others
