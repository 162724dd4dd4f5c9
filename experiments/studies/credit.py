"""The credit of a task's head in the joint task: the gain of its own task, or the sum of both.

    python experiments/studies/credit.py

Trains REINFORCE on the joint task with either credit, and with random permutations, on embedded data of a seed that is
used for nothing else. Reports the final errors and, from the random runs, whose policy never changes, the noise of both
credits: the standard deviation of each task's reward and of their sum, and the correlation of the two. Writes
`experiments/results/credit.json` and prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tyro

from agents import Agent, RandomPolicy, Reinforce
from agents.rollout import rollout
from experiments.common.files import write_json
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, SweepOptions, run_script
from experiments.common.statistics import mean_and_sd
from experiments.common.sweep import make_executor, sweep
from permenv.training import resolve_device

Policy = Literal["own", "sum", "random"]
_POLICIES: tuple[Policy, ...] = ("own", "sum", "random")
_STEEP_START = 1 / 3  # of a run: its rewards are trend, not noise
_LAST = 3  # validations whose mean is the final error


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000}

    task: tyro.conf.Suppress[str] = "spatiotemporal"
    seeds: int = 4
    """Repetitions, seeds 0, 1, ..."""
    out: Path = Path("experiments/results/credit.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    jobs: dict[str, dict[str, Any]] = {
        f"{policy}-seed{seed}": {"policy": policy, "seed": seed, "environment": config.environment}
        for seed in range(config.seeds)
        for policy in _POLICIES
    }
    with make_executor(config.processes) as executor:
        found = sweep(_run, jobs, executor=executor, folder=config.runs)
    runs = {policy: [found[f"{policy}-seed{seed}"] for seed in range(config.seeds)] for policy in _POLICIES}
    report: dict[str, Any] = {
        "machine": machine(resolve_device(config.device), threads=1),  # of each process
        "data": config.data,
        "seeds": config.seeds,
        "updates": config.env.total_updates,
        "final_error": {policy: _final_errors(each) for policy, each in runs.items()},
        "noise": _noise(runs["random"]),
    }
    print(f"{report['data']}, {report['updates']} updates, {config.seeds} seeds\n\nfinal error (mean ± sd)")
    for policy, row in report["final_error"].items():
        print(f"  {policy:<8}" + "  ".join(f"{name} {v['mean']:.3f} ± {v['sd']:.3f}" for name, v in row.items()))
    print("\nrewards under random permutations")
    for name, value in report["noise"].items():
        print(f"  {name:<44} {value:.4f}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, report)
    return report


def _run(policy: Policy, seed: int, environment: EnvOptions) -> list[dict[str, Any]]:
    """Train one run; return errors and rewards by task, update by update."""
    env = environment.make()
    spaces = env.observation_space, env.action_space
    agent: Agent = RandomPolicy(*spaces, seed=seed)
    if policy != "random":
        agent = Reinforce(*spaces, seed=seed, credit=policy)
    rows: list[dict[str, Any]] = []

    def keep(transition: Any) -> None:
        rows.append({"errors": transition.info["task_errors"], "rewards": transition.info["task_rewards"]})

    rollout(env, agent, seed=seed, on_update=keep)
    return rows


def _final_errors(runs: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over the runs, by task and of the tasks' mean."""
    final = np.array([[list(row["errors"].values()) for row in run[-_LAST:]] for run in runs]).mean(axis=1)
    columns = dict(zip(runs[0][-1]["errors"], final.T, strict=True))  # [seeds] each
    return {name: mean_and_sd(column) for name, column in {**columns, "mean": final.mean(axis=1)}.items()}


def _noise(runs: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Return the standard deviations of the tasks' rewards and of their sum, and the correlation; means over runs."""
    figures: dict[str, list[float]] = {}
    for run in runs:
        settled = run[int(len(run) * _STEEP_START) :]
        rewards = {task: np.array([row["rewards"][task] for row in settled]) for task in settled[0]["rewards"]}
        for task, values in rewards.items():
            figures.setdefault(f"sd of the {task} reward", []).append(float(values.std()))
        figures.setdefault("sd of the sum", []).append(float(np.sum(list(rewards.values()), axis=0).std()))
        correlation = float(np.corrcoef(list(rewards.values()))[0, 1])
        figures.setdefault("correlation of the two", []).append(correlation)
    return {name: float(np.mean(values)) for name, values in figures.items()}


if __name__ == "__main__":
    run_script(main, Config, __doc__)
