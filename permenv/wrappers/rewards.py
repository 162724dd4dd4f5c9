"""Wrappers that change the rewards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from permenv.config import ConfigurationError
from permenv.records import Record, mean
from permenv.reward import extrapolate, reward
from permenv.wrappers.base import Step, base_env_of, wrappers_of

Gains = dict[str, float]  # by task


class _RewardFromRecords(gym.Wrapper, RecordConstructorArgs, ABC):
    """Base of the wrappers that replace the environment's reward by one computed from the validations of the run.

    A subclass defines which validations are rewarded and the tasks' gains at a validation and at a divergence. The
    reward is the mean of the tasks' gains, which `info["task_rewards"]` holds.
    """

    _rewarded_phases: ClassVar[tuple[str, ...]]  # a validation at the end of one of these phases is rewarded

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        base_env_of(env)
        name = type(self).__name__
        for wrapper in wrappers_of(env):
            if isinstance(wrapper, _RewardFromRecords | NormalizedReward):
                raise ConfigurationError(
                    f"{name} over {type(wrapper).__name__}: it replaces that reward; put NormalizedReward over {name}, "
                    f"or leave one of the two out"
                )

    @property
    def rewards(self) -> list[float]:
        """All rewards of this wrapper since the run began, in order."""
        base_env = base_env_of(self)
        records = base_env.records
        gains = [
            self._gain(records[max(index - 2, 0) : index], record)
            for index, record in enumerate(records)
            if record.phase in self._rewarded_phases
        ]
        if base_env.run.diverged:  # the last reward has no validation
            gains.append(self._gain_of_divergence(records))
        return [mean(each) for each in gains]

    def step(self, action: object) -> Step:
        """Take a step of the environment below, with this wrapper's reward."""
        observation, value, terminated, truncated, info = self.env.step(action)
        if info["diverged"] or (info["validated"] and info["phase"] in self._rewarded_phases):
            records = base_env_of(self).records
            gains = self._gain_of_divergence(records) if info["diverged"] else self._gain(records[-3:-1], records[-1])
            value, info = mean(gains), {**info, "task_rewards": gains}
        return observation, value, terminated, truncated, info

    @abstractmethod
    def _gain(self, earlier: list[Record], reached: Record) -> Gains:
        """Return the tasks' gains at a validation, given the last two records before it, or the only one."""

    @abstractmethod
    def _gain_of_divergence(self, records: list[Record]) -> Gains:
        """Return the tasks' gains where the run diverged, given all of its records."""


class ErrorReduction(_RewardFromRecords):
    """Reward how far the error fell since the previous validation, so that the return is what was learned.

    Every step that ends with a validation returns E before it minus E after it, the validation that ends the free
    iterations included; all other steps return 0. The undiscounted return of an episode is therefore E_0 - E_T, the
    error of the untrained network minus that at the end. Joint task: the mean over the tasks, whose own reductions are
    in `info["task_rewards"]`. A run that diverges counts as E = 1.

    ## Which reward for which discount
    Let g_t = E_t - E_{t+1} be the reduction in interval t. With equally spaced validations the environment's own
    reward (Eq. 7) is r_t = g_t - g_{t-1}, and r_0 = g_0 because the first baseline is flat. Its discounted return
    from t on is

        Σ_{k>=0} γ^k r_{t+k} = -g_{t-1} + (1 - γ) Σ_{k>=0} γ^k g_{t+k}.

    At γ = 1 everything but the last gain cancels out: the undiscounted return of an episode of n updates is g_{n-1},
    however much was learned before, and at γ near 1 the reductions have only the weight 1 - γ. (With free iterations
    the baseline is the trend of the free iterations, and the sum of the rewards is not the reduction of the error
    either.) So do not compare runs by the sum of the environment's rewards, as a plot of episode returns does, and
    train on them with γ = 0 or close to it from one update to the next. γ counts updates here: with K steps per update
    a discount per step enters as its K-th power. For a policy that looks further ahead use this wrapper, with γ near 1.

    Example:
        >>> env = ErrorReduction(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0`.

    Attributes:
        rewards: This wrapper's rewards since the run began: one for each validation but the first, and one for the
            divergence if there was one.

    Raises:
        ConfigurationError: If there is another reward wrapper below, which this one would hide.
    """

    _rewarded_phases = ("free", "update")

    def _gain(self, earlier: list[Record], reached: Record) -> Gains:
        before = earlier[-1].errors
        return {task: before[task] - error for task, error in reached.errors.items()}

    def _gain_of_divergence(self, records: list[Record]) -> Gains:
        return {task: error - 1.0 for task, error in records[-1].errors.items()}


