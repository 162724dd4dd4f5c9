r"""Figure H.1: what the policy costs, in forward passes and in measured time.

    python experiments/paper/table_5_figure_5.py    # trains the networks
    python experiments/paper/figure_h1.py

Appendix H counts a mini-batch through the network as a forward pass. A validation runs \|Ψ\| · \|X_val\| shuffled
samples, V = 1000 · 100 / 128 ≈ 780 passes, twice an update; 90 updates cost 90 · 2 · 780 passes, 40% of the 350,000
iterations ("naive"). Here the trunk processes the samples of X_val once, \|X_val\| / 128 < 1 passes, and the head
scores all permutations from these features (`permenv.validation`, "exact"); what it needs is in the measured times.

Left is Top-1 of figure 5 against forward passes, those of the policy's validations included: naive and exact. A network
without a policy needs no validation. The passes of both tasks count. Right is the time of training, of the state
(validation, grouping and ŝ) and of the policy (choices, and its own updates), measured on this machine at the sizes of
the preset and added up for the iterations of a run with several numbers of updates; "naive" is the time of as many
forward passes. The paper's curves have no numbers; its cost is 40%.

Reads `experiments/results/table-5-figure-5.json` if it is there; without it only times are measured. Writes
`experiments/results/figure-h1.json` and `.png`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro

import agents
from agents import Agent, Transition
from agents.base import Action
from agents.rollout import rollout
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, require_at_least
from experiments.common.reports.report import origin, publish
from experiments.common.reports.statistics import mean_of
from experiments.common.reports.style import label_lines, styled
from experiments.common.script import run_script
from permenv import Config as Numbers
from permenv import ConfigurationError
from permenv.device import resolve_device
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

UPDATES = (10, 30, 90, 270, 810)
"""Numbers of updates in a run, the paper's 90 among them."""
PAPER_COST = 0.4
"""Of training, appendix H."""
WAYS = ("naive", "exact")
PARTS = ("training", "state", "policy")
_COLUMNS = ("iterations", "batches", "validations", "top1")


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options."""

    task: tyro.conf.Suppress[str] = "spatial"
    device: str = "cpu"
    """auto, cpu or cuda."""
    curves: Path = Path("experiments/results/table-5-figure-5.json")
    """What `experiments/paper/table_5_figure_5.py` wrote."""
    measured_updates: int = 2
    """Updates that are timed, after one that is not."""
    measured_iterations: int = 10
    """SGD iterations of each."""
    seed: int = 800
    """Of the network that is timed."""
    out: Path = Path("experiments/results/figure-h1.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Read the curves, measure, print and write.

    Raises:
        ConfigurationError: If `curves` is not such a file, or a number is out of range.
    """
    require_at_least(config, measured_updates=1, measured_iterations=1, seed=0)
    found = read_curves(config.curves) if config.curves.exists() else None
    times = measure(config)
    iterations = config.env.total_iterations
    report = {
        **origin(config),
        "machine": machine(resolve_device(config.device)),
        "preset": config.preset,
        "data": config.data,
        "iterations": iterations,
        "paper_cost": PAPER_COST,
        "counted_cost": {way: counted_cost(Numbers(), way) for way in WAYS},
        "seconds_each": times,
        "seconds_of_a_naive_validation": times["forward"] * passes_of_validation(config.env.as_dict(), "naive"),
        "seconds": {str(updates): seconds_of_run(times, iterations, updates) for updates in UPDATES},
        "curves": None
        if found is None
        else {
            name: {
                **{way: passes(curve, found["numbers"], way) for way in WAYS},
                "top1": curve["top1"],
            }
            for name, curve in found["curves"].items()
        },
    }
    publish(report, in_words(report), config.out, _figure(report))
    return report


def read_curves(path: Path) -> dict[str, Any]:
    """Read "curves" and "numbers" of figure 5.

    Raises:
        ConfigurationError: If the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        curves, numbers = content["curves"], content["numbers"]
        for curve in curves.values():
            lengths = {len(curve[name]) for name in _COLUMNS[:3]} | {len(row) for row in curve["top1"]}
            if len(lengths) != 1:
                raise ValueError("its columns have different lengths")
        return {"curves": curves, "numbers": {name: int(number) for name, number in numbers.items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"--curves {path}: {error}; name what experiments/paper/table_5_figure_5.py wrote"
        ) from error


def passes_of_validation(numbers: Mapping[str, Any], way: str) -> float:
    """Return the forward passes, of a mini-batch each, of one validation of one task.

    Args:
        numbers: Fields of `permenv.Config`: "num_permutations", "num_validation" and "batch_size".
        way: "naive", every sample under every permutation, or "exact", the samples once.
    """
    samples = numbers["num_validation"] * (numbers["num_permutations"] if way == "naive" else 1)
    return samples / numbers["batch_size"]


def counted_cost(numbers: Numbers, way: str) -> float:
    """Return the forward passes of two validations an update, as a share of the run's iterations (appendix H)."""
    return numbers.total_updates * 2 * passes_of_validation(numbers.as_dict(), way) / numbers.total_iterations


def passes(curve: Mapping[str, Sequence[float]], numbers: Mapping[str, int], way: str) -> list[float]:
    """Return the forward passes before each point of a curve of figure 5, those of validations included."""
    each = passes_of_validation(numbers, way)
    return [batches + each * count for batches, count in zip(curve["batches"], curve["validations"], strict=True)]


