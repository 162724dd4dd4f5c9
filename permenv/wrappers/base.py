"""What all wrappers need: the environment below, and copies of it with its wrappers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, SupportsFloat, TypeAlias

import gymnasium as gym

from permenv.config import ConfigurationError
from permenv.env import PermShuffleEnv

Step: TypeAlias = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]
"""Observation, reward, terminated, truncated, info."""


def fork(env: gym.Env) -> gym.Env:
    """Copy a run together with all wrappers around it, Gymnasium's included. The two copies are independent.

    State that other wrappers hold (the step count of `TimeLimit`, the frames of `FrameStackObservation`) is copied
    with `copy.deepcopy`.

    Example:
        >>> twin = fork(env)

    Args:
        env: `PermShuffle-v0` under any wrappers, after its first `reset`.

    Returns:
        The same stack around `env.unwrapped.fork()`.

    Raises:
        ConfigurationError: If it is another environment.
        gymnasium.error.ResetNeeded: If no run has begun.
    """
    base_env = base_env_of(env)
    # The memo makes deepcopy use the fork wherever it meets the innermost environment.
    return copy.deepcopy(env, {id(base_env): base_env.fork()})


def base_env_of(env: gym.Env) -> PermShuffleEnv:
    """Return the environment under all wrappers.

    Raises:
        ConfigurationError: If it is not `PermShuffle-v0`.
    """
    base_env = env.unwrapped
    if not isinstance(base_env, PermShuffleEnv):
        raise ConfigurationError(f"{env} is another environment: pass PermShuffle-v0, gym.make('PermShuffle-v0')")
    return base_env


def wrappers_of(env: gym.Env) -> Iterator[gym.Wrapper]:
    """Yield the wrappers around an environment, the outermost first."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def is_number(value: Any, kind: type) -> bool:
    """Return whether an argument is a number of that kind; True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)
