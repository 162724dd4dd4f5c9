"""All agents by name, ours and those of Stable-Baselines3, and one run of any of them."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym

import agents
from agents.rollout import rollout
from permenv import ConfigurationError

AGENTS = (*agents.AGENTS, "ppo", "a2c", "dqn")


def check_names(names: Sequence[str]) -> None:
    """Check that all agents exist.

    Raises:
        ConfigurationError: If one does not.
    """
    unknown = [name for name in names if name not in AGENTS]
    if unknown:
        raise ConfigurationError(f"unknown agent {unknown[0]!r}: choose from {', '.join(AGENTS)}")


def play(name: str, env: gym.Env, *, seed: int) -> None:
    """Let an agent act and learn in one run, from its reset to its end.

    Args:
        name: One of `AGENTS`.
        env: `PermShuffle-v0`, its actions unchanged, under any wrappers. Stable-Baselines3 resets it once more when the
            run is over.
        seed: Of the run, and of what the agent draws.
    """
    if name not in agents.AGENTS:
        from agents import sb3  # slow to import

        base_env = env.unwrapped
        model = sb3.make_model(name, env, seed=seed)
        steps = base_env.config.total_updates * sb3.steps_of_an_update(env)  # type: ignore[attr-defined]
        model.learn(steps, lambda local, _: not local["dones"][0])
        return
    rollout(env, agents.make(name, env, seed=seed), seed=seed)