class CrossEntropyReward(_RewardFromRecords):
    """Reward what an update did to the cross-entropy on the validation set, instead of to the error.

    The error counts (permutation, sample) pairs and asks only which permutation was the most probable. The
    cross-entropy also depends on how confident the network is, before the first pair is recognised and after the last.

    The step that ends an update returns H^BL - H, the formula of Eq. 7 and appendix E with the error replaced by H,
    the mean of -log y_l over all (permutation, sample) pairs in nats: H^BL is the straight line through the last two
    validations evaluated at this iteration, and flat before there are two. All other steps return 0. Joint task: the
    mean of the tasks' gains, which are in `info["task_rewards"]`; `info["error"]` and the like do not change.

    A run that diverges counts as the cross-entropy of a uniform guess, log |Ψ|, as in `info["task_cross_entropies"]`,
    with the line evaluated at the last completed iteration; but divergence is never rewarded. Unlike E, H has no upper
    bound: a network about to diverge is confident and wrong, with an H so large that a uniform guess would count as a
    great gain.

    Example:
        >>> env = CrossEntropyReward(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0`.

    Attributes:
        rewards: This wrapper's rewards since the run began, one for each update, like the environment's.

    Raises:
        ConfigurationError: If there is another reward wrapper below, which this one would hide.
    """

    _rewarded_phases = ("update",)

    def _gain(self, earlier: list[Record], reached: Record) -> Gains:
        lines = _lines(earlier, reached.iteration)
        return {task: reward(lines[task], value) for task, value in reached.cross_entropies.items()}

    def _gain_of_divergence(self, records: list[Record]) -> Gains:
        base_env = base_env_of(self)
        guess = math.log(base_env.config.num_permutations)
        lines = _lines(records, base_env.run.iteration)
        return {task: reward(line, max(guess, line)) for task, line in lines.items()}


def _lines(records: list[Record], iteration: int) -> dict[str, float]:
    """Evaluate the straight line through the last two cross-entropies of each task at an iteration."""
    lines = {}
    for task in records[-1].cross_entropies:
        history = [(record.iteration, record.cross_entropies[task]) for record in records[-2:]]
        lines[task] = extrapolate(history, iteration)
    return lines


class NormalizedReward(gym.Wrapper, RecordConstructorArgs):
    """Divide a reward by the root mean square of all rewards of the run so far, this one included.

    Rewards are then of the order of 1 whatever the task and the configuration, so a learning rate that suits one
    suits the others. The first reward of a run becomes 1 or -1, the t-th lies in [-√t, √t]; signs are kept and 0
    stays 0. The rewards are the environment's own, or those of `ErrorReduction` or `CrossEntropyReward`; a wrapper
    of yours that changes the reward goes over this one. `info["task_rewards"]` are divided by the same number. (The
    sum of normalised reductions is no longer E_0 - E_T.)

    `gymnasium.wrappers.NormalizeReward` does not work here. It estimates the spread over all steps, of which all but
    one in thousands have reward 0, and of a discounted sum that has decayed to nothing when the next reward comes. Its
    statistics are also not saved with the run, and carry over into the next one.

    Example:
        >>> env = NormalizedReward(CrossEntropyReward(gym.make("PermShuffle-v0")))

    Args:
        env: `PermShuffle-v0`, with its own reward or under `ErrorReduction` or `CrossEntropyReward`.

    Attributes:
        rewards: This wrapper's rewards since the run began, one for each of those below.

    Raises:
        ConfigurationError: If there is another `NormalizedReward` below; in `step`, if another wrapper below has
            changed the reward.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        base_env_of(env)
        if any(isinstance(wrapper, NormalizedReward) for wrapper in wrappers_of(env)):
            raise ConfigurationError("NormalizedReward over NormalizedReward: leave one of the two out")

    @property
    def rewards(self) -> list[float]:
        """All rewards of this wrapper since the run began, in order."""
        below = self._rewards_below()
        return [value / _scale(below[: count + 1]) for count, value in enumerate(below)]

    def step(self, action: object) -> Step:
        """Take a step of the environment below, with this wrapper's reward."""
        observation, value, terminated, truncated, info = self.env.step(action)
        below = self._rewards_below() if info["validated"] or info["diverged"] else []
        own = mean(info["task_rewards"])
        if value != own or (value and value not in below[-1:]):
            raise ConfigurationError(
                f"NormalizedReward: the reward below is {value}, that of the run {(below or [0.0])[-1]}: another "
                f"wrapper has changed it; put that wrapper over NormalizedReward"
            )
        if below:
            scale = _scale(below)
            value = float(value) / scale
            info = {**info, "task_rewards": {task: gain / scale for task, gain in info["task_rewards"].items()}}
        return observation, value, terminated, truncated, info

    def _rewards_below(self) -> list[float]:
        replacing = (wrapper for wrapper in wrappers_of(self.env) if isinstance(wrapper, _RewardFromRecords))
        return next(replacing, base_env_of(self)).rewards


def _scale(rewards: list[float]) -> float:
    """Root mean square; 1 where all are 0 or there are none. `hypot` squares nothing that could underflow."""
    return math.hypot(*rewards) / math.sqrt(len(rewards) or 1) or 1.0
