"""Which reward the policy of a joint task should credit a task's choices with: the task's own gain, or the sum of both.

    python experiments/studies/credit.py

Trains REINFORCE on the joint task with either credit, and with random permutations. Reports

- the final error of each task, the mean of its last three validations;
- from the runs with random permutations, whose policy does not change, the noise of either credit: the standard
  deviation of each task's reward and of their sum, and the correlation of the two tasks' rewards.

The embedded data have a seed that is used for nothing else. Writes `experiments/results/credit.json` and prints the
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tyro

from agents import Agent, RandomPolicy, Reinforce
from agents.rollout import rollout
from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish, with_sd
from experiments.common.reports.statistics import mean_and_sd
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds

Policy = Literal["own", "sum", "random"]
_POLICIES: tuple[Policy, ...] = ("own", "sum", "random")
_STEEP_START = 1 / 3  # of a run: there the rewards are trend, not noise
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
    found = over_seeds(_run, {policy: {"policy": policy} for policy in _POLICIES}, config)
    report = {
        **heading(config),
        "final_error": {policy: _final_errors(runs) for policy, runs in found.items()},
        "noise": _noise(found["random"]),
    }
    publish(report, in_words(report), config.out)
    return report


def _run(policy: Policy, seed: int, environment: EnvOptions) -> list[dict[str, Any]]:
    """Return the errors and rewards by task after every update of one run."""
    env = environment.make()
    spaces = env.observation_space, env.action_space
    agent: Agent = RandomPolicy(*spaces, seed=seed)
    if policy != "random":
        agent = Reinforce(*spaces, seed=seed, credit=policy)
    rows: list[dict[str, Any]] = []
    rollout(
        env,
        agent,
        seed=seed,
        on_update=lambda transition: rows.append(
            {"errors": transition.info["task_errors"], "rewards": transition.info["task_rewards"]}
        ),
    )
    return rows


def _final_errors(runs: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over the runs of the final error, by task and of the mean over the tasks."""
    last = np.array([[list(row["errors"].values()) for row in run[-_LAST:]] for run in runs])  # [runs, 3, tasks]
    final = last.mean(axis=1)
    by_task = dict(zip(runs[0][0]["errors"], final.T, strict=True))
    return {name: mean_and_sd(errors) for name, errors in {**by_task, "mean": final.mean(axis=1)}.items()}


def _noise(runs: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Return the means over the runs of the rewards' standard deviations and of the tasks' correlation."""
    metrics: dict[str, list[float]] = {}
    for run in runs:
        settled = run[int(len(run) * _STEEP_START) :]
        rewards = {task: np.array([row["rewards"][task] for row in settled]) for task in settled[0]["rewards"]}
        for task, values in rewards.items():
            metrics.setdefault(f"sd of the {task} reward", []).append(values.std())
        table = np.array(list(rewards.values()))  # [tasks, updates]
        metrics.setdefault("sd of the sum", []).append(table.sum(axis=0).std())
        metrics.setdefault("correlation of the two", []).append(np.corrcoef(table)[0, 1])
    return {name: float(np.mean(values)) for name, values in metrics.items()}


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [heading_in_words(report), "", "final error (mean ± sd)"]
    for policy, row in report["final_error"].items():
        lines.append(f"  {policy:<8}" + "  ".join(f"{name} {with_sd(metric)}" for name, metric in row.items()))
    lines += ["", "rewards under random permutations"]
    lines += [f"  {name:<28} {value:.4f}" for name, value in report["noise"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
