"""Where choosing permutations matters: what the best of some curricula gains over random permutations, by setting.

    python experiments/studies/headroom.py --data-folder path/to/data

Each cell differs from the nano preset in one factor: the number of permutations, how far the network is trained
already, the task, the kind of permutation set, the data. In each cell random permutations are tuned over `RATES` first,
and then the curricula (`agents.EasiestFirst`) are compared at that learning rate, on the tuning seeds. The best one is
compared with random permutations on the reported seeds, on which nothing was chosen: by the difference of accuracies,
and by their ratio where those of random permutations are at least `LEAST` times chance.

A job that is done is kept in the folder `runs`, so the study can be killed and started again. Writes
`experiments/results/headroom.json` and `.png` and prints the table.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

import agents
from agents.rollout import rollout
from experiments.common.agent_runs import curriculum_options, watch
from experiments.common.files import with_ending, write_picture
from experiments.common.options import DATA_FOLDER, EnvOptions, Preset, SweepOptions, require_known
from experiments.common.reports.effect import Curves, accuracy_ratio, iterations_needed
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import INTERVAL, Estimate, mean_of
from experiments.common.reports.style import styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import executor_of, sweep
from permenv import Config as Numbers
from permenv import DataError, make_config, register_task
from permenv.tasks import SpatialTask
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = (0.5, 1.0, 2.0)
"""Learning rates, as multiples of the preset's."""
CURRICULA = tuple(itertools.product((0.1, 0.5), (0.5, 1.0)))
"""Of each curriculum: the share of Ψ in its first pool, and the share of the updates after which it is all of Ψ."""

LEAST = 3
"""Of chance: the accuracy of random permutations from which on a ratio to it says something."""
_MOMENTS = {"half": 0.5, "end": 1.0}
_NUMBER = "number of permutations"


class _RandomSet(SpatialTask):
    """The spatial task with a Ψ that is drawn at random."""

    @classmethod
    def choose_permutations(cls, config: Numbers) -> np.ndarray:
        rng = np.random.default_rng(config.permutation_seed)
        chosen: dict[tuple[int, ...], None] = {}  # a set that keeps its order
        while len(chosen) < config.num_permutations:
            chosen[tuple(rng.permutation(config.num_tiles).tolist())] = None
        return np.array(list(chosen))


class _LargestMean(SpatialTask):
    """The spatial task with the Ψ of the jigsaw solver, each with the largest mean distance to those chosen before."""

    @classmethod
    def choose_permutations(cls, config: Numbers) -> np.ndarray:
        return _largest_mean(config.num_tiles, config.num_permutations, config.permutation_seed)


@functools.cache
def _largest_mean(pieces: int, count: int, seed: int) -> np.ndarray:
    candidates = np.array(list(itertools.permutations(range(pieces))))
    np.random.default_rng(seed).shuffle(candidates)  # argmax takes the first of equals
    chosen, total = [0], np.zeros(len(candidates))
    while len(chosen) < count:
        total += (candidates != candidates[chosen[-1]]).sum(axis=1)
        total[chosen[-1]] = -np.inf
        chosen.append(int(total.argmax()))
    return candidates[chosen]


