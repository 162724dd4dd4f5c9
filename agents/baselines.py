"""Policies to compare learned policies with: those of the paper's appendix F, and curricula fixed in advance."""

from typing import ClassVar

import gymnasium as gym
import numpy as np

from agents.base import Transition, Tree, in_update, require
from agents.groups import GroupAgent, tilt
from agents.reinforce import Reinforce
from permenv.config import Range
from permenv.grouping import pool_probabilities
from permenv.schema import COUNT, Number, Schema, Where


class RandomPolicy(GroupAgent):
    """The random policy: every permutation is equally likely, so group j has probability |c_j| / |Ψ|.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018, appendix F: the baseline of Table F.1, and the usual way to train on permutations.
    """

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the sizes of the groups, see `GroupAgent.probabilities`."""
        return self._fractions(observation)


class UniformGroups(GroupAgent):
    """Every group that is not empty is equally likely: permutations in small groups are drawn more often."""

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return 1 over the number of groups that are not empty, see `GroupAgent.probabilities`."""
        full = self._fractions(observation) > 0  # [*tasks, groups]
        return full / np.count_nonzero(full, axis=-1, keepdims=True)


class FixedGroup(GroupAgent):
    """Always the same group; if it is empty, the easiest group that is not empty, as in the environment itself.

    Args:
        observation_space: See `GroupAgent`.
        action_space: See `GroupAgent`.
        seed: Has no effect; it is here because every agent has one.
        group: Rank of the group, 0 is the hardest; in a joint task, that of every task.

    Raises:
        ValueError: If there is no such group.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int, group: int = 0) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        require("group", group, 0 <= group < self.num_groups, f"from 0 to {self.num_groups - 1}")
        self.group = group

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return 1 for the group and 0 for all others, see `GroupAgent.probabilities`."""
        return tilt(self._fractions(observation), self.group, share=1.0)


