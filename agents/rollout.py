"""The loop of every agent in every environment: act, step, learn."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from agents.base import Agent, Transition, in_update

Callback = Callable[[Transition], object]


def rollout(
    env: gym.Env[Any, Any],
    agent: Agent,
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    observation: np.ndarray | None = None,
    updates: int | None = None,
    learn: bool = True,
    on_step: Callback | None = None,
    on_update: Callback | None = None,
) -> Transition:
    """Let an agent act in an environment, and learn from it, until the episode or the given number of updates is over.

    Each step is: `agent.act`, `env.step`, `agent.learn`, `on_step`, and `on_update` if the step completed an update.
    An episode of `PermShuffle-v0` is a whole training run.

    Examples:
        A training run:

        >>> env = gym.make("PermShuffle-v0")
        >>> agent = agents.make("reinforce", env, seed=0)
        >>> last = rollout(env, agent, seed=0)
        >>> last.info["error"]

        The error after every update:

        >>> errors = []
        >>> rollout(env, agent, seed=0, on_update=lambda transition: errors.append(transition.info["error"]))

        Two updates, then one more under another agent, on a copy of the run:

        >>> last = rollout(env, agent, seed=0, updates=2)
        >>> rollout(permenv.wrappers.fork(env), other, observation=last.next_observation, updates=1)

    Args:
        env: The environment.
        agent: Chooses the actions.
        seed: Passed to `env.reset`.
        options: Passed to `env.reset`, for example {"checkpoint": path}.
        observation: The environment's current observation: the rollout continues from it, without a reset.
        updates: Number of updates after which to stop, >= 1; an update that is already under way counts as the first.
            None continues to the end of the episode.
        learn: Whether the agent learns from the steps; False evaluates it as it is.
        on_step: Called with every transition, after the agent has learned from it and before its next action.
        on_update: Called in the same way, with the last transition of every completed update. An update that diverges
            is not completed; the transition that is returned tells.

    Returns:
        The last transition. Its `done` tells whether the episode is over; its `next_observation` is where another
        rollout can continue.

    Raises:
        ValueError: If `updates` is below 1, or `observation` is given together with `seed` or `options`.
        gymnasium.error.ResetNeeded: If `observation` is given and the episode is over.
    """
    if updates is not None and updates < 1:
        raise ValueError(f"updates is {updates}, it must be at least 1, or None for the whole episode.")
    if observation is None:
        observation, _ = env.reset(seed=seed, options=options)
    elif seed is not None or options is not None:
        raise ValueError(
            f"observation is given, so the episode continues, and seed={seed}, options={options} of a reset would have "
            "no effect. Leave out either the observation or the arguments of the reset."
        )
    completed = 0
    while True:
        action = agent.act(observation)
        next_observation, reward, terminated, truncated, info = env.step(action)
        transition = Transition(observation, action, reward, next_observation, terminated, truncated, info)
        if learn:
            agent.learn(transition)
        if on_step is not None:
            on_step(transition)
        if in_update(info) and info["validated"]:
            completed += 1
            if on_update is not None:
                on_update(transition)
        if transition.done or completed == updates:
            return transition
        observation = next_observation
