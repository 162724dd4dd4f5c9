"""The policies that learning ones are compared with: the paper's, appendix F, and curricula fixed in advance."""

from typing import ClassVar

import gymnasium as gym
import numpy as np

from agents.base import Agent, Transition, Tree, in_update, leaning, require
from agents.reinforce import Reinforce


class RandomPolicy(Agent):
    """The random policy: every permutation is equally likely, so group j is chosen with |c_j| / |Ψ|.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018, appendix F: the baseline of its Table F.1, and the usual way to train on permutations.
    """

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the groups' sizes, see `Agent.probabilities`."""
        return self._fractions(observation)


class UniformGroups(Agent):
    """Every group that is not empty alike, whatever its size: permutations of small groups are drawn more often."""

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return one over the number of groups that are not empty, see `Agent.probabilities`."""
        full = self._fractions(observation) > 0  # [*tasks, groups]
        return full / np.count_nonzero(full, axis=-1, keepdims=True)


class FixedGroup(Agent):
    """Always the same group; where it is empty the easiest that is not, as in the environment itself.

    Args:
        observation_space: See `Agent`.
        action_space: See `Agent`.
        seed: As every agent has one; nothing is left to chance here.
        group: Its rank, 0 the hardest; of a joint task every task's.

    Raises:
        ValueError: If there is no such group.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int, group: int = 0) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        require("group", group, 0 <= group < self.num_groups, f"from 0 to {self.num_groups - 1}")
        self.group = group

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return 1 for the group and 0 for all others, see `Agent.probabilities`."""
        return leaning(self._fractions(observation), self.group, share=1.0)


class GrowingPool(Agent):
    """Draws alike all permutations of a pool that grows group by group, until it holds them all.

    With n updates completed, the pool is the first permutations in the subclass's order that make up the share

        start + (1 - start) min(n / updates, 1)

    of Ψ. A group on the pool's boundary counts with the part of it that is inside: which of its permutations these
    are is left open, so each of them has the same, smaller chance.

    The updates are counted from the transitions. One agent serves one run: the pool does not shrink again.

    Args:
        observation_space: See `Agent`.
        action_space: See `Agent`.
        seed: Seeds everything the agent draws, >= 0.
        start: Share of Ψ in the first pool, above 0 and at most 1.
        updates: After how many updates the pool is all of Ψ, >= 1: those of the run, so that its last pools are nearly
            the random policy.

    Raises:
        ValueError: If an option is out of its range.
    """

    _order: ClassVar[slice]  # of the groups: those that the pool takes in first come first; its own inverse

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
        self.start = start
        self.updates = updates
        self._completed = 0

    @property
    def share(self) -> float:
        """How much of Ψ is in the pool now, in (0, 1]."""
        return self.start + (1 - self.start) * min(self._completed / self.updates, 1)

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the groups' parts of the pool, see `Agent.probabilities`."""
        fractions = self._fractions(observation)[..., self._order]  # [*tasks, groups]
        before = np.cumsum(fractions, axis=-1) - fractions
        inside = np.clip(self.share - before, 0, fractions)[..., self._order]
        return inside / inside.sum(axis=-1, keepdims=True)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Count the updates, see `Agent.learn`."""
        if in_update(transition.info) and transition.info["validated"]:
            self._completed += 1
            self._version += 1
        return {}

    def state_dict(self) -> Tree:
        """Return everything that moves, see `Agent.state_dict`."""
        return {**super().state_dict(), "completed": self._completed}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._completed = state["completed"]


class HardestFirst(GrowingPool):
    """Begins with the hardest permutations and takes in easier ones.

    The reverse of self-paced learning, in the spirit of hard example mining (Shrivastava, Gupta, Girshick, "Training
    Region-Based Object Detectors with Online Hard Example Mining", CVPR 2016). See `GrowingPool` for the pool and the
    arguments.
    """

    _order = slice(None)


class EasiestFirst(GrowingPool):
    """Begins with the easiest permutations and takes in harder ones: self-paced learning.

    Kumar, Packer, Koller, "Self-Paced Learning for Latent Variable Models", NIPS 2010: the easy samples are those
    with a small loss, and a threshold that rises lets in the others. Here a group's median ratio stands for the loss,
    and the pool's share for the threshold. See `GrowingPool` for the pool and the arguments.
    """

    _order = slice(None, None, -1)


class ErrorProportional(Agent):
    """A permutation's chance is proportional to how hard its group is: π_j ∝ f_j (2 - median_j).

    The median ratio of Eq. 3 goes from 0.5 (certain of another permutation) to 2 (certain and right), so a hardest
    permutation is drawn as often as can be and one that is always recognised never. ŝ does not hold the error itself:
    the median says how sure the network is of the truth, not how often it is right. Where every group is perfect,
    all permutations are alike.
    """

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the groups' sizes times their difficulties, see `Agent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        weights = fractions * np.clip(2 - np.asarray(observation, dtype=np.float64)[..., 1], 0, None)
        total = weights.sum(axis=-1, keepdims=True)
        return np.where(total > 0, weights, fractions) / np.where(total > 0, total, 1)


class InversePolicy(Agent):
    """Prefers the permutations that another policy discards.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018, appendix F, which leaves the formula open. Here the given policy's lean away from the random
    policy f_j = |c_j| / |Ψ| changes its sign: log q_j = log f_j - (log π_j - log f_j) + constant, or

        q_j ∝ f_j² / π_j.

    So the inverse of the random policy is random, the inverse of the inverse is the policy itself, and the
    inverse of a uniform choice of groups does not drill the small groups. A joint task's policies are each inverted.

    Args:
        policy: π, owned from now on: its state is part of this agent's.
        seed: Seeds the actions; the policy's own generator is not used.
        policy_learns: Whether π goes on learning from what its inverse does, with importance weights
            (`Reinforce.update`), or stays as it is, as in the paper's one epoch.

    Raises:
        ValueError: If `policy_learns` and the policy has no off-policy update.
    """

    def __init__(self, policy: Agent, *, seed: int, policy_learns: bool = False) -> None:
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
        """How often the given policy changed, and with it this one."""
        return self.policy.version

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return q ∝ f² / π, see `Agent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        policy = self.policy.probabilities(observation)  # [*tasks, groups]
        # In logarithms, for 1 / π overflows where π is tiny; a π of 0 is taken for the smallest number above.
        log_policy = np.log(np.maximum(policy, np.finfo(np.float64).tiny))
        with np.errstate(divide="ignore"):  # an empty group has log 0 = -inf, and no chance
            log_inverse = 2 * np.log(fractions) - log_policy
        inverse = np.exp(log_inverse - log_inverse.max(axis=-1, keepdims=True))
        return inverse / inverse.sum(axis=-1, keepdims=True)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Let the given policy learn where it should, see `Agent.learn` and `Learner.learn`."""
        if not (self.policy_learns and isinstance(self.policy, Reinforce)):
            return {}
        self._refresh(transition.observation)
        return self.policy.learn(transition, self._probabilities)

    def state_dict(self) -> Tree:
        """Return everything that moves, the given policy's state included, see `Agent.state_dict`."""
        return {**super().state_dict(), "policy": self.policy.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.policy.load_state_dict(state["policy"])

    def _signature(self) -> Tree:
        return {**super()._signature(), "policy": self.policy._signature()}
