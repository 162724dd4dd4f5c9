"""All agents on one environment: final error, area under the error curve and cost, with their uncertainty.

    python experiments/leaderboard.py
    python experiments/leaderboard.py --agents random reinforce lookahead --seeds 10

Runs of one seed begin with the same network and the same validation set, so agents are compared with random
permutations seed by seed. Each run is written to the folder `runs` when it ends and is not run again: the script can be
killed and started again at any time. Writes `experiments/results/leaderboard.json`, `.csv` and `.png` and prints the
table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np

from experiments.common.files import write_json, write_picture, write_text
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, SweepOptions, run_script
from experiments.common.players import AGENTS, check_names, play
from experiments.common.run_folder import as_csv
from experiments.common.statistics import INTERVAL, area, mean_and_interval
from experiments.common.sweep import over_seeds
from permenv import PermShuffleEnv
from permenv.training import resolve_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REFERENCE = "random"


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The comparison's options."""

    changes: ClassVar = {"total_updates": 8}

    agents: tuple[str, ...] = AGENTS
    """The agents; random permutations, which the others are compared with, are always among them."""
    seeds: int = 5
    """Runs of each agent, seeds 0, 1, ..."""
    runs: Path | None = Path("runs/leaderboard")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/leaderboard")
    """Where to write the .json, .csv and .png."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ConfigurationError: If an agent is unknown.
        RunFolderError: If the folder has runs of other settings.
    """
    check_names(config.agents)
    names = tuple(dict.fromkeys((*config.agents, _REFERENCE)))
    found = over_seeds(_run, {name: {"name": name} for name in names}, config)
    report = {
        "machine": machine(resolve_device(config.device), threads=1),  # of each process
        "data": config.data,
        "seeds": config.seeds,
        "updates": config.env.total_updates,
        "iterations": found[_REFERENCE][0]["iterations"][-1],
        "interval": INTERVAL,
        "agents": _table(found),
    }
    write_json(config.out.with_suffix(".json"), report)
    write_text(config.out.with_suffix(".csv"), as_csv(report["agents"]))
    write_picture(config.out.with_suffix(".png"), _figure(report, found))
    print(_in_words(report))
    return report


def _run(name: str, seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Let one agent act in one run."""
    env = _LastRun(environment.make())
    start = time.perf_counter()
    play(name, env, seed=seed)
    seconds = time.perf_counter() - start
    return {**env.last_run, "seconds": seconds, "cost": 1 - env.last_run["seconds_training"] / seconds}


class _LastRun(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the figures of a run when it ends, because Stable-Baselines3 begins the next one at once."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.last_run: dict[str, Any] = {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and not self.last_run:
            base_env = self.unwrapped
            assert isinstance(base_env, PermShuffleEnv)
            iterations = [record.iteration for record in base_env.records]
            errors = [float(np.mean(list(record.errors.values()))) for record in base_env.records]
            if terminated:  # a network that diverged has the worst error
                iterations, errors = [*iterations, info["iteration"] + 1], [*errors, 1.0]
            self.last_run = {
                "iterations": iterations,
                "errors": errors,
                "diverged": terminated,
                "seconds_training": base_env.run.seconds["training"],
            }
        return observation, reward, terminated, truncated, info


def _table(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each agent, the lowest final error first."""
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
            row[figure], row[f"{figure}_low"], row[f"{figure}_high"] = mean_and_interval(values)
        rows.append(row)
    return sorted(rows, key=lambda row: row["final_error"])


def _figure(report: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw the final errors with their intervals, and the mean error curves."""
    import matplotlib  # slow to import
    from matplotlib.figure import Figure

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
    """Return the table, as the README shows it."""

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
    run_script(main, Config, __doc__)
