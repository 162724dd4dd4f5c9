"""The base classes of agents that choose groups of permutations, and of those that learn once per update."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import gymnasium as gym
import numpy as np

from agents.base import Action, Agent, Transition, Tree, in_update
from permenv.schema import Either, Number, Schema, below, lists


class GroupAgent(Agent):
    """Chooses groups of permutations given the network's state ŝ.

    A joint task consists of T tasks. Everything an agent takes or returns then has one more axis in front, with one row
    per task in the environment's order. The shapes below are those of a single task, which has no such axis. An agent
    that computes along the last axes supports both.

    Args:
        observation_space: Box of shape (|C|, 2), ŝ of Eq. 10: column 0 is the fraction |c_j| / |Ψ| of the
            permutations that are in group j, column 1 the median of the group's softmax ratios. Joint task:
            (T, |C|, 2).
        action_space: Discrete(|C|), the group to draw the next permutations from. Joint task:
            MultiDiscrete([|C|] * T).
        seed: Seeds everything the agent draws, >= 0.

    Attributes:
        num_tasks: T, 1 for a single task.
        num_groups: |C|.

    Raises:
        ValueError: If a space has another form.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        *tasks, self.num_groups = _policy_shape(observation_space, action_space)
        self._tasks = tuple(tasks)  # () or (T,), the axis in front
        self.num_tasks = math.prod(self._tasks)
        self._drawn_for: tuple[int, bytes] | None = None  # version and observation for which the next two were computed
        self._probabilities = np.empty(0)
        self._cumulative = np.empty(0)

    @abstractmethod
    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return π(. | ŝ), from which `act` draws.

        Args:
            observation: ŝ, (|C|, 2); joint task (T, |C|, 2).

        Returns:
            (|C|,) float64, sums to 1; exactly 0 for an empty group, which has no permutation to draw. Joint task:
            (T, |C|), one distribution per task.

        Raises:
            ValueError: If the observation is not in the observation space.
        """

    def act(self, observation: np.ndarray) -> Action:
        """Draw a group from `probabilities`, or one per task; never a group of probability 0.

        Args:
            observation: ŝ, (|C|, 2); joint task (T, |C|, 2).

        Returns:
            The group, an int in [0, |C|). Joint task: (T,) int64.

        Raises:
            ValueError: If the observation is not in the observation space.
        """
        self._refresh(observation)
        # Take the first index whose cumulative probability exceeds a number in [0, 1). A group of probability 0
        # does not exceed its predecessor, and the last entry is exactly 1.
        numbers = self._generator.random(self._tasks)  # [*tasks]
        groups = (self._cumulative <= numbers[..., None]).sum(axis=-1, dtype=np.int64)  # [*tasks]
        return groups if self._tasks else int(groups)

    def _signature(self) -> Tree:
        return {**super()._signature(), "tasks": self.num_tasks, "groups": self.num_groups}

    def _lists(self, item: Schema, length: int) -> Schema:
        """What `tolist()` of an array (*tasks, length) returns; a joint task of one task also takes a single task's."""
        own = lists(item, (*self._tasks, length))
        return Either(lists(item, (length,)), own) if self._tasks == (1,) else own

    def _refresh(self, observation: np.ndarray) -> None:
        """Recompute the distribution if the observation or the policy changed.

        Between two validations neither changes, while every sample of every mini-batch needs an action.
        """
        drawn_for = (self.version, np.asarray(observation).tobytes())
        if drawn_for != self._drawn_for:
            self._probabilities = self.probabilities(observation)
            cumulative = np.cumsum(self._probabilities, axis=-1)
            self._cumulative = cumulative / cumulative[..., -1:]
            self._drawn_for = drawn_for

    def _fractions(self, observation: np.ndarray) -> np.ndarray:
        """Check an observation and return its |c_j| / |Ψ|: (|C|,) float64, sums to 1; joint task (T, |C|)."""
        observation = self._as_numbers(observation)  # [*tasks, groups, 2]
        fractions = observation[..., 0]
        total = fractions.sum(axis=-1, keepdims=True)
        if not np.isfinite(observation).all() or (fractions < 0).any() or (total <= 0).any():
            raise ValueError(
                "An observation's column 0 must hold the groups' sizes and nothing may be NaN or infinite, "
                f"got {observation.tolist()}. Pass the environment's observation as it is."
            )
        return fractions / total  # in float32 the fractions sum to 1 only up to seven digits


