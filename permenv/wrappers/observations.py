"""Wrappers that change the observations."""

from __future__ import annotations

import numbers
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from permenv.config import ConfigurationError
from permenv.env import PermShuffleEnv
from permenv.grouping import HIGHEST_RATIO, LOWEST_RATIO
from permenv.wrappers.base import base_env_of, is_number


class StateHistory(gym.ObservationWrapper, RecordConstructorArgs):
    """Show the states after the last few validations: one state does not tell how the network is changing.

    ## Observation Space
    `Box(float32, (length, C, 2))`, joint task `(length, T, C, 2)`: ŝ after each of the last `length` validations,
    oldest first, with the bounds of ŝ. The first state is repeated until there are that many. Validations that end
    free iterations count as well.

    `gymnasium.wrappers.FrameStackObservation` stacks the last steps instead. ŝ stays the same for the thousands of
    steps between two validations, so that wrapper would show copies of one state; and its stack is lost when a run is
    saved and restored.

    Example:
        >>> env = StateHistory(gym.make("PermShuffle-v0"), length=3)

    Args:
        env: `PermShuffle-v0` with its own observation space.
        length: Number of states, >= 1.

    Raises:
        ConfigurationError: If `length` is not a positive integer, or the observation below is not ŝ.
    """

    def __init__(self, env: gym.Env, length: int):
        if not is_number(length, numbers.Integral) or length < 1:
            raise ConfigurationError(f"StateHistory(length={length!r}): must be an integer of at least 1")
        RecordConstructorArgs.__init__(self, length=length)
        gym.ObservationWrapper.__init__(self, env)
        _require_states(self)
        self.length = int(length)
        space = base_env_of(env).observation_space
        assert isinstance(space, spaces.Box)
        low, high = (np.stack([bound] * self.length) for bound in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Read the last states from the run.

        Args:
            observation: ŝ, the last of them.

        Returns:
            (length, C, 2) float32, oldest first; joint task (length, T, C, 2).
        """
        states = [record.observation for record in base_env_of(self).records[-self.length :]]
        return np.stack([states[0]] * (self.length - len(states)) + states)


class RatioMatrix(gym.ObservationWrapper, RecordConstructorArgs):
    """Show the whole matrix s, of which ŝ contains only the size and the median of each group.

    ## Observation Space
    `Box(0.5, 2, (|Ψ|, |X_val|), float32)`, joint task `(T, |Ψ|, |X_val|)`: (y_l + 1) / (y_p + 1) of each permutation
    l, in the order of Ψ, and each sample of X_val (Eq. 3); above 1: recognised. It does not show which permutations
    form a group; `env.unwrapped.groups` does.

    Example:
        >>> env = RatioMatrix(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0` with its own observation space.

    Raises:
        ConfigurationError: If the observation below is not ŝ.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        _require_states(self)
        base_env = base_env_of(env)
        matrix = (base_env.config.num_permutations, base_env.config.num_validation)
        shape = matrix if len(base_env.tasks) == 1 else (len(base_env.tasks), *matrix)
        self.observation_space = spaces.Box(LOWEST_RATIO, HIGHEST_RATIO, shape, np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Read s of the last validation from the run.

        Args:
            observation: ŝ, which is not used.

        Returns:
            (|Ψ|, |X_val|) float32 in [0.5, 2]; joint task (T, |Ψ|, |X_val|).
        """
        matrices = np.stack([validation.ratios for validation in base_env_of(self).validation.values()])
        return matrices.clip(LOWEST_RATIO, HIGHEST_RATIO).reshape(self.observation_space.shape)


class ErrorAndProgress(gym.ObservationWrapper, RecordConstructorArgs):
    """Append the error of the network and the progress of the run to the observation.

    The medians of ŝ determine the error only roughly. Without the time left, no policy can act differently at the
    beginning and at the end of a run, and no value function can tell the last state of an episode from its first.

    ## Observation Space
    `Box(float32, (n + T + 1,))`: the n numbers of the observation below, flattened, with their bounds; then the error
    E of each task in [0, 1], in the order of `env.unwrapped.tasks`; then the progress in [0, 1], the completed share
    of the run's SGD iterations. Like ŝ, all of them are those of the last validation and change only there.

    Example:
        >>> env = ErrorAndProgress(StateHistory(gym.make("PermShuffle-v0"), length=3))

    Args:
        env: `PermShuffle-v0` with a Box observation: its own, `StateHistory`, `RatioMatrix`, or one of yours.

    Raises:
        ConfigurationError: If the observation below is not a Box.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        below, num_more = env.observation_space, len(base_env_of(env).tasks) + 1
        if not isinstance(below, spaces.Box):
            raise ConfigurationError(
                f"ErrorAndProgress over the observation {below}: it appends to a Box; put it below what changes that"
            )
        low, high = (np.append(bound, np.full(num_more, end)) for bound, end in ((below.low, 0.0), (below.high, 1.0)))
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Append the errors and the progress of the run's last record.

        Args:
            observation: n numbers of any shape, the observation below.

        Returns:
            (n + T + 1,) float32: these numbers, the error of each task in [0, 1], the progress in [0, 1].
        """
        base_env = base_env_of(self)
        errors = base_env.records[-1].errors.values()
        return np.concatenate([np.ravel(observation), [*errors, _progress(base_env)]], dtype=np.float32)


class RunSummary(gym.ObservationWrapper, RecordConstructorArgs):
    """Show a few numbers instead of ŝ: for policies with few parameters, which are learned from few runs.

    ## Observation Space
    `Box(float32, (4 T + 1,))`: for each task, in the order of `env.unwrapped.tasks`, the error E in [0, 1], its
    reduction since the previous validation in [-1, 1] (0 at first), and the medians of the easiest and of the hardest
    group of ŝ in [0.5, 2]; then the progress in [0, 1], the completed share of the run's SGD iterations. Like ŝ, all of
    them are those of the last validation and change only there.

    Example:
        >>> env = RunSummary(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0` with its own observation space.

    Raises:
        ConfigurationError: If the observation below is not ŝ.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        _require_states(self)
        num_tasks = len(base_env_of(env).tasks)
        low, high = [0.0, -1.0, LOWEST_RATIO, LOWEST_RATIO], [1.0, 1.0, HIGHEST_RATIO, HIGHEST_RATIO]
        self.observation_space = spaces.Box(
            np.array([*low * num_tasks, 0.0], np.float32),
            np.array([*high * num_tasks, 1.0], np.float32),
            dtype=np.float32,
        )

    def observation(self, observation: Any) -> np.ndarray:
        """Read the numbers from the run's last two records.

        Args:
            observation: ŝ, which is not used.

        Returns:
            (4 T + 1,) float32: of each task its error, its reduction, the medians of the easiest and of the hardest
            group; then the progress.
        """
        base_env = base_env_of(self)
        *_, before, last = (base_env.records[0], *base_env.records)
        medians = last.observation.reshape(len(base_env.tasks), -1, 2)[..., 1]  # hardest group first
        figures = [
            (error, before.errors[task] - error, own[-1], own[0])
            for (task, error), own in zip(last.errors.items(), medians, strict=True)
        ]
        return np.array([*np.ravel(figures), _progress(base_env)], dtype=np.float32)


def _progress(base_env: PermShuffleEnv) -> float:
    """Return the completed share of the run's iterations, in [0, 1]."""
    iterations = base_env.config.total_iterations
    return min(1.0, base_env.records[-1].iteration / iterations)  # the checkpoint of a longer run may be past the end


def _require_states(wrapper: gym.ObservationWrapper) -> None:
    """Refuse to hide what another wrapper made of the observation."""
    name, below, states = type(wrapper).__name__, wrapper.env.observation_space, base_env_of(wrapper).observation_space
    if below != states:
        raise ConfigurationError(
            f"{name} over the observation {below}: it replaces ŝ, {states}, and would hide what the wrapper below made "
            f"of it; put {name} below the wrapper that changes the observation, or leave out one of StateHistory, "
            f"RatioMatrix and RunSummary"
        )
