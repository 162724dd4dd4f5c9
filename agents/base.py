"""The protocol every agent follows, and the one file an agent is saved to."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from permenv import checkpoint
from permenv.checkpoint import CheckpointError

Action = int | np.ndarray  # a group, or (T,) of them: one for each task of a joint one
Tree = dict[str, Any]  # nested dicts and lists of tensors and JSON-able values


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of the environment, as an agent learns from it.

    Attributes:
        observation: ŝ on which the action was taken.
        action: The group that was chosen; joint (T,), the groups.
        reward: r_t where the step ended an update, else 0; joint: the mean of the tasks'.
        observation_next: ŝ after the step.
        terminated: Whether the run ended for good (the network diverged).
        truncated: Whether the run ended because its time was up.
        info: At least "validated" (bool), whether the step ended with a validation, and "phase", "update" where the
            policy is to be credited for the action, "free" where it is not. Joint: also "task_rewards", each task's
            r_t by the task's name, in the order of the observation's rows.
    """

    observation: np.ndarray
    action: Action
    reward: SupportsFloat
    observation_next: np.ndarray
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Agent(ABC):
    """Chooses groups of permutations from the network's state ŝ, and may learn from what came of it.

    One run is:

    ```python
    observation, info = env.reset(seed=seed)
    while not done:
        action = agent.act(observation)
        observation_next, reward, terminated, truncated, info = env.step(action)
        agent.learn(Transition(observation, action, reward, observation_next, terminated, truncated, info))
        observation, done = observation_next, terminated or truncated
    ```

    An agent draws from generators of its own; the global random states stay untouched.

    A joint task is T tasks at once. Everything an agent takes or returns has then one more axis in front, a row
    a task in the order of the environment's; the shapes below are those of a single task, which has no such axis.
    Written along the last axes, an agent serves both.

    Args:
        observation_space: Box of shape (|C|, 2), ŝ of Eq. 10: column 0 the fraction |c_j| / |Ψ| of the
            permutations that lie in group j, column 1 the median of the group's softmax ratios. Joint: (T, |C|, 2).
        action_space: Discrete(|C|), the group to draw the next permutations from. Joint: MultiDiscrete([|C|] * T).
        seed: Seeds everything the agent draws, >= 0.

    Attributes:
        num_tasks: T, 1 for a single task.
        num_groups: |C|.

    Raises:
        ValueError: If the spaces are others.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int) -> None:
        *tasks, self.num_groups = _policy_shape(observation_space, action_space)
        self._tasks = tuple(tasks)  # () or (T,), the axis in front
        self.num_tasks = math.prod(self._tasks)
        self.observation_space = observation_space
        self.action_space = action_space
        self._generator = np.random.default_rng(seed)
        self._version = 0
        self._drawn_for: tuple[int, bytes] | None = None  # the version and observation of the next two
        self._probabilities = np.empty(0)
        self._cumulative = np.empty(0)

    @abstractmethod
    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return π(. | ŝ), with which `act` draws.

        Args:
            observation: ŝ, (|C|, 2); joint (T, |C|, 2).

        Returns:
            (|C|,) float64, sums to 1; exactly 0 for an empty group, which has no permutation to draw. Joint:
            (T, |C|), a distribution a task.

        Raises:
            ValueError: If the observation is not an ŝ of this agent's space.
        """

    def act(self, observation: np.ndarray) -> Action:
        """Draw a group from `probabilities`, one for each task of a joint one; never one of probability 0.

        Args:
            observation: ŝ, (|C|, 2); joint (T, |C|, 2).

        Returns:
            The group, an int in [0, |C|). Joint: (T,) int64.

        Raises:
            ValueError: If the observation is not an ŝ of this agent's space.
        """
        self._refresh(observation)
        # The first index whose cumulative probability exceeds a number in [0, 1): a group of probability 0
        # does not exceed its predecessor, and the last entry is exactly 1.
        numbers = self._generator.random(self._tasks)  # [*tasks]
        groups = (self._cumulative <= numbers[..., None]).sum(axis=-1, dtype=np.int64)  # [*tasks]
        return groups if self._tasks else int(groups)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Take in one step of the environment; an agent that does not learn ignores it.

        Returns:
            What is worth logging when the policy was updated, else nothing.
        """
        return {}

    @property
    def version(self) -> int:
        """How often the policy changed; equal versions give equal probabilities on equal observations."""
        return self._version

    def state_dict(self) -> Tree:
        """Return everything that moves, as copies: a nested dict of tensors and JSON-able values."""
        return {"signature": self._signature(), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Tree) -> None:
        """Continue bit for bit where `state_dict` was taken, given the same constructor arguments.

        Raises:
            ValueError: If the state is another agent's, or one of other sizes; this agent is unchanged then.
        """
        if state.get("signature") != self._signature():
            raise ValueError(
                f"A state of {state.get('signature')} does not fit an agent of {self._signature()}. "
                "Build the agent as the saved one was built."
            )
        self._generator.bit_generator.state = state["generator"]
        self._version += 1

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file; an existing file is replaced whole or not at all."""
        checkpoint.write(path, {"agent": self.state_dict()})

    def load(self, path: str | Path) -> None:
        """Load what `save` wrote.

        Raises:
            CheckpointError: If there is no such file, or it is damaged or holds no agent.
            ValueError: If it holds another agent or one of other sizes; this agent is unchanged then.
        """
        tree = checkpoint.read(path)
        if "agent" not in tree:
            raise CheckpointError(f"{path} holds no agent: name a file that an agent's save() or a run wrote")
        try:
            self.load_state_dict(tree["agent"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _signature(self) -> Tree:
        """Return what two agents must have in common for one to continue the other's state."""
        return {"agent": type(self).__name__, "tasks": self.num_tasks, "groups": self.num_groups}

    def _refresh(self, observation: np.ndarray) -> None:
        """Recompute the distribution where the observation or the policy changed.

        Between two validations neither does, and a mini-batch asks for an action a sample.
        """
        drawn_for = (self.version, np.asarray(observation).tobytes())
        if drawn_for != self._drawn_for:
            self._probabilities = self.probabilities(observation)
            cumulative = np.cumsum(self._probabilities, axis=-1)
            self._cumulative = cumulative / cumulative[..., -1:]
            self._drawn_for = drawn_for

    def _fractions(self, observation: np.ndarray) -> np.ndarray:
        """Return |c_j| / |Ψ|, (|C|,) float64 that sum to 1, of an observation checked to be an ŝ; joint (T, |C|)."""
        observation = np.asarray(observation, dtype=np.float64)  # [*tasks, groups, 2]
        if observation.shape != self.observation_space.shape:
            raise ValueError(
                f"The observation has shape {observation.shape}, this agent was built for "
                f"{self.observation_space.shape}. Build the agent with the environment's own spaces."
            )
        fractions = observation[..., 0]
        total = fractions.sum(axis=-1, keepdims=True)
        if not np.isfinite(observation).all() or (fractions < 0).any() or (total <= 0).any():
            raise ValueError(
                "An observation's column 0 must hold the groups' sizes and nothing may be NaN or infinite, "
                f"got {observation.tolist()}. Pass the environment's observation as it is."
            )
        return fractions / total  # float32 fractions sum to 1 only to seven digits


class Learner(Agent):
    """An agent that learns once an update: its K actions share one ŝ and one reward.

    A subclass defines `probabilities` and `_update`.

    Args:
        observation_space: See `Agent`.
        action_space: See `Agent`.
        seed: Seeds everything the agent draws, >= 0.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        self._counts = np.zeros((*self._tasks, self.num_groups), dtype=np.int64)  # the update's actions so far

    def learn(self, transition: Transition, behaviour: np.ndarray | None = None) -> dict[str, float]:
        """Collect the action; where its update ends, learn from it.

        An update ends with its validation, or early with a termination, whose reward its actions so far have
        earned. Actions of a "free" phase are the training between updates (section 3.2) and not credited.

        Args:
            transition: One step.
            behaviour: The probabilities, (|C|,), with which the update's actions were drawn, if not by this policy;
                joint (T, |C|).

        Returns:
            What `update` returns; nothing where no update ended.

        Raises:
            ValueError: If the action is not a group, or `info` lacks the phase, the validation or, of a joint task,
                the tasks' rewards.
        """
        action, info = transition.action, transition.info
        if not self.action_space.contains(action):
            raise ValueError(f"The action {action!r} is no group of {self.action_space}. Pass what `act` returned.")
        metrics = {}
        if in_update(info):
            self._counts += np.arange(self.num_groups) == np.expand_dims(action, -1)
            if info["validated"] or transition.terminated:
                gain = _task_rewards(info) if self._tasks else float(transition.reward)
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
            observation: ŝ that the actions share, (|C|, 2); joint (T, |C|, 2).
            counts: How often each group was chosen, (|C|,) ints, K >= 1 in all; joint (T, |C|), K a row.
            reward: r_t, finite. Joint: the tasks' by their names, in the order of the observation's rows.
            behaviour: Probabilities that drew the actions, (|C|,), joint (T, |C|); None for this policy's own.

        Returns:
            What is worth logging.

        Raises:
            ValueError: If there is not one finite reward a task, the counts or the probabilities have another shape,
                or an action was counted that could not be drawn.
        """
        for name, given in {"counts": counts, "behaviour": behaviour}.items():
            if given is not None and np.shape(given) != (*self._tasks, self.num_groups):
                raise ValueError(
                    f"{name} has shape {np.shape(given)}, this agent has {(*self._tasks, self.num_groups)} groups. "
                    "Give a number for each group, of a joint task in a row for each task."
                )
        gains = self._task_gains(reward)
        drawn_from = self.probabilities(observation) if behaviour is None else np.asarray(behaviour)
        if ((np.asarray(counts) > 0) & (drawn_from <= 0)).any():
            raise ValueError(
                f"Groups were chosen {np.asarray(counts).tolist()} times with probabilities {drawn_from.tolist()}. "
                "Learn from this agent's own actions, or give the probabilities they were drawn with: `behaviour`."
            )
        metrics = self._update(observation, np.asarray(counts), gains, behaviour)
        self._version += 1
        return metrics

    @abstractmethod
    def _update(
        self, observation: np.ndarray, counts: np.ndarray, gains: dict[str, float], behaviour: np.ndarray | None
    ) -> dict[str, float]:
        """Learn, see `update`; `gains` are the tasks' rewards, by the prefix of their metrics ("" or "spatial/")."""

    def state_dict(self) -> Tree:
        """Return everything that moves, see `Agent.state_dict`."""
        return {**super().state_dict(), "counts": self._counts.tolist()}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._counts[:] = state["counts"]

    def _task_gains(self, reward: float | Mapping[str, float]) -> dict[str, float]:
        """Return each task's reward by the prefix of the task's metrics: "spatial/", "" for a single task."""
        if isinstance(reward, Mapping):
            gains = {f"{task}/": float(own) for task, own in reward.items()}
        else:
            gains = {"": float(reward)}
        if isinstance(reward, Mapping) != bool(self._tasks) or len(gains) != self.num_tasks:
            raise ValueError(
                f"The reward is {reward}, this agent was built for {self.action_space}. Give a single task's as a "
                "number, a joint task's as info['task_rewards'], a number for each task."
            )
        if not all(math.isfinite(own) for own in gains.values()):
            raise ValueError(f"The reward is {reward}. End the run where the network diverges, with a finite one.")
        return gains

    def _end_episode(self) -> None:
        """Forget what no later reward may be credited to."""
        self._counts[:] = 0


def leaning(fractions: np.ndarray, group: int | np.ndarray, share: float) -> np.ndarray:
    """Return the distribution that leans to one group: (1 - share) f + share e_group.

    One group alone for a whole update is destructive (README: with m = B nothing is learned), so most of those who
    lean leave a share to all permutations alike.

    Args:
        fractions: f, the groups' sizes, (|C|,), joint (T, |C|); rows sum to 1.
        group: The group leant to, joint (T,). Where it is empty, the easiest that is not stands in for it, as in the
            environment itself.
        share: Chance of the group beside its chance as a part of f, in [0, 1].

    Returns:
        Probabilities of the shape of `fractions`.
    """
    groups = np.arange(fractions.shape[-1])
    easiest = np.where(fractions > 0, groups, 0).max(axis=-1, keepdims=True)  # [*tasks, 1]
    wanted = np.broadcast_to(np.expand_dims(group, -1), easiest.shape)  # [*tasks, 1]
    full = np.take_along_axis(fractions, wanted, axis=-1) > 0  # [*tasks, 1]
    return (1 - share) * fractions + share * (groups == np.where(full, wanted, easiest))


def require(name: str, value: float | str, satisfied: bool, required: str) -> None:
    """Refuse an option that is out of its range.

    Raises:
        ValueError: If it is.
    """
    if not satisfied:
        raise ValueError(f"{name} is {value}, it must be {required}.")


def in_update(info: dict[str, Any]) -> bool:
    """Return whether a step's action belongs to an update rather than to the free iterations before it.

    Raises:
        ValueError: If `info` does not say so, or not whether the step ended with a validation.
    """
    if info.get("phase") not in ("update", "free") or "validated" not in info:
        raise ValueError(
            f"info['phase'] must be 'update' or 'free' and info['validated'] given, got {info}. "
            "Pass the info that `env.step` returned."
        )
    return info["phase"] == "update"


def _task_rewards(info: dict[str, Any]) -> Mapping[str, float]:
    if "task_rewards" not in info:
        raise ValueError(
            "A joint task's agent is credited task by task: info['task_rewards'] must hold each task's reward by its "
            f"name, in the order of the observation's rows, got {info}. Pass the info that `env.step` returned."
        )
    return info["task_rewards"]


def _policy_shape(observation_space: gym.Space, action_space: gym.Space) -> tuple[int, ...]:
    """Return (|C|,), of a joint task (T, |C|); or refuse spaces that are not those of `Agent`."""
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
            "Use the environment's own action space, with as many groups for every task."
        )
    if not isinstance(observation_space, gym.spaces.Box) or observation_space.shape != (*shape, 2):
        raise ValueError(
            f"The observation space is {observation_space}, with actions of {action_space} agents read Box of shape "
            f"{(*shape, 2)}. Remove wrappers that change the observation, such as FlattenObservation."
        )
    return shape
