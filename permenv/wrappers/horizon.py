"""A wrapper that changes how the end of a run is reported."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from permenv.wrappers.base import Step, base_env_of


class FiniteHorizon(gym.Wrapper, RecordConstructorArgs):
    """Report the end of a run as `terminated` instead of `truncated`.

    `PermShuffle-v0` truncates a run after its updates, since training could go on. Algorithms that estimate values,
    such as those of Stable-Baselines3, therefore add the value that they expect beyond the end. Where the observation
    holds the progress (`ErrorAndProgress`, `RunSummary`) and the return is to be what the run itself has gained, as of
    `ErrorReduction`, nothing comes after it.

    Example:
        >>> env = FiniteHorizon(RunSummary(ErrorReduction(PoolAction(gym.make("PermShuffle-v0")))))

    Args:
        env: `PermShuffle-v0`, under any wrappers.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        base_env_of(env)

    def step(self, action: object) -> Step:
        """Take a step of the environment below; `truncated` is False unless another wrapper has cut the run."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = base_env_of(self).episode.is_over
        return observation, reward, terminated or (truncated and over), truncated and not over, info
