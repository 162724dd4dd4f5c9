"""Every agent on the tiny preset: final error, area under the error curve and cost, with their uncertainty.

    python experiments/leaderboard.py
    python experiments/leaderboard.py --agents random reinforce lookahead --seeds 10

Runs of one seed begin with the same network and the same X_val, so agents are compared with random permutations seed by
seed. Each run is written to the folder `out` when it ends, and what is there is not run again: kill it and start it
again at any time. Writes `experiments/results/leaderboard.json`, `.csv` and `.png` and prints the table.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

import agents
from agents import sb3
from experiments import runs
from permenv import PermShuffleEnv

_STABLE_BASELINES = ("ppo", "a2c", "dqn")
AGENTS = (*agents.AGENTS, *_STABLE_BASELINES)
_REFERENCE = "random"
_RESAMPLES = 10_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Config:
    """The comparison's options."""

    agents: tuple[str, ...] = AGENTS
    """Who is compared; random permutations, to compare with, always are."""
    seeds: int = 5
    """Runs of each, seeds 0, 1, ..."""
    updates: int = 8
    """Updates of each run."""
    processes: int = max(1, (os.cpu_count() or 1))
    """Runs at once, one thread each."""
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
    unknown = [name for name in config.agents if name not in AGENTS]
    if unknown:
        raise ValueError(f"unknown agent {unknown[0]!r}: choose of {', '.join(AGENTS)}")
    names = tuple(dict.fromkeys((*config.agents, _REFERENCE)))
    config.runs.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for seed in range(config.seeds) for name in names]
    missing = [job for job in jobs if _load(*job, config) is None]
    missing.sort(key=lambda job: job[0] == "lookahead")  # it takes as long as all others together
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_run, *job, config) for job in missing]
        for done in tqdm(as_completed(running), total=len(running), unit="run", disable=not running):
            done.result()
    found = {name: [_loaded(name, seed, config) for seed in range(config.seeds)] for name in names}
    report = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": "embedded scenes, seed 0",
        "seeds": config.seeds,
        "updates": config.updates,
        "iterations": found[_REFERENCE][0]["iterations"][-1],
        "interval": f"{_LEVEL:.0%}, bootstrap of the mean over seeds, {_RESAMPLES} resamples",
        "agents": _table(found),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out.with_suffix(".json"), report)
    runs.write_text(config.out.with_suffix(".csv"), _as_csv(report["agents"]))
    runs.write_picture(config.out.with_suffix(".png"), _figure(report, found))
    print(_in_words(report))
    return report


def _run(name: str, seed: int, config: Config) -> None:
    """One agent's run from one seed; leaves its file behind."""
    torch.set_num_threads(1)
    env = _LastRun(gym.make("PermShuffle-v0", total_updates=config.updates, device="cpu"))
    world = env.unwrapped
    assert isinstance(world, PermShuffleEnv)
    start = time.perf_counter()
    if name in agents.AGENTS:
        agent = agents.make(name, env, seed=seed)
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            action = agent.act(observation)
            observation_next, reward, terminated, truncated, info = env.step(action)
            agent.learn(agents.Transition(observation, action, reward, observation_next, terminated, truncated, info))
            observation, over = observation_next, terminated or truncated
    else:
        model = sb3.make_model(name, env, seed=seed)
        model.learn(config.updates * sb3.steps_of_an_update(env))
    seconds = time.perf_counter() - start
    runs.write_json(
        _file(name, seed, config),
        {
            "settings": _settings(config),
            "agent": name,
            "seed": seed,
            **env.last_run,
            "seconds": seconds,
            "cost": 1 - env.last_run["seconds_training"] / seconds,
        },
    )


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


def _file(name: str, seed: int, config: Config) -> Path:
    return config.runs / f"{name}-seed{seed}.json"


def _load(name: str, seed: int, config: Config) -> dict[str, Any] | None:
    path = _file(name, seed, config)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != _settings(config):
        raise runs.RunFolderError(
            f"{path} was run with {found['settings']}, asked for is {_settings(config)}: name another folder with "
            f"--runs, or remove it"
        )
    return found


def _loaded(name: str, seed: int, config: Config) -> dict[str, Any]:
    found = _load(name, seed, config)
    assert found is not None, "it has just been run"
    return found


def _settings(config: Config) -> dict[str, Any]:
    """What runs of one table have in common."""
    return {"updates": config.updates, "versions": runs.machine(torch.device("cpu"))["versions"]}


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
            row[figure] = float(np.mean(values))
            row[f"{figure}_low"], row[f"{figure}_high"] = interval(values)
        rows.append(row)
    return sorted(rows, key=lambda row: row["final_error"])


def area(iterations: list[int], errors: list[float]) -> float:
    """Area under the error curve, divided by its length: the mean error over the run, in [0, 1]."""
    return float(np.trapezoid(errors, iterations) / (iterations[-1] - iterations[0]))


def interval(values: list[float]) -> tuple[float, float]:
    """The bootstrap's percentile interval of the mean."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


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
