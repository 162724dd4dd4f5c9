"""Agents that choose the permutations a network trains on; they know only the Gymnasium API.

- `Agent`: the protocol every algorithm follows, `Transition` what it learns from, `Learner` what learns once an update
  (`base.py`).
- `Reinforce`: the paper's policy gradient, Eq. 9 and section 4.1 (`reinforce.py`).
- `RandomPolicy`, `InversePolicy`: what the paper compares it with, appendix F (`baselines.py`).
- `UniformGroups`, `FixedGroup`, `HardestFirst`, `EasiestFirst`, `ErrorProportional`: curricula that are fixed in
  advance (`baselines.py`).
- `Exp3`, `Ucb`: bandits, to which the groups are arms (`bandits.py`).
- `Lookahead`: the upper reference of one step, which tries everything on forks of the environment (`lookahead.py`).
- `agents.sb3`: Stable-Baselines3's algorithms, with numbers that make sense here (`sb3.py`; nothing here imports it).
- `make`: any of ours by its name in `AGENTS`, for an environment.
"""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np

from agents.bandits import Exp3, Ucb
from agents.base import Agent, Learner, Transition
from agents.baselines import (
    EasiestFirst,
    ErrorProportional,
    FixedGroup,
    HardestFirst,
    InversePolicy,
    RandomPolicy,
    UniformGroups,
)
from agents.lookahead import Lookahead
from agents.reinforce import Reinforce

__all__ = [
    "AGENTS",
    "Agent",
    "EasiestFirst",
    "ErrorProportional",
    "Exp3",
    "FixedGroup",
    "HardestFirst",
    "InversePolicy",
    "Learner",
    "Lookahead",
    "RandomPolicy",
    "Reinforce",
    "Transition",
    "Ucb",
    "UniformGroups",
    "make",
]


def make(name: str, env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
    """Build an agent by its name for the environment that it is to act in.

    Args:
        name: A key of `AGENTS`.
        env: Its spaces shape the agent. The curricula grow over the updates of its run, `Lookahead` forks it.
        seed: Decides what the agent draws, >= 0. The agent's own seeds are derived from it, so it may be the
            environment's: two generators of one seed would draw the same numbers.
        **options: Further arguments of the agent's class; of "inverse", of the policy that is inverted.

    Returns:
        The agent.

    Raises:
        ValueError: If there is no agent of that name, or it does not fit the environment or the options.
    """
    if name not in AGENTS:
        close = difflib.get_close_matches(name, AGENTS)
        meant = f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {', '.join(AGENTS)}."
        raise ValueError(f"There is no agent {name!r}: {meant}")
    return AGENTS[name](env, seed=seed, **options)


def _seeds(seed: int) -> tuple[int, int]:
    """Derive an agent's seed and that of a Reinforce, which may be inside it."""
    outer, inner = np.random.SeedSequence(seed).generate_state(2)
    return int(outer), int(inner)


def _on_spaces(kind: Callable[..., Agent]) -> Callable[..., Agent]:
    def build(env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
        return kind(env.observation_space, env.action_space, seed=_seeds(seed)[0], **options)

    return build


def _over_the_run(kind: Callable[..., Agent]) -> Callable[..., Agent]:
    def build(env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
        world: Any = env.unwrapped
        return _on_spaces(kind)(env, seed=seed, **{"updates": world.config.total_updates, **options})

    return build


def _lookahead(env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
    return Lookahead(env, seed=_seeds(seed)[0], **options)


def _reinforce(env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
    return Reinforce(env.observation_space, env.action_space, seed=_seeds(seed)[1], **options)


def _inverse(env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
    return InversePolicy(_reinforce(env, seed=seed, **options), seed=_seeds(seed)[0], policy_learns=True)


AGENTS: Mapping[str, Callable[..., Agent]] = MappingProxyType(
    {
        "random": _on_spaces(RandomPolicy),
        "uniform": _on_spaces(UniformGroups),
        "fixed": _on_spaces(FixedGroup),
        "hardest-first": _over_the_run(HardestFirst),
        "easiest-first": _over_the_run(EasiestFirst),
        "error-proportional": _on_spaces(ErrorProportional),
        "exp3": _on_spaces(Exp3),
        "ucb": _on_spaces(Ucb),
        "lookahead": _lookahead,
        "reinforce": _reinforce,
        "inverse": _inverse,
    }
)
"""By name, what builds the agent: a function of `make`'s arguments but the name."""