class _Twins(SpatialTask):
    """The spatial task with a Ψ of pairs that differ in the places of two tiles; the pairs lie far apart."""

    @classmethod
    def choose_permutations(cls, config: Numbers) -> np.ndarray:
        count = config.num_permutations
        first = super().choose_permutations(dataclasses.replace(config, num_permutations=(count + 1) // 2))
        rng = np.random.default_rng(config.permutation_seed)
        second = first.copy()
        for row in second:
            two = rng.choice(len(row), 2, replace=False)
            row[two] = row[two[::-1]]
        return np.stack([first, second], axis=1).reshape(-1, first.shape[1])[:count]


register_task("spatial, random permutations", _RandomSet)
register_task("spatial, largest mean distance", _LargestMean)
register_task("spatial, near twins", _Twins)


@dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        factor: Which factor differs from the preset.
        task: A registered task.
        changes: Numbers that differ from the preset.
        before: Updates with random permutations before the comparison begins.
        images: Folder of images, relative to that of real data.
        videos: Folder of videos, likewise.
    """

    factor: str
    task: str = "spatial"
    changes: Mapping[str, Any] = field(default_factory=dict)
    before: int = 0
    images: str | None = None
    videos: str | None = None


CELLS = {
    "nano": Cell("preset"),
    "100 permutations": Cell(_NUMBER, changes={"num_permutations": 100}),
    "300 permutations": Cell(_NUMBER, changes={"num_permutations": 300}),
    "1000 permutations": Cell(_NUMBER, changes={"num_permutations": 1000}),
    "after 15 updates": Cell("phase", before=15),
    "after 30 updates": Cell("phase", before=30),
    "frames": Cell("task", task="temporal"),
    "drawn at random": Cell("permutation set", task="spatial, random permutations"),
    "largest mean distance": Cell("permutation set", task="spatial, largest mean distance"),
    "near twins": Cell("permutation set", task="spatial, near twins"),
    "Imagenette": Cell("data", images="imagenette/train"),
    "surveillance clips": Cell("data", task="temporal", videos="cctv/videos"),
}


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    preset: Preset = "nano"
    task: tyro.conf.Suppress[str] = "spatial"
    images: tyro.conf.Suppress[Path | None] = None
    videos: tyro.conf.Suppress[Path | None] = None
    only: tuple[str, ...] = tuple(CELLS)
    """Which settings to run."""
    data_folder: Path = DATA_FOLDER
    """Folder of the real data: imagenette, cctv."""
    seeds: int = 5
    """Reported runs of each policy."""
    first_seed: int = 200
    """The first of their seeds."""
    tuning_seeds: int = 2
    """Runs that choose the learning rate and the curriculum; their seeds are 20, 21, ..."""
    runs: Path | None = Path("runs/headroom")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/headroom.json")
    """JSON file; the picture lies beside it."""


_FIRST_TUNING_SEED = 20


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        ConfigurationError: If there is no such cell.
        DataError: If a cell's data are not there.
    """
    require_known("--only", config.only, CELLS)
    for folder in filter(None, (each for name in config.only for each in (CELLS[name].images, CELLS[name].videos))):
        if not (config.data_folder / folder).is_dir():
            raise DataError(
                f"there is no folder {config.data_folder / folder}: name that of the real data with --data-folder, or "
                f"leave out the cells that need it with --only"
            )
    tuning = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + config.tuning_seeds)
    reported = range(config.first_seed, config.first_seed + config.seeds)
    plans = {name: _Plan(name, config) for name in config.only}
    rates = _play(config, {(name, rate, None): plan for name, plan in plans.items() for rate in RATES}, tuning)
    best_rate = {name: max(RATES, key=lambda rate: _accuracy(rates[name, rate, None])) for name in plans}
    curricula = _play(
        config,
        {(name, best_rate[name], each): plan for name, plan in plans.items() for each in CURRICULA},
        tuning,
    )
    best = {name: max(CURRICULA, key=lambda each: _accuracy(curricula[name, best_rate[name], each])) for name in plans}
    final = _play(
        config,
        {(name, best_rate[name], each): plan for name, plan in plans.items() for each in (None, best[name])},
        reported,
    )
    rows = []
    for name in plans:
        random, ours = final[name, best_rate[name], None], final[name, best_rate[name], best[name]]
        rows.append(
            {
                "cell": name,
                "factor": CELLS[name].factor,
                "learning_rate_multiple": best_rate[name],
                "curriculum": list(best[name]),
                **compare(ours, random, chance=1 / plans[name].environment.env.num_permutations),
                "errors": {"random": random.errors.tolist(), "curriculum": ours.errors.tolist()},
                "tuning": {
                    "rates": {str(rate): 1 - rates[name, rate, None].errors for rate in RATES},
                    "curricula": {str(each): 1 - curricula[name, best_rate[name], each].errors for each in CURRICULA},
                },
            }
        )
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": INTERVAL,
        "cells": [_as_json(row) for row in rows],
    }
    write_picture(with_ending(config.out, ".png"), _picture(rows))
    publish(report, in_words(report), config.out)
    return report


def compare(ours: Curves, random: Curves, chance: float) -> dict[str, Any]:
    """Compare runs of the same seeds.

    Args:
        ours: With a curriculum.
        random: With random permutations.
        chance: The accuracy of a network that knows nothing.

    Returns:
        "chance"; for half of the iterations and their end "random_at_half", "curriculum_at_half" and so on, mean
        accuracies; "more_at_half", the mean of their differences; "at_half", the ratio of the means, None where random
        permutations are too close to chance; and "needs", see `iterations_needed`.
    """
    row: dict[str, Any] = {"chance": chance}
    for moment, share in _MOMENTS.items():
        each, theirs = ours.accuracies(share), random.accuracies(share)
        row[f"random_at_{moment}"], row[f"curriculum_at_{moment}"] = float(theirs.mean()), float(each.mean())
        row[f"more_at_{moment}"] = mean_of(each - theirs)
        row[f"at_{moment}"] = accuracy_ratio(ours, random, share) if theirs.mean() >= LEAST * chance else None
    return {**row, "needs": iterations_needed(ours, random)}


class _Plan:
    """How a cell is played: its environment, and the updates before the comparison."""

    def __init__(self, name: str, config: Config):
        cell = CELLS[name]
        changes = {key: getattr(config.env, key) for key in config.overrides}
        self.before = cell.before
        numbers = make_config(config.preset, cell.task, **{**changes, **cell.changes})
        self.updates = numbers.total_updates
        self.environment = EnvOptions(
            preset=config.preset,
            task=cell.task,
            device=config.device,
            env=dataclasses.replace(numbers, total_updates=numbers.total_updates + cell.before),
            images=config.data_folder / cell.images if cell.images else None,
            videos=config.data_folder / cell.videos if cell.videos else None,
        )


