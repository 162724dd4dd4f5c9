"""The best curriculum that is fixed in advance, which policies learned across runs are compared with.

    python experiments/studies/curricula.py

Each of `CURRICULA` begins with an easiest share of Ψ and adds the others over a share of the updates
(`agents.EasiestFirst`). The best has the largest mean return, Σ γ^t (E_t - E_{t+1}) with the discount with which
`experiments/across_runs.py` learns. The seeds are used for nothing else; `experiments/leaderboard.py` reports the best
one on others. How much random permutations still learn in the last tenth of the iterations says whether a run is long
enough for a comparison, or longer than it need be.

A job that is done is kept in the folder `runs`. Writes `experiments/results/curricula.json` and prints the table.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.agent_runs import curriculum_options, play
from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.effect import Curves, iterations_needed
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import INTERVAL, Estimate, mean_of, ratio_of_means
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds

CURRICULA = tuple(itertools.product((0.1, 0.3, 0.5), (0.3, 0.5, 0.75, 1.0)))
"""Of each curriculum: the share of Ψ in its first pool, and the share of the updates after which it is all of Ψ."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    preset: Preset = "nano"
    discount: float = 0.97
    """γ of an update."""
    seeds: int = 4
    """Runs of each curriculum."""
    first_seed: int = 40
    """The first of the seeds; these are used for tuning only."""
    runs: Path | None = Path("runs/curricula")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/curricula.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write."""
    variants: dict[str, dict[str, Any]] = {
        _name(None): {"curriculum": None},
        **{_name(each): {"curriculum": each} for each in CURRICULA},
    }
    found = {name: Curves.of(runs) for name, runs in over_seeds(_run, variants, config).items()}
    random, rows = found[_name(None)], []
    for name, curves in found.items():
        reductions = -np.diff(curves.errors)  # [seeds, updates]
        rows.append(
            {
                "curriculum": name,
                "return": float((reductions @ config.discount ** np.arange(reductions.shape[1])).mean()),
                **mean_of(curves.accuracies(0.5) - random.accuracies(0.5)).as_columns("more_at_half"),
                **mean_of(curves.accuracies(1.0) - random.accuracies(1.0)).as_columns("more_at_end"),
                **iterations_needed(curves, random).as_columns("needs"),
                "errors": curves.errors.tolist(),
            }
        )
    rows.sort(key=lambda row: row["return"], reverse=True)
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": INTERVAL,
        "random": _alone(random),
        "curricula": rows,
    }
    publish(report, in_words(report), config.out)
    return report


def _alone(random: Curves) -> dict[str, float | None]:
    """Return the accuracy of random permutations, and how it grows over the last tenth of the iterations."""
    half, late, end = (random.accuracies(share) for share in (0.5, 0.9, 1.0))
    growth = ratio_of_means(end, late)
    return {
        "at_half": float(half.mean()),
        "at_end": float(end.mean()),
        **Estimate(*(value - 1 for value in growth)).as_columns("growth"),
    }


def _name(curriculum: tuple[float, float] | None) -> str:
    return "random" if curriculum is None else "from {:g} over {:g}".format(*curriculum)


def _run(curriculum: tuple[float, float] | None, seed: int, environment: EnvOptions) -> dict[str, Any]:
    if curriculum is None:
        return play("random", environment.make(), seed=seed)
    options = curriculum_options(*curriculum, environment.env.total_updates)
    return play("easiest-first", environment.make(), seed=seed, **options)


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        heading_in_words(report),
        "",
        "| curriculum | return | accuracy at half, points above random's | at the end "
        "| iterations to random's final error |",
        "|---|---|---|---|---|",
    ]
    for row in report["curricula"]:
        needs = "not reached" if row["needs"] is None else f"{row['needs']:.0%}"
        more = (Estimate.of_columns(row, column) for column in ("more_at_half", "more_at_end"))
        cells = " | ".join(f"{Estimate(*(100 * end for end in points)):+.1f}" for points in more)
        lines.append(f"| {row['curriculum']} | {row['return']:.3f} | {cells} | {needs} |")
    random = report["random"]
    lines += [
        "",
        f"random permutations: accuracy {random['at_half']:.1%} at half, {random['at_end']:.1%} at the end; over the "
        f"last tenth it grows by {Estimate.of_columns(random, 'growth'):.0%}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
