"""Learn a policy across many training runs: each episode is a new network, new data and a new validation set.

    python experiments/across_runs.py
    python experiments/across_runs.py --actions mixture --history 3 --seed 1

Before each update of the policy, `episodes_per_update` runs of fresh seeds are played in parallel processes. The policy
sees the states of the last validations, the errors and the progress, and chooses once a phase; its return is E_0 - E_T.
What it is worth on seeds that it has not seen is measured by

    python experiments/leaderboard.py --policies runs/across-pool-seed0

The run folder holds config.json, metrics.csv (a row per update of the policy), TensorBoard logs and
checkpoint.safetensors, the policy. It can be killed at any time: `--resume` continues to the same numbers.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from agents.gaussian import GaussianReinforce, Trajectory, collect
from tqdm import tqdm

import permenv
from experiments.common.files import as_json
from experiments.common.learned import view
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, Preset, run_script
from experiments.common.run_folder import RunFolder, check_same_job
from experiments.common.sweep import make_executor
from permenv import checkpoint
from permenv.pretraining import Record
from permenv.training import resolve_device

_SEEDS = 1_000_000  # of the episodes: from here on, apart from those of tuning and of reports
_RECENT = 5  # updates of the policy whose mean the progress bar shows


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options."""

    preset: Preset = "nano"
    device: str = "cpu"
    """auto, cpu or cuda."""
    actions: Literal["pool", "mixture"] = "pool"
    """What the policy chooses, once a phase: "pool", how much of Ψ, easiest first, is in play; "mixture", the
    distribution of the samples over the groups."""
    history: int = 2
    """Number of states that it observes, those of the last validations."""
    hidden: int = 16
    """Units of its hidden layer; 0 for a linear policy."""
    learning_rate: float = 0.02
    """Of Adam."""
    discount: float = 0.97
    """γ of a phase: below 1, an early reduction of the error is worth more than a late one."""
    episodes: int = 480
    """Training runs to learn from."""
    episodes_per_update: int = 16
    """Training runs between two updates of the policy."""
    seed: int = 0
    """Decides the policy's initial weights, its actions and the seeds of its episodes."""
    processes: int = os.cpu_count() or 1
    """Runs at once, a process of one thread each; 0 plays them one after the other in this process."""
    out: Path | None = None
    """Run folder; by default runs/across-ACTIONS-seedSEED."""
    resume: bool = False
    """Continue the run in `out`."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"across-{self.actions}-seed{self.seed}"


def main(config: Config) -> list[dict[str, float]]:
    """Train the policy.

    Returns:
        The rows of metrics.csv.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    folder, settings = RunFolder(config.folder, config.resume), as_json(config)
    agent, rows = _make_agent(config, _make_view(config)), []
    if config.resume:
        saved = checkpoint.read(folder.checkpoint)
        check_same_job(settings, ("episodes", "processes", "out", "resume"), saved["job"]["settings"], folder.path)
        agent.load_state_dict(saved["agent"])
        rows = saved["job"]["rows"]
    folder.start(rows)
    folder.json("config", {**settings, "machine": machine(resolve_device(config.device), threads=1)})
    played = int(rows[-1]["episodes"]) if rows else 0
    first_seed = _SEEDS * (1 + config.seed)
    with (
        make_executor(config.processes) as executor,
        tqdm(total=config.episodes, initial=played, unit="run") as bar,
    ):
        while played < config.episodes:
            start, count = time.perf_counter(), min(config.episodes_per_update, config.episodes - played)
            seeds = range(first_seed + played, first_seed + played + count)
            state = agent.state_dict()
            jobs = [executor.submit(_episode, config, state, seed) for seed in seeds]
            for job in jobs:
                job.add_done_callback(lambda _: bar.update())
            found = [job.result() for job in jobs]
            metrics = agent.update([trajectory for trajectory, _ in found])
            played += count
            errors = np.array([errors for _, errors in found])
            row = {
                "update": len(folder.rows) + 1,
                "episodes": played,
                "error_half": float(errors[:, 0].mean()),
                "error_end": float(errors[:, 1].mean()),
                **metrics,
                "seconds": time.perf_counter() - start,
            }
            folder.append(row)
            folder.save({}, agent.state_dict(), {"settings": settings})
            bar.set_postfix_str(f"E {np.mean([each['error_end'] for each in folder.rows[-_RECENT:]]):.3f}")
    folder.close()
    return folder.rows


@functools.cache
def _make_view(config: Config) -> gym.Env:
    """Make the environment once a process: the data and Ψ take longer than an iteration."""
    return view(config.make(), config.actions, config.history)


def _make_agent(config: Config, env: gym.Env) -> GaussianReinforce:
    return GaussianReinforce(
        env.observation_space,
        env.action_space,
        seed=config.seed,
        hidden=config.hidden,
        learning_rate=config.learning_rate,
        discount=config.discount,
        episodes_per_update=config.episodes_per_update,
    )


def _episode(config: Config, state: dict[str, Any], seed: int) -> tuple[Trajectory, tuple[float, float]]:
    """Play one run with the policy of that state; also return E at half of the updates and at the end."""
    env = _make_view(config)
    agent = _make_agent(config, env)
    agent.load_state_dict(state)
    trajectory = collect(env, agent, seed)
    return trajectory, errors_of(env.unwrapped.records, config.env)  # type: ignore[attr-defined]


def errors_of(records: Sequence[Record], config: permenv.Config) -> tuple[float, float]:
    """Return E at half of a run and at its end, joint task: the means over the tasks; 1 after a divergence."""
    iterations = [record.iteration for record in records]
    errors = [float(np.mean(list(record.errors.values()))) for record in records]
    end = config.total_updates * (config.free_iterations + config.iterations_per_update)
    if iterations[-1] < end:
        iterations, errors = [*iterations, iterations[-1] + 1], [*errors, 1.0]
    return float(np.interp(end / 2, iterations, errors)), float(np.interp(end, iterations, errors))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