_Key = tuple[str, float, tuple[float, float] | None]  # cell, multiple of the learning rate, curriculum or None


def _play(config: Config, plans: Mapping[_Key, _Plan], seeds: range) -> dict[_Key, Curves]:
    """Play each plan with each seed."""
    jobs = {
        _job((name, rate, curriculum), seed): {
            "rate": rate,
            "curriculum": curriculum,
            "before": plan.before,
            "updates": plan.updates,
            "seed": seed,
            "environment": plan.environment,
        }
        for seed in seeds
        for (name, rate, curriculum), plan in plans.items()
    }
    with executor_of(config) as executor:
        found = sweep(_run, jobs, executor=executor, folder=config.runs)
    return {key: Curves.of([found[_job(key, seed)] for seed in seeds]) for key in plans}


def _job(key: _Key, seed: int) -> str:
    """Return what the job of a plan and a seed is called."""
    name, rate, curriculum = key
    return f"{name}, rate {rate:g}, {'random' if curriculum is None else curriculum}, seed {seed}"


def _run(
    rate: float,
    curriculum: tuple[float, float] | None,
    before: int,
    updates: int,
    seed: int,
    environment: EnvOptions,
) -> dict[str, Any]:
    """Play one run; its curve begins where the comparison begins."""
    env = environment.make(learning_rate=rate * environment.env.learning_rate)
    first = 0  # validation of the comparison

    def act(watched: Any) -> None:
        nonlocal first
        agent = agents.make("random", watched, seed=seed)
        observation, _ = watched.reset(seed=seed)
        if before:
            last = rollout(watched, agent, observation=observation, updates=before)
            first = len(base_env_of(env).records) - 1
            if last.done:
                return
            observation = last.next_observation
        if curriculum is not None:
            agent = agents.make("easiest-first", watched, seed=seed, **curriculum_options(*curriculum, updates))
        rollout(watched, agent, observation=observation)

    run = watch(env, act)
    return {**run, "iterations": run["iterations"][first:], "errors": run["errors"][first:]}


def _accuracy(curves: Curves) -> float:
    """What tuning maximises: the mean accuracy at half and at the end."""
    return float(curves.accuracies(0.5).mean() + curves.accuracies(1.0).mean()) / 2


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= value.as_columns(name) if isinstance(value, Estimate) else {name: value}  # None: there is no ratio
    return {
        **flat,
        "tuning": {kind: {k: v.tolist() for k, v in tried.items()} for kind, tried in row["tuning"].items()},
    }


def _label(row: dict[str, Any]) -> str:
    """Return what a cell is called: what differs from the preset, and how."""
    return row["cell"] if row["factor"] == _NUMBER else f"{row['factor']}: {row['cell']}"


@styled
def _picture(rows: list[dict[str, Any]]) -> Figure:
    """Draw what the best curriculum of each cell has more at half of the iterations and at the end, and of what."""
    from matplotlib.figure import Figure  # slow to import

    from permenv.render import BLUE, VERMILION

    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for height, row in enumerate(rows):
        for moment, shift, colour, label in (
            ("half", -0.18, BLUE, "at half of the iterations"),
            ("end", 0.18, VERMILION, "at the end"),
        ):
            value, low, high = (100 * end for end in row[f"more_at_{moment}"])
            axis.barh(height + shift, value, height=0.34, color=colour, label=None if height else label)
            axis.plot([low, high], [height + shift] * 2, color="black", linewidth=1)
            words = f"  {row[f'random_at_{moment}']:.1%} → {row[f'curriculum_at_{moment}']:.1%}"
            end = max(high if np.isfinite(high) else value, 0)
            axis.text(end, height + shift, words, fontsize=8, verticalalignment="center")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.2)
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="accuracy of the best curriculum, points above random permutations'")
    figure.legend(fontsize=9, loc="outside upper right", ncols=2)
    return figure


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}; accuracy of random permutations; in points, what the best curriculum has more; "
        f"and its accuracy, of theirs, where they have {LEAST} times chance; mean [{report['interval']}]",
        "",
        "| setting | learning rate, of the preset's | curriculum | chance | random, half | curriculum, more "
        "| of random's | random, end | curriculum, more | of random's | iterations to random's final error |",
        "|---" * 11 + "|",
    ]
    for row in report["cells"]:
        curriculum = "from {:g} over {:g}".format(*row["curriculum"])
        cells = [_label(row), f"{row['learning_rate_multiple']:g}", curriculum, f"{row['chance']:.1%}"]
        for moment in _MOMENTS:
            more = Estimate(*(100 * end for end in Estimate.of_columns(row, f"more_at_{moment}")))
            ratio = row[f"at_{moment}"]
            of_random = "-" if ratio is None else f"{Estimate.of_columns(row, f'at_{moment}'):.0%}"
            cells += [f"{row[f'random_at_{moment}']:.1%}", f"{more:+.1f}", of_random]
        lines.append("| " + " | ".join([*cells, f"{Estimate.of_columns(row, 'needs'):.0%}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
