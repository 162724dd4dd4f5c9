"""Every agent on the tiny preset: final error, area under the error curve and cost, with their uncertainty.

    python experiments/leaderboard.py
    python experiments/leaderboard.py --agents random reinforce lookahead --seeds 10

Runs of one seed begin with the same network and the same X_val, so agents are compared with random permutations seed by
seed. Each run is written to the folder `out` when it ends, and what is there is not run again: kill it and start it
again at any time. Writes `experiments/results/leaderboard.json`, `.csv` and `.png` and prints the table.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from experiments import contest, runs
from permenv import PermShuffleEnv

_REFERENCE = "random"


@dataclass(frozen=True)
class Config(contest.Config):
    """The comparison's options; random permutations, to compare with, are among the agents whether named or not."""

    runs: Path = Path("runs/leaderboard")
    """Folder of the runs, one JSON file each; those that are there already are not run again."""
    out: Path = Path("experiments/results/leaderboard")
    """Where to write the .json, .csv and .png."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ValueError: If an agent is unknown.
        RunFolderError: If the folder has runs of other settings.
    """
    config = dataclasses.replace(config, agents=tuple(dict.fromkeys((*config.agents, _REFERENCE))))
    found = contest.run_all(functools.partial(_run, updates=config.updates), config, {})
    report = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": "embedded scenes, seed 0",
        "seeds": config.seeds,
        "updates": config.updates,
        "iterations": found[_REFERENCE][0]["iterations"][-1],
        "interval": contest.INTERVAL,
        "agents": _table(found),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out.with_suffix(".json"), report)
    runs.write_text(config.out.with_suffix(".csv"), _as_csv(report["agents"]))
    runs.write_picture(config.out.with_suffix(".png"), _figure(report, found))
    print(_in_words(report))
    return report


def _run(name: str, seed: int, updates: int) -> dict[str, Any]:
    """One agent's run from one seed."""
    env = _LastRun(gym.make("PermShuffle-v0", total_updates=updates, device="cpu"))
    start = time.perf_counter()
    contest.play(name, env, seed=seed)
    seconds = time.perf_counter() - start
    return {**env.last_run, "seconds": seconds, "cost": 1 - env.last_run["seconds_training"] / seconds}


class _LastRun(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Keeps what is reported of a run that has ended, for Stable-Baselines3 begins the next one at once."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.last_run: dict[str, Any] = {}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and not self.last_run:
            world = self.unwrapped
            assert isinstance(world, PermShuffleEnv)
            iterations, errors = zip(*world.history["spatial"], strict=True)
            if terminated:  # a network that diverged has the worst error
                iterations, errors = (*iterations, info["iteration"] + 1), (*errors, 1.0)
            self.last_run = {
                "iterations": iterations,
                "errors": errors,
                "diverged": terminated,
                "seconds_training": world.seconds["training"],
            }
        return observation, reward, terminated, truncated, info


def _table(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row an agent, the lowest final error first."""
    rows = []
    for name, each in found.items():
        figures = {
            "final_error": [run["errors"][-1] for run in each],
            "against_random": [
                run["errors"][-1] - reference["errors"][-1]
                for run, reference in zip(each, found[_REFERENCE], strict=True)
            ],
            "area": [area(run["iterations"], run["errors"]) for run in each],
            "gain": [(run["errors"][0] - run["errors"][-1]) / (len(run["errors"]) - 1) for run in each],
            "cost": [run["cost"] for run in each],
        }
        row: dict[str, Any] = {"agent": name, "n": len(each), "diverged": sum(run["diverged"] for run in each)}
        for figure, values in figures.items():
            row[figure], row[f"{figure}_low"], row[f"{figure}_high"] = contest.mean_and_interval(values)
        rows.append(row)
    return sorted(rows, key=lambda row: row["final_error"])


def area(iterations: list[int], errors: list[float]) -> float:
    """Area under the error curve, divided by its length: the mean error over the run, in [0, 1]."""
    return float(np.trapezoid(errors, iterations) / (iterations[-1] - iterations[0]))


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _figure(report: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> Figure:
    """Final errors with their intervals, and the mean error curves."""
    rows = report["agents"]
    figure = Figure(figsize=(11, 0.34 * len(rows) + 1.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, row in enumerate(rows):
        colour = "black" if row["agent"] == _REFERENCE else matplotlib.colormaps["tab20"](place % 20)
        left.plot([row["final_error_low"], row["final_error_high"]], [place, place], color=colour, linewidth=2)
        left.plot(row["final_error"], place, marker="o", color=colour)
        left.plot([run["errors"][-1] for run in found[row["agent"]]], [place] * row["n"], "|", color=colour, alpha=0.5)
        curves = [run for run in found[row["agent"]] if not run["diverged"]]
        if curves:
            mean = np.mean([run["errors"] for run in curves], axis=0)
            right.plot(curves[0]["iterations"], mean, color=colour, linewidth=1.2, alpha=0.8)
    left.axvline(next(row["final_error"] for row in rows if row["agent"] == _REFERENCE), color="grey", linewidth=0.8)
    left.set_yticks(range(len(rows)), [row["agent"] for row in rows])
    left.invert_yaxis()
    left.set(title=f"error after {report['iterations']} iterations, {report['seeds']} seeds", xlabel="E")
    right.set(title="mean error over the run, in the same colours", xlabel="SGD iteration", ylim=(0, 1.02))
    return figure


def _in_words(report: dict[str, Any]) -> str:
    """The table, as the README shows it."""

    def shown(row: dict[str, Any], name: str, form: str) -> str:
        return f"{row[name]:{form}} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"

    lines = [
        f"{report['data']}, {report['seeds']} seeds, {report['iterations']} iterations; mean [{report['interval']}]",
        "",
        "| agent | final error | against random, same seed | area under the curve | gain an update | cost |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["agents"]:
        cells = [
            row["agent"],
            shown(row, "final_error", ".3f"),
            shown(row, "against_random", "+.3f"),
            shown(row, "area", ".3f"),
            shown(row, "gain", ".4f"),
            f"{row['cost']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, runs.RunFolderError) as error:
        sys.exit(f"error: {error}")