class GrowingPool(GroupAgent):
    """Draws uniformly from a pool of permutations that grows group by group until it contains all of Ψ.

    After n updates, the pool consists of the first permutations, in the order of the subclass, that make up the share

        start + (1 - start) min(n / updates, 1)

    of Ψ. A group that is only partly inside counts with that part, see `permenv.grouping.pool_probabilities`.

    The updates are counted from the transitions. Use a new agent for every run: the pool never shrinks. A state that is
    loaded brings its `start` and `updates`, so that a run that is continued with more updates keeps its pace.

    Args:
        observation_space: See `GroupAgent`.
        action_space: See `GroupAgent`.
        seed: Seeds everything the agent draws, >= 0.
        start: Share of Ψ in the first pool, above 0 and at most 1.
        updates: Number of updates after which the pool is all of Ψ, >= 1. With the number of updates of the run, its
            last pools are close to the random policy.

    Raises:
        ValueError: If an option is out of its range.
    """

    _hardest_first: ClassVar[bool]  # the order in which the groups enter the pool

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        seed: int,
        start: float = 0.5,
        updates: int = 30,
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        require("start", start, 0 < start <= 1, "above 0 and at most 1")
        require("updates", updates, updates >= 1, "at least 1")
        self.start = float(start)
        self.updates = int(updates)
        self._completed = 0

    @property
    def share(self) -> float:
        """Share of Ψ that is in the pool now, in (0, 1]."""
        return self.start + (1 - self.start) * min(self._completed / self.updates, 1)

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the share of each group in the pool, see `GroupAgent.probabilities`."""
        return pool_probabilities(self._fractions(observation), self.share, hardest_first=self._hardest_first)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Count the updates, see `Agent.learn`."""
        if in_update(transition.info) and transition.info["validated"]:
            self._completed += 1
            self._version += 1
        return {}

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        pace = {"start": self.start, "updates": self.updates}
        return {**super().state_dict(), **pace, "completed": self._completed}

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {
            **super().state_schema(),
            "start": Where(Number(float, Range(0, 1)), {"be above 0": lambda start: start > 0}),
            "updates": Number(int, Range(1, below=2**63)),
            "completed": COUNT,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.start, self.updates, self._completed = state["start"], state["updates"], state["completed"]


class HardestFirst(GrowingPool):
    """Begins with the hardest permutations and adds easier ones.

    The reverse of self-paced learning, in the spirit of hard example mining (Shrivastava, Gupta, Girshick, "Training
    Region-Based Object Detectors with Online Hard Example Mining", CVPR 2016). See `GrowingPool` for the pool and the
    arguments.
    """

    _hardest_first = True


class EasiestFirst(GrowingPool):
    """Begins with the easiest permutations and adds harder ones: self-paced learning.

    Kumar, Packer, Koller, "Self-Paced Learning for Latent Variable Models", NIPS 2010: the easy samples are those
    with a small loss, and a rising threshold admits the others. Here the median ratio of a group takes the place of
    the loss, and the share of the pool that of the threshold. See `GrowingPool` for the pool and the arguments.
    """

    _hardest_first = False


class DifficultyProportional(GroupAgent):
    """Draws a permutation with probability proportional to the difficulty of its group: π_j ∝ f_j (2 - median_j).

    The difficulty is read from ŝ: it is 2 minus the median ratio (Eq. 3) of the group. The ratio goes from 0.5 (certain
    of a wrong permutation) to 2 (certain of the right one), so the difficulty goes from 1.5 down to 0, where a group is
    not drawn at all. It is not the error, which ŝ does not contain: the median says how confident the network is in
    the right permutation, not how often it recognises it. If the difficulty of every group is 0, all permutations are
    equally likely.
    """

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return size times difficulty of each group, normalised, see `GroupAgent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        weights = fractions * np.clip(2 - np.asarray(observation, dtype=np.float64)[..., 1], 0, None)
        total = weights.sum(axis=-1, keepdims=True)
        return np.where(total > 0, weights, fractions) / np.where(total > 0, total, 1)


class InversePolicy(GroupAgent):
    """Prefers the permutations that another policy avoids.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018, appendix F, which does not give the formula. Here the sign of the policy's tilt away from the random
    policy f_j = |c_j| / |Ψ| is reversed: log q_j = log f_j - (log π_j - log f_j) + constant, or

        q_j ∝ f_j² / π_j.

    So the inverse of the random policy is the random policy, the inverse of the inverse is the policy itself, and the
    inverse of a uniform choice of groups does not over-sample small groups. In a joint task the policy of each task is
    inverted.

    Args:
        policy: π, from now on a part of this agent, whose state includes it.
        seed: Seeds the actions; the generator of the policy is not used.
        policy_learns: Whether π keeps learning from the actions of its inverse, with importance weights
            (`Reinforce.update`), or stays fixed, as in the paper's single epoch.

    Raises:
        ValueError: If `policy_learns` is True and the policy has no off-policy update.
    """

    def __init__(self, policy: GroupAgent, *, seed: int, policy_learns: bool = False) -> None:
        super().__init__(policy.observation_space, policy.action_space, seed=seed)
        if policy_learns and not isinstance(policy, Reinforce):
            raise ValueError(
                f"{type(policy).__name__} cannot learn from another policy's actions. "
                "Invert a Reinforce, or leave policy_learns=False."
            )
        self.policy = policy
        self.policy_learns = policy_learns

    @property
    def version(self) -> int:
        """Number of changes of the given policy, each of which changes this one."""
        return self.policy.version

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return q ∝ f² / π, see `GroupAgent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        policy = self.policy.probabilities(observation)  # [*tasks, groups]
        # In logarithms, because 1 / π overflows for tiny π; π = 0 is replaced by the smallest positive number.
        log_policy = np.log(np.maximum(policy, np.finfo(np.float64).tiny))
        with np.errstate(divide="ignore"):  # an empty group has log 0 = -inf and probability 0
            log_inverse = 2 * np.log(fractions) - log_policy
        inverse = np.exp(log_inverse - log_inverse.max(axis=-1, keepdims=True))
        return inverse / inverse.sum(axis=-1, keepdims=True)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Let the given policy learn if `policy_learns`, see `Agent.learn` and `Learner.learn`."""
        if not (self.policy_learns and isinstance(self.policy, Reinforce)):
            return {}
        self._refresh(transition.observation)
        return self.policy.learn(transition, self._probabilities)

    def state_dict(self) -> Tree:
        """Return everything that changes, including the state of the given policy, see `Agent.state_dict`."""
        return {**super().state_dict(), "policy": self.policy.state_dict()}

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {**super().state_schema(), "policy": self.policy._whole_schema()}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.policy.load_state_dict(state["policy"])

    def _signature(self) -> Tree:
        return {**super()._signature(), "policy": self.policy._signature()}
