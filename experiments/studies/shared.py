"""What the studies share: sweeps over seeds, runs without an agent, forks that draw other data, and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np

from agents import Agent
from experiments.common.files import write_json
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.sweep import make_executor, sweep
from permenv import Config, PermShuffleEnv, Pretraining
from permenv.training import resolve_device

R = TypeVar("R")


def over_seeds(
    work: Callable[..., R], variants: Mapping[str, Mapping[str, Any]], config: SweepOptions
) -> dict[str, list[R]]:
    """Do a job for every variant and seed.

    Args:
        work: Does one job. It receives the arguments of the variant, `seed` and `environment` (`EnvOptions`); see
            `sweep` for what it may be and return.
        variants: By name, the arguments of `work`.
        config: The seeds, the environment, the processes, and the folder of the results.

    Returns:
        By variant, the results in the order of the seeds.
    """
    jobs = {
        f"{name}-seed{seed}": {**arguments, "seed": seed, "environment": config.environment}
        for seed in range(config.seeds)
        for name, arguments in variants.items()
    }
    with make_executor(config.processes) as executor:
        found = sweep(work, jobs, executor=executor, folder=config.runs)
    return {name: [found[f"{name}-seed{seed}"] for seed in range(config.seeds)] for name in variants}


def make_run(environment: EnvOptions, seed: int, **changes: Any) -> Pretraining:
    """Make a run that needs no agent.

    Args:
        environment: Preset, task, data, device and numbers.
        seed: Decides the run.
        **changes: Fields of `permenv.Config` with other values.
    """
    return Pretraining.create(
        environment.preset,
        environment.task,
        seed=seed,
        device=environment.device,
        images=environment.images,
        videos=environment.videos,
        **{**environment.overrides, **changes},
    )


def iterations_of(env: Config) -> int:
    """Return the SGD iterations of a whole run."""
    return env.total_updates * (env.free_iterations + env.iterations_per_update)


def redrawn_fork(base_env: PermShuffleEnv, seed: int) -> PermShuffleEnv:
    """Return a fork that draws other samples, members of groups and crops."""
    fork = base_env.fork()
    fork.run.generator = fork.np_random = np.random.default_rng(seed)
    return fork


class FixedDistribution(Agent):
    """Draws from the same distribution for every observation.

    Args:
        observation_space: See `Agent`.
        action_space: See `Agent`.
        seed: Seeds everything the agent draws, >= 0.
        chances: (|C|,) float64, sums to 1; joint task (T, |C|).
    """

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, *, seed: int, chances: np.ndarray
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        self._chances = chances

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the distribution, see `Agent.probabilities`."""
        return self._chances


def heading(config: SweepOptions) -> dict[str, Any]:
    """Return what every report begins with: the machine, the data, the number of seeds and the length of the runs."""
    return {
        "machine": machine(resolve_device(config.device), threads=1 if config.processes else None),  # of each process
        "data": config.data,
        "seeds": config.seeds,
        "updates": config.env.total_updates,
        "iterations": iterations_of(config.env),
    }


def in_words(report: Mapping[str, Any]) -> str:
    """Return the heading of a report as the first line of its table."""
    return f"{report['data']}, {report['iterations']} iterations, {report['seeds']} seeds"


def with_sd(figure: Mapping[str, float], digits: int = 3) -> str:
    """Return what `mean_and_sd` returned, in words."""
    return f"{figure['mean']:.{digits}f} ± {figure['sd']:.{digits}f}"


def publish(report: Mapping[str, Any], table: str, out: Path) -> None:
    """Write a report as JSON and print its table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, report)
    print(f"{table}\n\nwritten to {out}")
