"""Wrappers that change the actions."""

from __future__ import annotations

import itertools
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from permenv.config import ConfigurationError
from permenv.grouping import pool_probabilities
from permenv.wrappers.base import Step, base_env_of, is_number


class _ActionWrapper(gym.Wrapper, RecordConstructorArgs):
    """Base of the action wrappers. They output groups, so the environment below must have its own actions."""

    def __init__(self, env: gym.Env, **arguments: Any):
        RecordConstructorArgs.__init__(self, **arguments)
        gym.Wrapper.__init__(self, env)
        base_env, name = base_env_of(env), type(self).__name__
        if env.action_space != base_env.action_space:
            raise ConfigurationError(
                f"{name} over the actions {env.action_space}: it chooses groups, {base_env.action_space}; "
                f"leave out one of the wrappers that change the actions"
            )
        self._num_groups, self._num_tasks = base_env.config.num_groups, len(base_env.tasks)

    def _play(self, groups: Iterable[np.ndarray]) -> Step:
        """Take actions, (T,) int64 each, until a validation or the end of the run; return the last step's result."""
        for action in groups:
            result = self.env.step(action if self._num_tasks > 1 else int(action[0]))
            _, _, terminated, truncated, info = result
            if info["validated"] or terminated or truncated:
                return result
        raise AssertionError("the actions given to _play must not run out before the phase ends")


