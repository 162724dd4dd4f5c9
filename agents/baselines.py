"""The policies that the paper's is compared with, appendix F."""

import numpy as np

from agents.base import Agent, Transition, Tree
from agents.reinforce import Reinforce


class RandomPolicy(Agent):
    """The random policy: every permutation is equally likely, so group j is chosen with |c_j| / |Ψ|.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018, appendix F: the baseline of its Table F.1, and the usual way to train on permutations.
    """

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the groups' sizes, see `Agent.probabilities`."""
        return self._fractions(observation)


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
