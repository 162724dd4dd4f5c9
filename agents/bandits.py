"""Bandits: the groups, hardest first, are arms that are worth the same whatever ŝ says but the groups' sizes."""

from typing import Any

import gymnasium as gym
import numpy as np

from agents.base import Learner, Tree, leaning, require


class Exp3(Learner):
    """EXP3: exponential weights on importance-weighted rewards, which assumes nothing of how the rewards come about.

    Auer, Cesa-Bianchi, Freund, Schapire, "The Nonstochastic Multiarmed Bandit Problem", SIAM J. Comput. 32(1), 2002,
    section 3. The arms are the groups, but a weight w_j is relative to the group's size f_j = |c_j| / |Ψ|, so that the
    first policy is the random one and small groups are not drilled:

        p_j = (1 - γ) f_j w_j / Σ_i f_i w_i + γ f_j.

    An update's K actions share one reward, which is scaled by the lowest and highest of the task's so far to x in
    [0, 1] (0 while there is no range). The estimate of what group j is worth is the mean of the K importance-weighted
    ones, with c_j the number of draws:

        x̂_j = (c_j / K) x / p_j,    w_j ← w_j exp(η x̂_j).

    A group that could not be drawn, an empty one, gets what all have in expectation, x̂_j = x: it keeps its standing.

    A joint task's tasks are bandits of their own, each with its own rewards.

    Args:
        observation_space: See `Agent`.
        action_space: See `Agent`.
        seed: Seeds everything the agent draws, >= 0.
        gamma: γ, share of the random policy, in (0, 1]. 0.1 keeps every estimate's variance within ten times that
            under the random policy, and leaves the weights nine tenths of the choice.
        eta: η, above 0; None for √K / 10. The deviations of x̂_j from x, all that tells groups apart, scatter by
            x √((1 - p_j) / (p_j K)), so only with the √K does one number serve all K. A tenth is about the
            √(2 ln |C| / (|C| n)) that the regret's bound asks for with ten groups and n = 50 updates; in that time
            chance alone moves the log-weight of a tenth of the permutations by about 1.

    Raises:
        ValueError: If a space is not supported or an option is out of its range.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        seed: int,
        gamma: float = 0.1,
        eta: float | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        require("gamma", gamma, 0 < gamma <= 1, "above 0 and at most 1")
        require("eta", eta or 0.0, eta is None or 0 < eta < np.inf, "above 0 and finite, or None")
        self.gamma = gamma
        self.eta = eta
        self._log_weights = np.zeros((*self._tasks, self.num_groups))
        self._rewards = _RewardRange(self._tasks)

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return p of the class's docstring, see `Agent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        full = fractions > 0
        highest = self._log_weights.max(axis=-1, keepdims=True, where=full, initial=-np.inf)
        weighted = np.where(full, fractions * np.exp(np.minimum(self._log_weights - highest, 0)), 0)
        return (1 - self.gamma) * weighted / weighted.sum(axis=-1, keepdims=True) + self.gamma * fractions

    def _update(
        self, observation: np.ndarray, counts: np.ndarray, gains: dict[str, float], behaviour: np.ndarray | None
    ) -> dict[str, float]:
        """Reweight the groups, see `Learner.update`.

        Returns:
            "scaled_reward", x in [0, 1]; joint: of every task, "spatial/scaled_reward".
        """
        drawn_from = self.probabilities(observation) if behaviour is None else behaviour  # [*tasks, groups]
        num_actions = counts.sum(axis=-1, keepdims=True)  # K, [*tasks, 1]
        scaled = self._rewards.take_in(gains)  # [*tasks, 1]
        neutral = np.ones_like(self._log_weights)
        ratios = np.divide(counts / num_actions, drawn_from, where=drawn_from > 0, out=neutral)
        eta = np.sqrt(num_actions) / 10 if self.eta is None else self.eta
        self._log_weights += eta * ratios * scaled
        return _by_task("scaled_reward", gains, scaled)

    def state_dict(self) -> Tree:
        """Return everything that moves, see `Agent.state_dict`."""
        return {
            **super().state_dict(),
            "log_weights": self._log_weights.tolist(),
            "rewards": self._rewards.state_dict(),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._log_weights[:] = state["log_weights"]
        self._rewards.load_state_dict(state["rewards"])


class Ucb(Learner):
    """UCB1: optimism, the arm that could be the best of all given what is known of it.

    Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine Learning 47, 2002.
    Playing an arm is to lean to a group for one whole update: an action is the arm's group with the chance `share`,
    else any permutation alike, because one group alone for a whole update destroys what was learned. With n_j the
    updates that leant to group j, t their sum and m_j the mean of their rewards, scaled by the lowest and highest of
    the task's so far to [0, 1], the arm is that with the highest

        m_j + c √(2 ln t / n_j).

    Groups that were not yet played come first, in random order. An empty group is not played.

    During the free iterations before an update its arm is in play too; only what follows counts. A joint task's
    tasks are bandits of their own, each with its own arms and rewards.

    Args:
        observation_space: See `Agent`.
        action_space: See `Agent`.
        seed: Seeds everything the agent draws, >= 0.
        share: Chance of the arm's group, beside its chance as any other, in [0, 1].
        c: Weight of what is not known, >= 0. 1 is UCB1 to the letter, a bound for rewards that may scatter over all of
            [0, 1]; then tens of updates are spent on nothing but taking turns.

    Raises:
        ValueError: If a space is not supported or an option is out of its range.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        seed: int,
        share: float = 0.5,
        c: float = 0.5,
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        require("share", share, 0 <= share <= 1, "in [0, 1]")
        require("c", c, 0 <= c < np.inf, "at least 0 and finite")
        self.share = share
        self.c = c
        shape = (*self._tasks, self.num_groups)
        self._precedence = self._generator.random(shape)  # decides between equals
        self._plays = np.zeros(shape, dtype=np.int64)
        self._totals = np.zeros(shape)  # of the rewards
        self._rewards = _RewardRange(self._tasks)

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the distribution that leans to the arm, see `Agent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        return leaning(fractions, self._arm(fractions), self.share)

    def _arm(self, fractions: np.ndarray) -> np.ndarray:
        """Return the arm in play, () or (T,).

        It follows from what is known, which does not change before the update's end, and from which groups are empty.
        """
        played = self._plays > 0
        plays = np.where(played, self._plays, 1)
        trials = np.maximum(self._plays.sum(axis=-1, keepdims=True), 1)
        index = self._rewards.scaled(self._totals / plays) + self.c * np.sqrt(2 * np.log(trials) / plays)
        index = np.where(played, index, np.inf)
        index = np.where(fractions > 0, index, -np.inf)
        best = index == index.max(axis=-1, keepdims=True)
        return np.where(best, self._precedence, -1).argmax(axis=-1)

    def _update(
        self, observation: np.ndarray, counts: np.ndarray, gains: dict[str, float], behaviour: np.ndarray | None
    ) -> dict[str, float]:
        """Credit the arm in play, see `Learner.update`.

        Returns:
            "arm" and "scaled_reward", in [0, 1]; joint: of every task, "spatial/arm".

        Raises:
            ValueError: If other probabilities drew the actions: there was no arm of this agent's in play.
        """
        if behaviour is not None:
            raise ValueError(
                f"Ucb judges the arms it played, the actions were drawn with {np.asarray(behaviour).tolist()}. "
                "Let it learn from its own actions, or use Exp3, which weights those of others."
            )
        arm = np.expand_dims(self._arm(self._fractions(observation)), -1)  # [*tasks, 1]
        in_play = np.arange(self.num_groups) == arm  # [*tasks, groups]
        scaled = self._rewards.take_in(gains)  # [*tasks, 1]
        self._plays += in_play
        self._totals += in_play * _row_a_task(gains, self._tasks)
        return {**_by_task("arm", gains, arm), **_by_task("scaled_reward", gains, scaled)}

    def state_dict(self) -> Tree:
        """Return everything that moves, see `Agent.state_dict`; the arm in play follows from it."""
        return {
            **super().state_dict(),
            "precedence": self._precedence.tolist(),
            "plays": self._plays.tolist(),
            "totals": self._totals.tolist(),
            "rewards": self._rewards.state_dict(),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._precedence[:] = state["precedence"]
        self._plays[:] = state["plays"]
        self._totals[:] = state["totals"]
        self._rewards.load_state_dict(state["rewards"])


class _RewardRange:
    """The lowest and the highest reward so far, of each task, which [0, 1] stands for.

    Args:
        tasks: The axis in front, () or (T,).
    """

    def __init__(self, tasks: tuple[int, ...]) -> None:
        self._tasks = tasks
        self._low = np.full((*tasks, 1), np.inf)
        self._high = np.full((*tasks, 1), -np.inf)

    def take_in(self, gains: dict[str, float]) -> np.ndarray:
        """Widen the range to each task's reward and return them scaled, (1,) or (T, 1)."""
        rewards = _row_a_task(gains, self._tasks)
        self._low = np.minimum(self._low, rewards)
        self._high = np.maximum(self._high, rewards)
        return self.scaled(rewards)

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Return rewards within the range, any number a task, as numbers in [0, 1]; 0 where there is no range."""
        wide = self._high > self._low
        width = np.where(wide, self._high - self._low, 1)
        return np.where(wide, (rewards - np.where(wide, self._low, 0)) / width, 0)

    def state_dict(self) -> Tree:
        return {"low": self._low.tolist(), "high": self._high.tolist()}

    def load_state_dict(self, state: Tree) -> None:
        self._low[:] = state["low"]
        self._high[:] = state["high"]


def _row_a_task(gains: dict[str, float], tasks: tuple[int, ...]) -> np.ndarray:
    """Return the tasks' rewards, (1,) or (T, 1)."""
    return np.reshape(list(gains.values()), (*tasks, 1))


def _by_task(name: str, gains: dict[str, float], values: np.ndarray) -> dict[str, Any]:
    """Return a metric of every task, under the task's prefix."""
    return {f"{prefix}{name}": value for prefix, value in zip(gains, values.ravel().tolist(), strict=True)}
