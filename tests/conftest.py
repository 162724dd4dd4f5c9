"""What several test files share: a small environment, and the real data where it is there."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import permenv  # noqa: F401 - registers the environments

torch.set_num_threads(1)  # the tests' networks are so small that a second thread only waits for the first

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


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep the tests out of the user's cache; a test may set a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERMENV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Give one test a cache of its own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PERMENV_CACHE", str(place))
    return place


@pytest.fixture
def make_env():
    """Return a function that makes `PermShuffle-v0` as small as a test needs it."""
    made: list[gym.Env] = []

    def make(**overrides: Any) -> gym.Env:
        made.append(gym.make("PermShuffle-v0", **{**SMALL, **overrides}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data; without it, the test is skipped and says so."""
    folder = Path(os.environ.get("PERMENV_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: name its folder in PERMENV_DATA")
    return folder