class Learner(GroupAgent):
    """An agent that learns once per update, from K actions that share one ŝ and one reward.

    A subclass defines `probabilities`, `_update`, and, for what `_update` changes, `state_dict` and `load_state_dict`.

    Args:
        observation_space: See `GroupAgent`.
        action_space: See `GroupAgent`.
        seed: Seeds everything the agent draws, >= 0.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        self._counts = np.zeros((*self._tasks, self.num_groups), dtype=np.int64)  # of the actions in this update so far

    def learn(self, transition: Transition, behaviour: np.ndarray | None = None) -> dict[str, float]:
        """Count the action; at the end of an update, learn from all of its actions.

        An update ends with its validation, or early with a termination, whose reward is then credited to the actions
        so far. The actions of a "free" phase train the network between updates (section 3.2) and are not credited.

        Args:
            transition: One step.
            behaviour: The probabilities, (|C|,), from which the update's actions were drawn, if another policy drew
                them; joint task (T, |C|).

        Returns:
            What `update` returns; an empty dict if no update ended.

        Raises:
            ValueError: If the action is not a group, or `info` lacks "phase", "validated" or, for a joint task,
                "task_rewards", whose mean is the reward.
        """
        action, info = transition.action, transition.info
        if not self.action_space.contains(action):
            raise ValueError(f"The action {action!r} is not in {self.action_space}. Pass what `act` returned.")
        metrics = {}
        if in_update(info):
            self._counts += np.arange(self.num_groups) == np.expand_dims(action, -1)
            if info["validated"] or transition.terminated:
                gain = _task_rewards(transition) if self._tasks else float(transition.reward)
                metrics = self.update(transition.observation, self._counts, gain, behaviour)
                self._counts[:] = 0
        if transition.terminated or transition.truncated:
            self._end_episode()
        return metrics

    def update(
        self,
        observation: np.ndarray,
        counts: np.ndarray,
        reward: float | Mapping[str, float],
        behaviour: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Learn from the reward of one update's actions.

        Args:
            observation: ŝ that the actions share, (|C|, 2); joint task (T, |C|, 2).
            counts: How often each group was chosen, (|C|,) ints that sum to K >= 1; joint task (T, |C|), each row sums
                to K.
            reward: r_t, finite. Joint task: the reward of each task by name, in the order of the observation's rows.
            behaviour: The probabilities the actions were drawn from, (|C|,), joint task (T, |C|); None if this policy
                drew them.

        Returns:
            Metrics to log.

        Raises:
            ValueError: If there is not exactly one finite reward per task, the counts or the probabilities have
                another shape, the counts do not sum to the same K >= 1 in all rows, or a group of probability 0 was
                counted.
        """
        for name, given in {"counts": counts, "behaviour": behaviour}.items():
            if given is not None and np.shape(given) != (*self._tasks, self.num_groups):
                raise ValueError(
                    f"{name} has shape {np.shape(given)}, this agent has {(*self._tasks, self.num_groups)} groups. "
                    "Give one number per group; for a joint task, one row per task."
                )
        sums = np.sum(counts, axis=-1)
        if sums.min() < 1 or sums.min() != sums.max():
            raise ValueError(
                f"The counts {np.asarray(counts).tolist()} sum to {sums.tolist()}. Count at least one action; in a "
                "joint task an action chooses a group of each task, so the rows have the same sum."
            )
        gains = self._task_gains(reward)
        drawn_from = self.probabilities(observation) if behaviour is None else np.asarray(behaviour)
        if ((np.asarray(counts) > 0) & (drawn_from <= 0)).any():
            raise ValueError(
                f"Groups were chosen {np.asarray(counts).tolist()} times with probabilities {drawn_from.tolist()}. "
                "Learn from this agent's own actions, or give the probabilities they were drawn from: `behaviour`."
            )
        metrics = self._update(observation, np.asarray(counts), gains, behaviour)
        self._version += 1
        return metrics

    @abstractmethod
    def _update(
        self, observation: np.ndarray, counts: np.ndarray, gains: dict[str, float], behaviour: np.ndarray | None
    ) -> dict[str, float]:
        """Learn, see `update`; `gains` are the tasks' rewards by the prefix of their metrics ("" or "spatial/")."""

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        return {**super().state_dict(), "counts": self._counts.tolist()}

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {**super().state_schema(), "counts": self._lists(Number(int, below(2**63)), self.num_groups)}

    def state_conditions(self) -> dict[str, Callable[[Tree], bool]]:
        """Return what the parts of the state do together, see `Agent.state_conditions`."""
        return {
            **super().state_conditions(),
            "count as many actions in each task": lambda state: len(np.unique(np.sum(state["counts"], axis=-1))) == 1,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._counts[:] = state["counts"]

    def _task_gains(self, reward: float | Mapping[str, float]) -> dict[str, float]:
        """Return the reward of each task by the prefix of its metrics: "spatial/", or "" for a single task."""
        if isinstance(reward, Mapping):
            gains = {f"{task}/": float(own) for task, own in reward.items()}
        else:
            gains = {"": float(reward)}
        if isinstance(reward, Mapping) != bool(self._tasks) or len(gains) != self.num_tasks:
            raise ValueError(
                f"The reward is {reward}, this agent was built for {self.action_space}. Give a number for a single "
                "task, and info['task_rewards'], one number per task, for a joint task."
            )
        if not all(math.isfinite(own) for own in gains.values()):
            raise ValueError(f"The reward is {reward}, it must be finite. End the run when the network diverges.")
        return gains

    def _end_episode(self) -> None:
        """Drop everything that must not be credited with rewards of the next episode."""
        self._counts[:] = 0


def tilt(fractions: np.ndarray, group: int | np.ndarray, share: float) -> np.ndarray:
    """Return the random policy tilted towards one group: (1 - share) f + share e_group.

    Training on one group alone for a whole update is destructive (`experiments/studies/defaults.py`: with m = B nothing
    is learned), so most agents keep `share` below 1 and leave the rest to all permutations equally.

    Args:
        fractions: f, the sizes of the groups, (|C|,), joint task (T, |C|); rows sum to 1.
        group: The preferred group, joint task (T,). If it is empty, the easiest group that is not empty replaces it,
            as in the environment itself.
        share: Probability given to the group in addition to its share of the rest, in [0, 1].

    Returns:
        Probabilities of the shape of `fractions`.
    """
    groups = np.arange(fractions.shape[-1])
    easiest = np.where(fractions > 0, groups, 0).max(axis=-1, keepdims=True)  # [*tasks, 1]
    wanted = np.broadcast_to(np.expand_dims(group, -1), easiest.shape)  # [*tasks, 1]
    full = np.take_along_axis(fractions, wanted, axis=-1) > 0  # [*tasks, 1]
    return (1 - share) * fractions + share * (groups == np.where(full, wanted, easiest))


def _task_rewards(transition: Transition) -> Mapping[str, float]:
    info, reward = transition.info, float(transition.reward)
    if "task_rewards" not in info:
        raise ValueError(
            "In a joint task each task is credited with its own reward: info['task_rewards'] must contain the reward "
            f"of each task by name, in the order of the observation's rows, got {info}. Pass the info that `env.step` "
            "returned."
        )
    mean = float(np.mean(list(info["task_rewards"].values())))
    if not math.isclose(mean, reward, rel_tol=1e-6, abs_tol=1e-9):
        raise ValueError(
            f"The reward is {reward}, the mean of info['task_rewards'] is {mean}: in a joint task each task is "
            "credited with its own. Let the wrapper that changes the reward set info['task_rewards'] too."
        )
    return info["task_rewards"]


def _policy_shape(observation_space: gym.Space, action_space: gym.Space) -> tuple[int, ...]:
    """Return (|C|,), or (T, |C|) for a joint task; refuse spaces that are not as described in `GroupAgent`."""
    if isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0:
        shape: tuple[int, ...] = (int(action_space.n),)
    elif (
        isinstance(action_space, gym.spaces.MultiDiscrete)
        and action_space.nvec.ndim == 1
        and len(np.unique(action_space.nvec)) == 1
        and not action_space.start.any()
    ):
        shape = (len(action_space.nvec), int(action_space.nvec[0]))
    else:
        raise ValueError(
            f"The action space is {action_space}, agents choose from Discrete(groups), or from "
            "MultiDiscrete([groups] * tasks) for a joint task, that start at 0. "
            "Use the environment's own action space, with the same number of groups for every task."
        )
    if not isinstance(observation_space, gym.spaces.Box) or observation_space.shape != (*shape, 2):
        raise ValueError(
            f"The observation space is {observation_space}, with the actions {action_space} agents need a Box of shape "
            f"{(*shape, 2)}. Remove wrappers that change the observation, such as FlattenObservation."
        )
    return shape
