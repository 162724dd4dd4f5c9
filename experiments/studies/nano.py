"""The search for the nano preset: cheap runs in which it matters which permutations are trained on.

    python experiments/studies/nano.py

`CANDIDATES` are the settings: a start, and changes of it, most of them of one number. The preset is the start with more
averaging and more updates, which the table suggested; its learning rate is searched around it, too. Each setting is run
with random permutations and with a curriculum that begins with the easiest tenth of Ψ and adds the others over half of
the run (`agents.EasiestFirst`). A good setting is cheap, is learned by random permutations in the time given (accuracy
above 10% at the end, and above ten times chance at half of it), and rewards the curriculum.

The seeds and the scenes are used for nothing else. A job that is done is kept in the folder `runs`, so the study can be
killed and started again. Writes `experiments/results/nano.json` and prints the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from experiments.common.agent_runs import curriculum_options, play
from experiments.common.options import EnvOptions, Preset, SweepOptions, require_known
from experiments.common.reports.effect import Curves, accuracy_ratio, iterations_needed
from experiments.common.reports.report import heading, publish
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from permenv.wrappers.base import base_env_of

Changes = Mapping[str, Any]

_AVERAGING = {"ema_decay": 0.99}
_NANO = {**_AVERAGING, "total_updates": 30}

CANDIDATES: Mapping[str, Changes] = MappingProxyType(
    {
        "start": {},
        **{f"learning rate {rate}": {"learning_rate": rate} for rate in (0.005, 0.01, 0.04, 0.08)},
        "100 permutations": {"num_permutations": 100},
        "300 permutations": {"num_permutations": 300},
        "1000 permutations": {"num_permutations": 1000},
        "8-pixel tiles": {"cell_size": 9, "piece_size": 8},
        "12-pixel tiles": {"cell_size": 14, "piece_size": 12},
        "24-pixel tiles": {"cell_size": 27, "piece_size": 24},
        "4 × 4 tiles": {"grid": 4},
        "batch of 16": {"batch_size": 16},
        "batch of 64": {"batch_size": 64},
        "half the head": {"fc6": 24, "fc7": 96},
        "twice the head": {"fc6": 96, "fc7": 384},
        "averaging 0.9": {"ema_decay": 0.9},
        "averaging 0.99": _AVERAGING,
        "no jitter": {"jitter": 0.0, "grey_probability": 0.0},
        "500 scenes": {"num_scenes": 500},
        "48 updates": {"total_updates": 48, "iterations_per_update": 50},
        "nano": _NANO,
        **{f"nano, learning rate {rate}": {**_NANO, "learning_rate": rate} for rate in (0.005, 0.01, 0.03, 0.04)},
    }
)

_CURRICULUM = (0.1, 0.5)  # the share of Ψ in the first pool, and of the updates until it is whole


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000, "ema_decay": 0.97, "total_updates": 24}

    preset: Preset = "nano"
    only: tuple[str, ...] = tuple(CANDIDATES)
    """Which settings to run."""
    seeds: int = 2
    """Runs of each policy in each setting."""
    first_seed: int = 10
    """The first of the seeds; these are used for tuning only."""
    runs: Path | None = Path("runs/nano")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/nano.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        ConfigurationError: If there is no such candidate.
    """
    require_known("--only", config.only, CANDIDATES)
    variants = {
        f"{name}, {policy}": {"changes": dict(CANDIDATES[name]), "curriculum": policy == "curriculum"}
        for name in config.only
        for policy in ("random", "curriculum")
    }
    found = over_seeds(_run, variants, config)
    rows = [_row(name, found[f"{name}, random"], found[f"{name}, curriculum"]) for name in config.only]
    report = {**heading(config), "first_seed": config.first_seed, "candidates": rows}
    for name in ("updates", "iterations"):  # candidates have their own
        del report[name]
    publish(report, in_words(report), config.out)
    return report


def _run(changes: Changes, curriculum: bool, seed: int, environment: EnvOptions) -> dict[str, Any]:
    env = environment.make(**changes)
    if not curriculum:
        return play("random", env, seed=seed)
    updates = base_env_of(env).config.total_updates
    return play("easiest-first", env, seed=seed, **curriculum_options(*_CURRICULUM, updates))


def _row(name: str, random: list[dict[str, Any]], curriculum: list[dict[str, Any]]) -> dict[str, Any]:
    theirs, ours = Curves.of(random), Curves.of(curriculum)
    half, late, end = (float(theirs.accuracies(share).mean()) for share in (0.5, 0.9, 1.0))
    return {
        "candidate": name,
        "changes": dict(CANDIDATES[name]),
        "seconds": float(np.mean([run["seconds"] for run in (*random, *curriculum)])),
        "iterations": int(theirs.iterations[-1]),
        "random_at_half": half,
        "random_at_end": end,
        "random_growth": end / late - 1,
        **accuracy_ratio(ours, theirs, 0.5).as_columns("curriculum_at_half"),
        **accuracy_ratio(ours, theirs, 1.0).as_columns("curriculum_at_end"),
        **iterations_needed(ours, theirs).as_columns("curriculum_needs"),
        "errors": {"random": theirs.errors.tolist(), "curriculum": ours.errors.tolist()},
    }


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{report['data']}, {report['seeds']} seeds",
        "",
        "accuracy of random permutations at half and at the end, its growth over the last tenth; the curriculum's "
        "accuracy, in percent of random's, and the share of the iterations in which it reaches random's final error",
        "",
        "| setting | seconds | random, half | end | growth | curriculum, half | end | needs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["candidates"]:
        lines.append(
            f"| {row['candidate']} | {row['seconds']:.0f} | {row['random_at_half']:.1%} | {row['random_at_end']:.1%} "
            f"| {row['random_growth']:+.0%} | {row['curriculum_at_half']:.0%} | {row['curriculum_at_end']:.0%} "
            f"| {'not reached' if row['curriculum_needs'] is None else format(row['curriculum_needs'], '.0%')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
