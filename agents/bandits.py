"""Bandits: each group, by its rank from the hardest to the easiest, is an arm; of ŝ they use only the sizes."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from agents.base import Tree, require
from agents.groups import Learner, tilt
from permenv.config import Range
from permenv.schema import Fields, Number, Schema, Where, below


class Exp3(Learner):
    """EXP3: exponential weights on importance-weighted rewards, with no assumption about how rewards are generated.

    Auer, Cesa-Bianchi, Freund, Schapire, "The Nonstochastic Multiarmed Bandit Problem", SIAM J. Comput. 32(1), 2002,
    section 3. The arms are the groups, but a weight w_j is relative to the group's size f_j = |c_j| / |Ψ|, so that the
    initial policy is the random policy and small groups are not over-sampled:

        p_j = (1 - γ) f_j w_j / Σ_i f_i w_i + γ f_j.

    The K actions of an update share one reward. It is scaled to x in [0, 1] by the lowest and the highest reward of the
    task so far (x = 0 until two rewards differ). The estimated value of group j is the mean of the K
    importance-weighted estimates, with c_j the number of times it was drawn:

        x̂_j = (c_j / K) x / p_j,    w_j ← w_j exp(η x̂_j).

    An empty group cannot be drawn. It gets the value that all groups have in expectation, x̂_j = x, which leaves its
    weight relative to the others unchanged.

    In a joint task each task is a separate bandit with its own rewards.

    Args:
        observation_space: See `GroupAgent`.
        action_space: See `GroupAgent`.
        seed: Seeds everything the agent draws, >= 0.
        gamma: γ, share of the random policy, in (0, 1]. 0.1 bounds the variance of every estimate by ten times that
            under the random policy, and leaves nine tenths of the choice to the weights.
        eta: η, above 0; None for √K / 10. Groups differ only by the deviations of x̂_j from x, whose standard deviation
            is x √((1 - p_j) / (p_j K)); the factor √K makes one number suit all K. A tenth is about the value
            √(2 ln |C| / (|C| n)) from the regret bound for ten groups and n = 50 updates; over these updates, chance
            alone changes the log-weight of a tenth of the permutations by about 1.

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
        """Return p as in the docstring of the class, see `GroupAgent.probabilities`."""
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
            "scaled_reward", x in [0, 1]; joint task: one for each task, "spatial/scaled_reward".
        """
        drawn_from = self.probabilities(observation) if behaviour is None else behaviour  # [*tasks, groups]
        num_actions = counts.sum(axis=-1, keepdims=True)  # K, [*tasks, 1]
        scaled = self._rewards.add(gains)  # [*tasks, 1]
        neutral = np.ones_like(self._log_weights)
        ratios = np.divide(counts / num_actions, drawn_from, where=drawn_from > 0, out=neutral)
        eta = np.sqrt(num_actions) / 10 if self.eta is None else self.eta
        self._log_weights += eta * ratios * scaled
        return _by_task("scaled_reward", gains, scaled)

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        return {
            **super().state_dict(),
            "log_weights": self._log_weights.tolist(),
            "rewards": self._rewards.state_dict(),
        }

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {
            **super().state_schema(),
            "log_weights": self._lists(Number(float, Range(0)), self.num_groups),
            "rewards": self._rewards.state_schema(self._lists(Number(float, None), 1)),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._log_weights[:] = state["log_weights"]
        self._rewards.load_state_dict(state["rewards"])


class Ucb(Learner):
    """UCB1: plays the arm with the highest upper confidence bound.

    Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine Learning 47, 2002.
    To play an arm is to tilt the random policy towards its group for one whole update: an action is that group with
    probability `share`, and otherwise drawn from all permutations equally, because training on one group alone for a
    whole update destroys what was learned. Let n_j be the number of updates tilted towards group j, t their sum and m_j
    the mean of their rewards, scaled to [0, 1] by the lowest and the highest reward of the task so far. The next arm
    is the one with the highest

        m_j + c √(2 ln t / n_j).

    Groups that have not been played come first, in random order. An empty group is not played.

    The arm is also played in the free iterations before its update, which are not rewarded. In a joint task each task
    is a separate bandit with its own arms and rewards.

    Args:
        observation_space: See `GroupAgent`.
        action_space: See `GroupAgent`.
        seed: Seeds everything the agent draws, >= 0.
        share: Probability given to the group of the arm in addition to its share of the rest, in [0, 1].
        c: Weight of the exploration term, >= 0. With the 1 of the paper, a bound that holds for any rewards in [0, 1],
            the groups simply take turns for tens of updates.

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
        self._precedence = self._generator.random(shape)  # breaks ties
        self._plays = np.zeros(shape, dtype=np.int64)
        self._totals = np.zeros(shape)  # of the rewards
        self._rewards = _RewardRange(self._tasks)

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the random policy tilted towards the current arm, see `GroupAgent.probabilities`."""
        fractions = self._fractions(observation)  # [*tasks, groups]
        return tilt(fractions, self._arm(fractions), self.share)

    def _arm(self, fractions: np.ndarray) -> np.ndarray:
        """Return the current arm, () or (T,).

        It is a function of the rewards so far, which do not change during an update, and of which groups are empty.
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
        """Credit the current arm, see `Learner.update`.

        Returns:
            "arm" and "scaled_reward", in [0, 1]; joint task: one for each task, "spatial/arm".

        Raises:
            ValueError: If another policy drew the actions: then this agent's arm was not played.
        """
        if behaviour is not None:
            raise ValueError(
                f"Ucb can only evaluate arms it played, the actions were drawn from {np.asarray(behaviour).tolist()}. "
                "Let it learn from its own actions, or use Exp3, which applies importance weights."
            )
        arm = np.expand_dims(self._arm(self._fractions(observation)), -1)  # [*tasks, 1]
        is_played = np.arange(self.num_groups) == arm  # [*tasks, groups]
        scaled = self._rewards.add(gains)  # [*tasks, 1]
        self._plays += is_played
        self._totals += is_played * _row_per_task(gains, self._tasks)
        return {**_by_task("arm", gains, arm), **_by_task("scaled_reward", gains, scaled)}

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`; the current arm follows from it."""
        return {
            **super().state_dict(),
            "precedence": self._precedence.tolist(),
            "plays": self._plays.tolist(),
            "totals": self._totals.tolist(),
            "rewards": self._rewards.state_dict(),
        }

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {
            **super().state_schema(),
            "precedence": self._lists(Number(float, Range(0, below=1)), self.num_groups),
            "plays": self._lists(Number(int, below(2**63)), self.num_groups),
            "totals": self._lists(Number(float), self.num_groups),
            "rewards": self._rewards.state_schema(self._lists(Number(float, None), 1)),
        }

    def state_conditions(self) -> dict[str, Callable[[Tree], bool]]:
        """Return what the parts of the state do together, see `Agent.state_conditions`."""
        return {
            **super().state_conditions(),
            "have rewards of arms it has played only": lambda state: (
                not np.where(state["plays"], 0, state["totals"]).any()
            ),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._precedence[:] = state["precedence"]
        self._plays[:] = state["plays"]
        self._totals[:] = state["totals"]
        self._rewards.load_state_dict(state["rewards"])


class _RewardRange:
    """Scales the rewards of each task to [0, 1] by the lowest and the highest so far.

    Args:
        tasks: The axis in front, () or (T,).
    """

    def __init__(self, tasks: tuple[int, ...]) -> None:
        self._tasks = tasks
        self._low = np.full((*tasks, 1), np.inf)
        self._high = np.full((*tasks, 1), -np.inf)

    def add(self, gains: dict[str, float]) -> np.ndarray:
        """Extend the range to the reward of each task and return the rewards scaled, (1,) or (T, 1)."""
        rewards = _row_per_task(gains, self._tasks)
        self._low = np.minimum(self._low, rewards)
        self._high = np.maximum(self._high, rewards)
        return self.scaled(rewards)

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Scale rewards within the range, any number per task, to [0, 1]; 0 while lowest and highest are equal."""
        wide = self._high > self._low
        width = np.where(wide, self._high - self._low, 1)
        return np.where(wide, (rewards - np.where(wide, self._low, 0)) / width, 0)

    def state_dict(self) -> Tree:
        return {"low": self._low.tolist(), "high": self._high.tolist()}

    def state_schema(self, ends: Schema) -> Schema:
        """What the state holds, given what each end of the ranges looks like, one number per task."""
        return Where(Fields({"low": ends, "high": ends}), {"be a finite range, or inf and -inf": self._are_ranges})

    def _are_ranges(self, state: Tree) -> bool:
        low, high = (np.array(state[end]) for end in ("low", "high"))
        before = (low == np.inf) & (high == -np.inf)  # any reward
        return bool((before | ((low <= high) & np.isfinite(low) & np.isfinite(high))).all())

    def load_state_dict(self, state: Tree) -> None:
        self._low[:] = state["low"]
        self._high[:] = state["high"]


def _row_per_task(gains: dict[str, float], tasks: tuple[int, ...]) -> np.ndarray:
    """Return the rewards of the tasks, (1,) or (T, 1)."""
    return np.reshape(list(gains.values()), (*tasks, 1))


def _by_task(name: str, gains: dict[str, float], values: np.ndarray) -> dict[str, Any]:
    """Return a metric of each task under the prefix of the task."""
    return {f"{prefix}{name}": value for prefix, value in zip(gains, values.ravel().tolist(), strict=True)}
