"""Agents that choose the permutations a network trains on.

They use the Gymnasium API, and of `PermShuffle-v0` also:

- the `info` of each step: "validated" and "phase", by which `rollout` and agents that learn tell where an update ends,
  and in a joint task "task_rewards"; `Transition` says what they mean;
- `env.unwrapped.config.total_updates`, from which `make` takes the pace of the curricula;
- `env.unwrapped.fork()`, a copy of the run, for `Lookahead` alone.

Any environment that has these will do.

- `make`: by its name in `AGENTS`, any of the agents that choose groups, for an environment; or one of your own.
- `options_of`: the keyword arguments that an agent has.
- `rollout`: the loop that lets an agent act and learn in an environment (`rollout.py`).
- `Agent`: the base class of all agents; `Transition`: what they learn from (`base.py`).
- `GroupAgent`: the base class of agents that choose groups; `Learner`: that of those that learn once per update
  (`groups.py`).
- `Reinforce`: the paper's policy gradient, Eq. 9 and section 4.1 (`reinforce.py`).
- `RandomPolicy`, `InversePolicy`: what the paper compares it with, appendix F (`baselines.py`).
- `UniformGroups`, `FixedGroup`, `HardestFirst`, `EasiestFirst`, `DifficultyProportional`: curricula fixed in advance;
  `GrowingPool`: the base class of two of them (`baselines.py`).
- `Exp3`, `Ucb`: bandits whose arms are the groups (`bandits.py`).
- `GaussianReinforce`, `Pgpe`: policies of continuous actions that are learned across runs, in an environment
  under a wrapper such as `permenv.wrappers.PoolAction`, with noise in the actions or in the parameters (`gaussian.py`,
  `pgpe.py`); `EpisodicAgent`, `collect`: their base class, and a `Trajectory` that they learn from (`episodic.py`).
- `Lookahead`: one-step lookahead, which tries tilted policies on forks of the environment (`lookahead.py`).
- `agents.sb3`: the algorithms of Stable-Baselines3 with hyperparameters for this environment (`sb3.py`, not imported
  here, so that `import agents` does not import Stable-Baselines3).

A training run with one of them:

    >>> import agents, gymnasium as gym, permenv
    >>> env = gym.make("PermShuffle-v0")
    >>> agent = agents.make("reinforce", env, seed=0)
    >>> last = agents.rollout(env, agent, seed=0)
    >>> last.info["error"]
"""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np

from agents.bandits import Exp3, Ucb
from agents.base import Agent, Transition
from agents.baselines import (
    DifficultyProportional,
    EasiestFirst,
    FixedGroup,
    GrowingPool,
    HardestFirst,
    InversePolicy,
    RandomPolicy,
    UniformGroups,
)
from agents.episodic import EpisodicAgent, Trajectory, collect
from agents.gaussian import GaussianReinforce
from agents.groups import GroupAgent, Learner
from agents.lookahead import Lookahead
from agents.pgpe import Pgpe
from agents.reinforce import Reinforce
from agents.rollout import rollout

__all__ = [
    "AGENTS",
    "Agent",
    "DifficultyProportional",
    "EasiestFirst",
    "EpisodicAgent",
    "Exp3",
    "FixedGroup",
    "GaussianReinforce",
    "GroupAgent",
    "GrowingPool",
    "HardestFirst",
    "InversePolicy",
    "Learner",
    "Lookahead",
    "Pgpe",
    "RandomPolicy",
    "Reinforce",
    "Trajectory",
    "Transition",
    "Ucb",
    "UniformGroups",
    "agent_class",
    "collect",
    "make",
    "options_of",
    "rollout",
]


def make(name: str, env: gym.Env[Any, Any], *, seed: int, **options: Any) -> Agent:
    """Build an agent by its name for an environment.

    Args:
        name: A key of `AGENTS`, or "module:Class" for an agent of your own, see `agent_class`.
        env: The environment it will act in. Its spaces determine the shapes of the agent, its number of updates the
            pace of the curricula, and `Lookahead` forks it.
        seed: Determines what the agent draws, >= 0. It may be the seed of the environment: the seeds used inside are
            derived from it, so that the two do not draw the same random numbers.
        **options: Further arguments of the agent's class; for "inverse", of the policy that is inverted.

    Returns:
        The agent.

    Raises:
        ValueError: If there is no agent of that name, or it does not support the environment or the options.
    """
    kind = agent_class(name)
    # of the agent, and of the Reinforce that may be inside it
    outer, inner = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    spaces = env.observation_space, env.action_space
    if kind is Lookahead:
        return Lookahead(env, seed=outer, **options)
    if kind is InversePolicy:
        return InversePolicy(Reinforce(*spaces, seed=inner, **options), seed=outer, policy_learns=True)
    if kind is Reinforce:
        return Reinforce(*spaces, seed=inner, **options)
    if issubclass(kind, GrowingPool):
        base_env: Any = env.unwrapped
        options.setdefault("updates", base_env.config.total_updates)
    return kind(*spaces, seed=outer, **options)


def options_of(name: str) -> dict[str, Any]:
    """Return the keyword arguments of `make` that an agent has besides `seed`, with their annotations.

    Args:
        name: See `make`.

    Raises:
        ValueError: If there is no agent of that name.
    """
    kind = agent_class(name)
    if kind is InversePolicy:  # they are those of the policy that `make` inverts
        kind = Reinforce
    parameters = inspect.signature(kind, eval_str=True).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY and each.name != "seed"}


def agent_class(name: str) -> type[Agent]:
    """Find the class of an agent.

    Args:
        name: A key of `AGENTS`; or "module:Class" for a subclass of `Agent` whose constructor takes the arguments of
            `Agent`'s and perhaps more keywords, in a module that Python can import.

    Raises:
        ValueError: If there is none.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"There is no agent {name!r}: {error}. Name a module, whose folder is in PYTHONPATH, and a class in it."
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Agent)):
            raise ValueError(f"There is no agent {name!r}: it is no subclass of agents.Agent.")
        return kind
    if name not in AGENTS:
        close = difflib.get_close_matches(name, AGENTS)
        meant = f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {', '.join(AGENTS)}."
        raise ValueError(f"There is no agent {name!r}: {meant}")
    return AGENTS[name]


AGENTS: Mapping[str, type[GroupAgent]] = MappingProxyType(
    {
        "random": RandomPolicy,
        "uniform": UniformGroups,
        "fixed": FixedGroup,
        "hardest-first": HardestFirst,
        "easiest-first": EasiestFirst,
        "difficulty-proportional": DifficultyProportional,
        "exp3": Exp3,
        "ucb": Ucb,
        "lookahead": Lookahead,
        "reinforce": Reinforce,
        "inverse": InversePolicy,
    }
)
"""By name, the class of the agent."""
