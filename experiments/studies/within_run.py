"""REINFORCE within one run: which of its numbers, and which reward, keep the lead over random permutations.

    python experiments/studies/within_run.py

`VARIANTS` change one number each of `agents.Reinforce`, its reward, or how often it learns. The seeds and the scenes
are used for nothing else; what is chosen here is reported by `experiments/leaderboard.py` on others. A job that is done
is kept in the folder `runs`. Writes `experiments/results/within-run.json` and prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import gymnasium as gym

from experiments.common.agent_runs import play
from experiments.common.options import EnvOptions, Preset, SweepOptions, require_known
from experiments.common.reports.effect import Curves, accuracy_ratio, iterations_needed
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import INTERVAL, Estimate
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from permenv.wrappers import CrossEntropyReward, ErrorReduction


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        agent: Its name.
        options: Of the agent.
        reward: Name in `REWARDS`.
        halves: Whether updates have half as many iterations, and there are twice as many.
    """

    agent: str = "reinforce"
    options: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "gain"
    halves: bool = False


REWARDS: Mapping[str, Callable[[gym.Env], gym.Env]] = {
    "gain": lambda env: env,
    "reduction": ErrorReduction,
    "cross-entropy": CrossEntropyReward,
}

VARIANTS = {
    "random": Variant("random"),
    "defaults": Variant(),
    "learning rate 0.03": Variant(options={"learning_rate": 0.03}),
    "learning rate 0.1": Variant(options={"learning_rate": 0.1}),
    "no entropy": Variant(options={"entropy_weight": 0.0}),
    "entropy 0.3": Variant(options={"entropy_weight": 0.3}),
    "baseline of two rewards": Variant(options={"baseline_decay": 0.5}),
    "discount 0.5": Variant(options={"discount": 0.5}),
    "reward: reduction": Variant(reward="reduction"),
    "reward: reduction, discount 0.9": Variant(reward="reduction", options={"discount": 0.9}),
    "reward: cross-entropy": Variant(reward="cross-entropy"),
    "reward: cross-entropy, entropy 0.3": Variant(reward="cross-entropy", options={"entropy_weight": 0.3}),
    "reward: cross-entropy, entropy 0.03": Variant(reward="cross-entropy", options={"entropy_weight": 0.03}),
    "reward: cross-entropy, learning rate 0.03": Variant(reward="cross-entropy", options={"learning_rate": 0.03}),
    "reward: cross-entropy, discount 0.9": Variant(reward="cross-entropy", options={"discount": 0.9}),
    "twice the updates": Variant(halves=True),
    "twice the updates, random": Variant("random", halves=True),
    "twice the updates, learning rate 0.03": Variant(halves=True, options={"learning_rate": 0.03}),
}
_REFERENCE = "random"


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000}

    preset: Preset = "nano"
    only: tuple[str, ...] = tuple(VARIANTS)
    """Which variants to run; random permutations are always among them."""
    seeds: int = 4
    """Runs of each variant."""
    first_seed: int = 30
    """The first of the seeds; these are used for tuning only."""
    runs: Path | None = Path("runs/within-run")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/within-run.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        ConfigurationError: If there is no such variant.
    """
    require_known("--only", config.only, VARIANTS)
    names = dict.fromkeys((_REFERENCE, *config.only))
    found = over_seeds(_run, {name: {"name": name} for name in names}, config)
    random = Curves.of(found[_REFERENCE])
    rows = []
    for name in names:
        curves = Curves.of(found[name])
        metrics = {
            "at_half": accuracy_ratio(curves, random, 0.5),
            "at_end": accuracy_ratio(curves, random, 1.0),
            "needs": iterations_needed(curves, random),
        }
        columns = {column: value for key, each in metrics.items() for column, value in each.as_columns(key).items()}
        rows.append({"variant": name, **columns, "errors": curves.errors.tolist()})
    report = {**heading(config), "first_seed": config.first_seed, "interval": INTERVAL, "variants": rows}
    publish(report, in_words(report), config.out)
    return report


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}; mean [{report['interval']}]",
        "",
        "| variant | final error | accuracy at half, of random's | at the end | iterations to random's final error |",
        "|---|---|---|---|---|",
    ]
    final = {row["variant"]: fmean(errors[-1] for errors in row["errors"]) for row in report["variants"]}
    for row in sorted(report["variants"], key=lambda row: final[row["variant"]]):
        metrics = (Estimate.of_columns(row, column) for column in ("at_half", "at_end", "needs"))
        cells = " | ".join(f"{each:.0%}" for each in metrics)
        lines.append(f"| {row['variant']} | {final[row['variant']]:.3f} | {cells} |")
    return "\n".join(lines)


def _run(name: str, seed: int, environment: EnvOptions) -> dict[str, Any]:
    variant, numbers = VARIANTS[name], environment.env
    halves: dict[str, Any] = {
        "total_updates": 2 * numbers.total_updates,
        "iterations_per_update": numbers.iterations_per_update // 2,
    }
    env = REWARDS[variant.reward](environment.make(**(halves if variant.halves else {})))
    return play(variant.agent, env, seed=seed, **variant.options)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
