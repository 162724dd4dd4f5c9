"""What a task's head is to be credited with in the joint task: its own gain, or the sum of both tasks'.

    python experiments/credit.py

Trains REINFORCE on the spatiotemporal task of the tiny preset with either credit, and with random permutations, on
embedded data of a seed that nothing else uses. Reports the final errors, and from the random runs, whose policy stands
still, what both credits would hear: the noise of a task's own reward against that of the sum, and how far the two
tasks' rewards go together. Writes `experiments/results/credit.json` and prints the table.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro

from agents import Agent, RandomPolicy, Reinforce, Transition
from experiments import runs
from permenv import PermShuffleEnv

Policy = Literal["own", "sum", "random"]
_POLICIES: tuple[Policy, ...] = ("own", "sum", "random")
_STEEP_START = 1 / 3  # of a run: its rewards are trend, not noise


@dataclass(frozen=True)
class Config:
    """The measurement's options."""

    seeds: int = 4
    """Repetitions, seeds 0, 1, ..."""
    updates: int = 30
    """Updates of each run."""
    scenes_seed: int = 1000
    """Seed of the scenes and clips."""
    processes: int = 2
    """Runs at once, one thread each."""
    out: Path = Path("experiments/results/credit.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    jobs = [(policy, seed, config) for seed in range(config.seeds) for policy in _POLICIES]
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_run, *zip(*jobs, strict=True)))
    by_policy = {
        policy: [rows for rows, job in zip(found, jobs, strict=True) if job[0] == policy] for policy in _POLICIES
    }
    report: dict[str, Any] = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": f"embedded scenes and clips, seed {config.scenes_seed}",
        "seeds": config.seeds,
        "updates": config.updates,
        "final_error": {},
        "noise": _noise(by_policy["random"]),
    }
    print(f"{report['data']}, {config.updates} updates, {config.seeds} seeds\n\nfinal error (mean ± sd)")
    for policy, rows in by_policy.items():
        # the mean of the last three validations
        final = np.array([[list(row["errors"].values()) for row in run[-3:]] for run in rows]).mean(axis=1)
        names = [*rows[0][-1]["errors"], "mean"]
        values = np.concatenate([final, final.mean(axis=1, keepdims=True)], axis=1)  # [seeds, tasks + 1]
        report["final_error"][policy] = {
            name: {"mean": float(column.mean()), "sd": float(column.std(ddof=1)) if len(column) > 1 else 0.0}
            for name, column in zip(names, values.T, strict=True)
        }
        row = report["final_error"][policy]
        print(f"  {policy:<8}" + "  ".join(f"{name} {v['mean']:.3f} ± {v['sd']:.3f}" for name, v in row.items()))
    print("\nrewards under random permutations")
    for name, value in report["noise"].items():
        print(f"  {name:<44} {value:.4f}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, report)
    return report


def _run(policy: Policy, seed: int, config: Config) -> list[dict[str, Any]]:
    """One run; errors and rewards by task, update by update."""
    torch.set_num_threads(1)
    env = gym.make(
        "PermShuffle-v0",
        task="spatiotemporal",
        scenes_seed=config.scenes_seed,
        total_updates=config.updates,
        device="cpu",
    )
    world = env.unwrapped
    assert isinstance(world, PermShuffleEnv)
    spaces = env.observation_space, env.action_space
    agent: Agent = RandomPolicy(*spaces, seed=seed)
    if policy != "random":
        agent = Reinforce(*spaces, seed=seed, credit=policy)
    observation, _ = env.reset(seed=seed)
    rows, over = [], False
    while not over:
        action = agent.act(observation)
        observation_next, gain, terminated, truncated, info = env.step(action)
        agent.learn(Transition(observation, action, gain, observation_next, terminated, truncated, info))
        observation, over = observation_next, terminated or truncated
        if info["validated"] and info["phase"] == "update":
            rows.append({"errors": info["task_errors"], "rewards": info["task_rewards"]})
    return rows


def _noise(rows: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Standard deviations of the tasks' rewards and of their sum, and the tasks' correlation; means over the runs."""
    figures: dict[str, list[float]] = {}
    for run in rows:
        settled = run[int(len(run) * _STEEP_START) :]
        rewards = {task: np.array([row["rewards"][task] for row in settled]) for task in settled[0]["rewards"]}
        for task, values in rewards.items():
            figures.setdefault(f"sd of the {task} reward", []).append(float(values.std()))
        figures.setdefault("sd of the sum", []).append(float(sum(rewards.values()).std()))  # type: ignore[union-attr]
        correlation = float(np.corrcoef(list(rewards.values()))[0, 1])
        figures.setdefault("correlation of the two", []).append(correlation)
    return {name: statistics.mean(values) for name, values in figures.items()}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
