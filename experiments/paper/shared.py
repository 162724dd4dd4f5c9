"""What the figures share: a policy in a run, its choices permutation by permutation, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import agents
from agents import Agent, Transition
from agents.base import in_update
from agents.rollout import rollout
from experiments.common.learned import LearnedPolicy
from permenv import Pretraining, Validation
from permenv.grouping import group_members
from permenv.wrappers.base import base_env_of


def find_policy(given: Path | None) -> tuple[str, LearnedPolicy | None]:
    """Return a policy learned across runs with its name, or "reinforce" and None: REINFORCE within each run.

    Raises:
        CheckpointError: If there is no such policy.
    """
    if given is None:
        return "reinforce", None
    policy = LearnedPolicy.find(given)
    return policy.name, policy


def policy_in(env: gym.Env, policy: LearnedPolicy | None, seed: int) -> tuple[gym.Env, Agent]:
    """Make the policy, and wrap the environment as the policy needs it.

    Args:
        env: `PermShuffle-v0`.
        policy: Frozen, learned across runs; None for a new REINFORCE, which learns within the run.
        seed: Of a new policy.
    """
    return (env, agents.make("reinforce", env, seed=seed)) if policy is None else policy.make(env, seed=seed)


@dataclass(frozen=True, eq=False)
class Choices:
    """What a policy chose in one update.

    Attributes:
        iteration: SGD iterations before it.
        validation: Of the network before it.
        shares: (|Ψ|,), the expected share of the samples that each permutation had, given the groups that were chosen:
            a permutation is drawn uniformly from its group. Sums to 1.
    """

    iteration: int
    validation: Validation
    shares: np.ndarray


def follow(env: gym.Env, agent: Agent, task: str, **arguments: Any) -> list[Choices]:
    """Let a policy act, and return what it chose in each update that was completed.

    Args:
        env: The environment, wrapped as the policy needs it.
        agent: The policy.
        task: The ordering task whose choices are returned.
        **arguments: Of `agents.rollout`.
    """
    base_env, found = base_env_of(env), []
    before: list[tuple[int, Validation, np.ndarray]] = []

    def look() -> None:
        before[:] = [(base_env.run.iteration, base_env.validation[task], base_env.groups[task])]

    def on_step(transition: Transition) -> None:
        if transition.info["validated"]:
            ((iteration, validation, groups),) = before
            if in_update(transition.info):
                counts = base_env.records[-1].choices[list(base_env.tasks).index(task)]
                found.append(Choices(iteration, validation, shares_of(groups, counts)))
            look()

    observation, _ = env.reset(seed=arguments.pop("seed", None), options=arguments.pop("options", None))
    look()
    rollout(env, agent, observation=observation, on_step=on_step, **arguments)
    return found


def shares_of(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spread the choices of groups over their permutations.

    Args:
        groups: (|Ψ|,) int, the group of each permutation.
        counts: (|C|,), how often each group was chosen.

    Returns:
        (|Ψ|,), sums to 1.
    """
    shares = np.zeros(len(groups))
    for members, count in zip(group_members(groups, len(counts)), counts, strict=True):
        shares[members] += count / len(members)
    return shares / shares.sum()


def moments_of(total: int, shares: Sequence[float]) -> list[int]:
    """Return the moments at some shares of a run, each at least 1, in ascending order and each once."""
    return sorted({max(1, round(share * total)) for share in shares})


def at_checkpoints(run: Pretraining, iterations: Sequence[int]) -> Iterator[int]:
    """Train a run with random permutations and stop at some iterations, ascending; the caller looks at the run there.

    Raises:
        RuntimeError: If the run diverges.
    """
    for moment in iterations:
        while run.iteration < moment:
            run.iterate()
            if run.diverged:
                raise RuntimeError(f"seed {run.seed} diverged at iteration {run.diverged_at}: nothing to measure")
        yield moment


def one_of_each_first(labels: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle rows so that one of each class comes before a second one of any.

    Args:
        labels: (N,) classes.
        seed: Of the draw.

    Returns:
        (N,) int, the rows.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order]
    repetition = np.array([(shuffled[:index] == own).sum() for index, own in enumerate(shuffled)], dtype=np.int64)
    return order[np.argsort(repetition, kind="stable")]