class _Stopwatch(Agent):
    """Times an agent: its choices, and its updates. What an update learns from is collected with the choices."""

    def __init__(self, agent: Agent):
        self._agent = agent
        self.acting = self.learning = 0.0

    def act(self, observation: np.ndarray) -> Action:
        start = time.perf_counter()
        action = self._agent.act(observation)
        self.acting += time.perf_counter() - start
        return action

    def learn(self, transition: Transition) -> dict[str, float]:
        start = time.perf_counter()
        metrics = self._agent.learn(transition)
        seconds = time.perf_counter() - start
        if transition.info["validated"]:
            self.learning += seconds
        else:
            self.acting += seconds
        return metrics


def measure(config: Config) -> dict[str, float]:
    """Measure what a run consists of.

    Returns:
        Seconds of an iteration's "training" and "choices", of an update's "state" and "learning", and of a "forward"
        pass of a mini-batch in evaluation mode.
    """
    updates, iterations = config.measured_updates, config.measured_iterations
    env = config.make(total_updates=1 + updates, iterations_per_update=iterations, free_iterations=0)
    base_env, agent = base_env_of(env), _Stopwatch(agents.make("reinforce", env, seed=config.seed))
    warm = rollout(env, agent, seed=config.seed, updates=1)
    before = dict(base_env.run.seconds)
    agent.acting = agent.learning = 0.0
    rollout(env, agent, observation=warm.next_observation)
    spent = {name: seconds - before[name] for name, seconds in base_env.run.seconds.items()}
    return {
        "training": spent["training"] / (updates * iterations),
        "choices": agent.acting / (updates * iterations),
        "state": (spent["validation"] + spent["grouping"]) / updates,
        "learning": agent.learning / updates,
        "forward": _seconds_of_a_pass(config, base_env),
    }


def _seconds_of_a_pass(config: Config, base_env: Any) -> float:
    (task,) = base_env.tasks.values()
    rng, batch = np.random.default_rng(config.seed), base_env.config.batch_size
    labels = rng.integers(len(task.permutations), size=batch)
    samples = task.draw(task.trainable(base_env.run.held_out[config.task]), batch, rng)
    pieces = task.pieces(samples, task.permutations[labels])
    base_env.network(config.task, pieces)
    _wait_for(base_env.device)
    start = time.perf_counter()
    for _ in range(config.measured_iterations):
        base_env.network(config.task, pieces)
    _wait_for(base_env.device)
    return (time.perf_counter() - start) / config.measured_iterations


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of_run(times: Mapping[str, float], iterations: int, updates: int) -> dict[str, float]:
    """Add up the time of a run of so many iterations and updates.

    Returns:
        By part of `PARTS`. A run is validated once more than it is updated, at its beginning.
    """
    return {
        "training": iterations * times["training"],
        "state": (updates + 1) * times["state"],
        "policy": iterations * times["choices"] + updates * times["learning"],
    }


@styled
def _figure(report: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    from permenv.render import COLOURS

    picture = Figure(figsize=(12, 4.5), dpi=120, layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    lines: list[Line2D] = []
    for colour, (name, curve) in zip(itertools.cycle(COLOURS), (report["curves"] or {}).items(), strict=False):
        top1 = 100 * np.mean(curve["top1"], axis=0)
        for way, style in zip(WAYS, ("--", "-"), strict=True):
            line = left.plot(curve[way], top1, style, marker=".", color=colour, label=name)
            lines += line if way == "naive" else []  # which ends on the right
    left.set(xlabel="forward passes (dashed: naive validation)", ylabel="Top-1, %", xscale="log")
    if not report["curves"]:
        left.text(0.5, 0.5, "figure 5 has not been run", transform=left.transAxes, horizontalalignment="center")
    below = np.zeros(len(UPDATES))
    for part in PARTS:
        seconds = np.array([report["seconds"][str(updates)][part] for updates in UPDATES])
        right.bar(range(len(UPDATES)), seconds, bottom=below, label=part)
        below = below + seconds
    right.set_xticks(range(len(UPDATES)), [str(updates) for updates in UPDATES])
    right.set(
        xlabel="updates in a run", ylabel="seconds", title=f"{report['preset']}, {report['iterations']} iterations"
    )
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    label_lines(left, lines)
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    counted = " and ".join(f"{report['counted_cost'][way]:.2%} {way}" for way in WAYS)
    lines = [
        f"cost of validations in forward passes at the paper's sizes, of training: {counted} (paper: about "
        f"{PAPER_COST:.0%})",
        f"{report['preset']} preset, {report['iterations']} iterations on {report['machine']['device']}; seconds",
        "",
        "| updates | training | state: validation and groups | policy | state and policy, of training | state, naive |",
        "|---|---|---|---|---|---|",
    ]
    for updates, seconds in report["seconds"].items():
        cells = " | ".join(f"{seconds[part]:.2f}" for part in PARTS)
        cost = (seconds["state"] + seconds["policy"]) / seconds["training"]
        naive = (int(updates) + 1) * report["seconds_of_a_naive_validation"]
        lines.append(f"| {updates} | {cells} | {cost:.1%} | {naive:.0f} |")
    if report["curves"] is None:
        return "\n".join([*lines, "", "figure 5 has not been run: experiments/paper/table_5_figure_5.py"])
    lines += ["", "| network | Top-1 at the end, % | passes, naive | passes, exact |", "|---|---|---|---|"]
    for name, curve in report["curves"].items():
        top1 = mean_of([100 * row[-1] for row in curve["top1"]])
        lines.append(f"| {name} | {top1:.1f} | {curve['naive'][-1]:.0f} | {curve['exact'][-1]:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