class _DistributionAction(_ActionWrapper, ABC):
    """Base of the wrappers whose action, in [-1, 1], sets the probabilities of the groups for a whole phase."""

    _meaning: ClassVar[str]  # of an action, in errors

    @abstractmethod
    def probabilities(self, action: Any) -> np.ndarray:
        """Return the probability of each group under an action in the current state.

        Args:
            action: Finite numbers of the shape of the action space; clipped to [-1, 1].

        Returns:
            (T, C) float64, each row sums to 1.

        Raises:
            gymnasium.error.InvalidAction: If the shape is wrong or a value is not finite.
            gymnasium.error.ResetNeeded: If no run has begun.
        """

    def step(self, action: Any) -> Step:
        """Train until the next validation.

        Args:
            action: Finite numbers of the shape of the action space; clipped to [-1, 1].

        Returns:
            Observation, reward, terminated, truncated and info of the phase's last step.

        Raises:
            gymnasium.error.InvalidAction: If the shape is wrong or a value is not finite; the run is unchanged then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        return self._play(self._draws(self.probabilities(action)))

    def _clipped(self, action: Any) -> np.ndarray:
        """Check an action and return it as float64, clipped to [-1, 1]."""
        values = _as_array(action)
        if values.shape != self.action_space.shape or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise gym.error.InvalidAction(
                f"action {action!r} is not {self._meaning}: pass an array {self.action_space.shape} of finite numbers, "
                f"in [-1, 1] or clipped to it"
            )
        return values.astype(np.float64).clip(-1, 1)

    def _sizes(self) -> np.ndarray:
        """Return |c_j| / |Ψ| in the current state of the run, (T, C) float64; up to float32, each row sums to 1."""
        state = base_env_of(self).records[-1].observation  # ŝ, even where another wrapper changes the observation
        return state.reshape(self._num_tasks, self._num_groups, 2)[..., 0].astype(np.float64)

    def _draws(self, probabilities: np.ndarray) -> Iterator[np.ndarray]:
        """Yield groups (T,) without end, drawn an iteration at a time: single draws would cost more than the steps."""
        base_env = base_env_of(self)
        size, generator = base_env.config.actions_per_iteration, base_env.np_random
        while True:
            yield from np.stack([generator.choice(len(row), size, p=row) for row in probabilities], axis=1)


class MixtureAction(_DistributionAction):
    """Choose how the samples of a whole phase are split over the groups: a continuous action, rewarded immediately.

    ## Action Space
    `Box(-1, 1, (C,), float32)`, joint task `(T, C)`: group j is drawn with probability proportional to
    f_j · exp(strength · a_j), where f_j = |c_j| / |Ψ| is its share of the permutations. The action 0 therefore draws
    all permutations with equal probability, adding a constant to an action has no effect, and an empty group is never
    drawn. Finite values outside [-1, 1] are clipped.

    A step is a phase: it ends with the next validation, or when the network diverges. Each action of the environment
    below, and with it each `samples_per_action` samples, gets a group of its own, drawn with the environment's
    generator. The step that plays an update returns the reward of that update. The step that plays the free iterations,
    if there are any, has `info["phase"]` "free" and returns 0 (with `ErrorReduction`, its share of the reduction). An
    episode has `total_updates` steps, or twice as many with free iterations.

    Example:
        >>> env = MixtureAction(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0` with its own action space.
        strength: How far an action can tilt the distribution, > 0: the odds of two permutations change by at most
            e^(2 · strength). The default 1 allows e²; a constant tilt of that size towards the hard groups prevented
            most of the learning (see `PermShuffleEnv`).

    Raises:
        ConfigurationError: If `strength` is not a positive number, or the actions below are not the environment's.
    """

    _meaning = "a mixture"

    def __init__(self, env: gym.Env, strength: float = 1.0):
        if not is_number(strength, numbers.Real) or not 0 < strength < math.inf:
            raise ConfigurationError(f"MixtureAction(strength={strength!r}): must be a positive number")
        super().__init__(env, strength=strength)
        self.strength = float(strength)
        shape = (self._num_groups,) if self._num_tasks == 1 else (self._num_tasks, self._num_groups)
        self.action_space = spaces.Box(-1.0, 1.0, shape, np.float32)

    def probabilities(self, action: Any) -> np.ndarray:
        """Return the probability of each group under an action in the current state.

        Args:
            action: (C,) numbers, joint task (T, C); clipped to [-1, 1].

        Returns:
            (T, C) float64, each row sums to 1.

        Raises:
            gymnasium.error.InvalidAction: If the shape is wrong or a value is not finite.
            gymnasium.error.ResetNeeded: If no run has begun.
        """
        tilt = self.strength * self._clipped(action).reshape(self._num_tasks, -1)
        sizes = self._sizes()
        tilt[sizes == 0] = -math.inf  # keeps empty groups out of the maximum below
        weights = sizes * np.exp(tilt - tilt.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


class PoolAction(_DistributionAction):
    """Choose how much of Ψ is in play in a phase, easiest first: one continuous action, rewarded immediately.

    Where |Ψ| is large, training that begins with an easy share of Ψ and lets it grow, as `agents.EasiestFirst` does,
    learns more than training on all of Ψ from the start. With this wrapper a policy can learn when to let it grow.

    ## Action Space
    `Box(-1, 1, (1,), float32)`, joint task `(T,)`: permutations are drawn with equal probability from an easiest share
    of Ψ. The action 1 draws from all of Ψ, as the random policy does, -1 from the easiest `smallest` share, 0 from the
    mean of the two, about half of Ψ. A group that is only partly in play counts with that part
    (`permenv.grouping.pool_probabilities`). Finite values outside [-1, 1] are clipped.

    A step is a phase, as in `MixtureAction`: it ends with the next validation, or when the network diverges, each
    action of the environment below gets a group of its own, drawn with the environment's generator, and the step that
    plays the free iterations, if there are any, has `info["phase"]` "free" and returns 0 (with `ErrorReduction`, its
    share of the reduction).

    Example:
        >>> env = PoolAction(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0` with its own action space.
        smallest: Share of Ψ in play at the action -1, above 0 and below 1.
        hardest_first: Whether the hardest share of Ψ is in play instead, as the inverse of a policy has it.

    Raises:
        ConfigurationError: If an argument is not as described, or the actions below are not the environment's.
    """

    _meaning = "a pool"

    def __init__(self, env: gym.Env, smallest: float = 0.02, hardest_first: bool = False):
        if not is_number(smallest, numbers.Real) or not 0 < smallest < 1:
            raise ConfigurationError(f"PoolAction(smallest={smallest!r}): must be a number above 0 and below 1")
        if not isinstance(hardest_first, bool):
            raise ConfigurationError(f"PoolAction(hardest_first={hardest_first!r}): must be True or False")
        super().__init__(env, smallest=smallest, hardest_first=hardest_first)
        self.smallest = float(smallest)
        self.hardest_first = hardest_first
        self.action_space = spaces.Box(-1.0, 1.0, (self._num_tasks,), np.float32)

    def shares(self, action: Any) -> np.ndarray:
        """Return the share of each task's Ψ that an action puts in play.

        Args:
            action: (1,) numbers, joint task (T,); clipped to [-1, 1].

        Returns:
            (T,) float64, from `smallest` to 1.

        Raises:
            gymnasium.error.InvalidAction: If the shape is wrong or a value is not finite.
        """
        return 1 - (1 - self.smallest) * (1 - self._clipped(action)) / 2

    def action_of(self, share: float) -> float:
        """Return the action that puts a share of Ψ in play, the inverse of `shares`; above 1 for a share above 1."""
        return 1 - 2 * (1 - share) / (1 - self.smallest)

    def probabilities(self, action: Any) -> np.ndarray:
        """Return the probability of each group under an action in the current state.

        Args:
            action: (1,) numbers, joint task (T,); clipped to [-1, 1].

        Returns:
            (T, C) float64, each row sums to 1.

        Raises:
            gymnasium.error.InvalidAction: If the shape is wrong or a value is not finite.
            gymnasium.error.ResetNeeded: If no run has begun.
        """
        shares, sizes = self.shares(action), self._sizes()
        fractions = sizes / sizes.sum(axis=1, keepdims=True)  # so that at share 1 no permutation is left out
        return pool_probabilities(fractions, shares, hardest_first=self.hardest_first)


class ActionBlock(_ActionWrapper):
    """Choose all K actions of an update at once: the paper's a_{t,k}, rewarded immediately.

    ## Action Space
    `MultiDiscrete([C] * (K * T))` with K = `iterations_per_update` · B / m: entry k · T + i is the group of action k
    for task i, in the order of `env.unwrapped.tasks`. It is flat because Stable-Baselines3 supports no other shape. K
    is 3200 in the tiny preset; with `samples_per_action` = `batch_size` it is `iterations_per_update`, as in
    Algorithm 1.

    A step is a phase: it ends with the next validation, or when the network diverges. The step that plays an update
    plays the block once and returns the reward of that update. The free iterations, if there are any, may need fewer
    or more actions than a block has: their step plays the block from its start, repeating it as needed, has
    `info["phase"]` "free" and returns 0 (with `ErrorReduction`, its share of the reduction).

    Example:
        >>> env = ActionBlock(gym.make("PermShuffle-v0", samples_per_action=64))

    Args:
        env: `PermShuffle-v0` with its own action space.

    Raises:
        ConfigurationError: If the actions below are not the environment's.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        config = base_env_of(env).config
        self.length = config.iterations_per_update * config.actions_per_iteration
        self.action_space = spaces.MultiDiscrete([self._num_groups] * (self.length * self._num_tasks))

    def step(self, action: Any) -> Step:
        """Train until the next validation.

        Args:
            action: (K · T,) int, groups from 0 to C - 1.

        Returns:
            Observation, reward, terminated, truncated and info of the phase's last step.

        Raises:
            gymnasium.error.InvalidAction: If it is not such a block; the run is unchanged then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        block = _as_array(action)
        if block.shape != self.action_space.shape or not _all_below(block, self._num_groups):
            raise gym.error.InvalidAction(
                f"action {action!r} is not a block of groups: pass an array {self.action_space.shape} of integers "
                f"from 0 to {self._num_groups - 1}"
            )
        return self._play(itertools.cycle(block.astype(np.int64).reshape(self.length, self._num_tasks)))


class FlatJointAction(_ActionWrapper):
    """Choose the groups of a joint task by one number, for algorithms that support only `Discrete`, such as DQN.

    ## Action Space
    `Discrete(C**T)`: the groups of the T tasks are the digits of the number in base C, the first task's first. For
    "spatiotemporal" it is C · (group of spatial permutations) + group of temporal permutations.

    Example:
        >>> env = FlatJointAction(gym.make("PermShuffle-v0", task="spatiotemporal"))

    Args:
        env: `PermShuffle-v0` of a joint task with its own action space.

    Raises:
        ConfigurationError: If it is a single task, or the actions below are not the environment's.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        if self._num_tasks == 1:
            raise ConfigurationError(
                f"FlatJointAction over task={base_env_of(env).task!r}: its actions are {env.action_space} already; "
                f"leave the wrapper out, or choose a joint task such as task='spatiotemporal'"
            )
        self._shape = (self._num_groups,) * self._num_tasks
        self.action_space = spaces.Discrete(self._num_groups**self._num_tasks)

    def step(self, action: Any) -> Step:
        """Take one step of the environment.

        Args:
            action: int from 0 to C^T - 1.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            gymnasium.error.InvalidAction: If it is out of range; the run is unchanged then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        number = _as_array(action)
        most = self._num_groups**self._num_tasks
        if number.shape != () or not _all_below(number, most):
            raise gym.error.InvalidAction(
                f"action {action!r} does not stand for a group of each task: pass an integer from 0 to {most - 1}"
            )
        return self.env.step(np.array(np.unravel_index(int(number), self._shape)))


PHASE_WRAPPERS: Mapping[str, type[_ActionWrapper]] = MappingProxyType(
    {"mixture": MixtureAction, "pool": PoolAction, "block": ActionBlock}
)
"""By name, the action wrappers whose step is a phase."""


def _as_array(action: Any) -> np.ndarray:
    try:
        return np.asarray(action)
    except ValueError:  # lists of different lengths
        return np.empty(0)


def _all_below(values: np.ndarray, bound: int) -> bool:
    return values.dtype.kind in "iu" and bool(((values >= 0) & (values < bound)).all())
