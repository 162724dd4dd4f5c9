"""What several test files share: a small configuration, its tasks, actions and rollouts, the folder of real data."""

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import permenv

ROOT = Path(__file__).parents[1]
"""The repository."""

REAL_DATA = Path(os.environ.get("PERMENV_DATA", ROOT.parent / "shared" / "data"))
"""Folder of real data, which need not be there."""

TASKS = ("spatial", "temporal", "spatiotemporal")
"""The tasks of the package; other tests and scripts may register more."""

SMALL: dict[str, Any] = {
    "device": "cpu",
    "cell_size": 18,
    "piece_size": 16,
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
"""Overrides of the tiny preset that make a run of a few iterations take a fraction of a second: 4 actions fill a
mini-batch, and a cycle of one free iteration and an update of two has 12 actions."""

NUMBERS = {name: value for name, value in SMALL.items() if name != "device"}
"""The fields of `permenv.Config` among `SMALL`."""

PARTS = {"spatial": ["spatial"], "temporal": ["temporal"], "spatiotemporal": ["spatial", "temporal"]}
"""By task, its ordering tasks."""

PIECES = {"spatial": 9, "temporal": 8}
"""By ordering task, the pieces of a sample."""

every_task = pytest.mark.parametrize(
    "task", ["spatial", pytest.param("temporal", marks=pytest.mark.ci), "spatiotemporal"]
)
"""The temporal task alone, which is also a part of the joint task, is left to CI."""


def _quickly(quick: str) -> pytest.MarkDecorator:
    """Parametrise over the tasks; all but one are left to CI."""
    return pytest.mark.parametrize(
        "task", [task if task == quick else pytest.param(task, marks=pytest.mark.ci) for task in PARTS]
    )


spatial_first = _quickly("spatial")
"""For slower tests of the environment: all tasks but the spatial one are left to CI."""

joint_first = _quickly("spatiotemporal")
"""For tests in which the joint task shows all that its parts would: these are left to CI."""


def rollout(env: gym.Env, actions: Iterable[Any]) -> list[tuple]:
    """Observations, rewards, endings and infos of some actions."""
    return [env.step(action) for action in actions]


def assert_same(first: list[tuple], second: list[tuple]) -> None:
    """Compare two rollouts, bit for bit."""
    for (observation, *rest), (other, *others) in zip(first, second, strict=True):
        np.testing.assert_array_equal(observation, other)
        assert rest == others


def assert_same_weights(first: Any, second: Any) -> None:
    """Compare the weights of two environments or runs, bit for bit."""
    pairs = zip(weights_of(first), weights_of(second), strict=True)
    assert all(torch.equal(weight, other) for weight, other in pairs)


def random_actions(env: gym.Env, count: int, seed: Any = 0) -> np.ndarray:
    """Actions of an environment with `SMALL`'s number of groups: (count,), or (count, tasks) of a joint task."""
    return np.random.default_rng(seed).integers(SMALL["num_groups"], size=(count, *env.action_space.shape))


def action_of(env: gym.Env, *groups: int) -> int | np.ndarray:
    """The action that chooses these groups, one per task; a single one is for every task."""
    if env.action_space.shape == ():
        return int(groups[0])
    return np.array(groups * 2 if len(groups) == 1 else groups)


def run_of(env_or_run: Any) -> permenv.Pretraining:
    """The run of an environment; a run is returned as it is."""
    return env_or_run if isinstance(env_or_run, permenv.Pretraining) else env_or_run.unwrapped.run


def weights_of(env_or_run: Any) -> list[torch.Tensor]:
    """Copies of the live weights."""
    return [parameter.detach().clone() for parameter in run_of(env_or_run).trainer.network.parameters()]


def small_run(task: str = "spatial", seed: int | None = 0, **overrides: Any) -> permenv.Pretraining:
    """A run with the numbers of `SMALL`."""
    return permenv.Pretraining.create("tiny", task, seed=seed, **{**SMALL, **overrides})


def mean(values: Iterable[float]) -> float:
    """Mean as the environment computes it: the sum in order, divided by the number."""
    values = list(values)
    return sum(values) / len(values)


def global_states() -> tuple[Any, ...]:
    """The states of the global random generators of Python, numpy and torch."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, keys.tolist(), rest, torch.get_rng_state().tolist()


def small_backbone() -> torch.nn.Module:
    """A user's trunk, at module level so that it pickles."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


def fail_to_lock(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let every attempt to lock a file fail with this error number, as on a file system without locks."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", flock)
