"""How much of a reward is signal: what the choice of a group changes, against what chance changes.

    python experiments/studies/noise.py

At some moments of a run with random permutations the run is forked, and each fork is trained for one update, tilted
towards one group: half of the samples get a permutation of that group, half any. For every group the sequence of
choices is drawn once and repeated with other data: other samples, other members of the groups, other crops. The
baseline of a reward is determined before its update begins, so rewards of one moment differ only by the errors that the
updates end with.

Reported for the gain in error and in cross-entropy, of the averaged weights and of the live ones:

- noise: the standard deviation of r under the same choices with different data;
- signal: the standard deviation of r between groups. All groups see the same data, and what data change for all of them
  alike is no difference between groups. So it is the variance between the means of the groups, less that of the
  residuals of rows and columns divided by the number of repetitions (two-way analysis of variance);
- p: that groups differ as much by chance (F test);
- ratio: of the variances of signal and noise; and the updates after which the mean gain of a group would be known as
  well as groups differ, 1 / ratio.

Variances are pooled over all moments. The embedded scenes have a seed that is used for nothing else. Writes
`experiments/results/noise.json`, with every reward, and prints the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro

from agents.groups import tilt
from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.studies.shared import train
from permenv import ConfigurationError, Pretraining
from permenv.validation import validate

_SHARE = 0.5  # of the samples whose permutation is of the group in question
_REWARDS = tuple(f"{measure}, {weights}" for measure in ("error", "cross-entropy") for weights in ("averaged", "live"))

Table = dict[str, list[list[float]]]
"""By reward, its values up to a constant: [groups, repeats]."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000}

    task: tyro.conf.Suppress[str] = "spatial"
    seeds: int = 2
    """Networks, seeds 0, 1, ..."""
    moments: tuple[int, ...] = (4, 12)
    """Updates after which to measure, ascending, each at least 1."""
    repeats: int = 5
    """Repetitions of the same choices with other data, at least 2."""
    out: Path = Path("experiments/results/noise.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Raises:
        ConfigurationError: If the moments are not ascending updates of a run, or there are too few repetitions.
    """
    moments = (0, *config.moments, config.env.total_updates)
    if list(moments) != sorted(set(moments)):
        raise ConfigurationError(
            f"--moments {config.moments}: name ascending updates from 1 to {moments[-1] - 1}, so that another update "
            f"follows each (--updates {moments[-1]})"
        )
    if config.repeats < 2:
        raise ConfigurationError(f"--repeats {config.repeats}: noise is measured from at least 2 repetitions")
    options: dict[str, Any] = {"moments": config.moments, "repeats": config.repeats}
    found = over_seeds(_measure, {"noise": options}, config)["noise"]
    tables = [table for run in found for table in run]
    report = {
        **heading(config),
        **options,
        "share": _SHARE,
        "rewards": {name: signal_to_noise([np.array(table[name]) for table in tables]) for name in _REWARDS},
        "tables": tables,
    }
    publish(report, in_words(report), config.out)
    return report


def signal_to_noise(tables: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Split the variance of rewards into what groups explain and what data explain (two-way random effects).

    Args:
        tables: For each moment (groups, repeats), the reward up to a constant of the moment; a column has the same data
            for all groups.

    Returns:
        "noise_sd", "signal_sd", "p" of the F test, "ratio" of the variances, "updates" = 1 / ratio (None if there is no
        signal).
    """
    from scipy.special import fdtrc  # slow to import

    repeats = tables[0].shape[1]
    within = np.mean([table.var(axis=1, ddof=1).mean() for table in tables])
    of_groups = [len(table) - 1 for table in tables]  # degrees of freedom
    means = sum(table.mean(axis=1).var(ddof=1) * each for table, each in zip(tables, of_groups, strict=True))
    rest = sum(np.square(_residuals(table)).sum() for table in tables) / (sum(of_groups) * (repeats - 1))
    means /= sum(of_groups)
    between = max(0.0, means - rest / repeats)
    return {
        "noise_sd": float(within**0.5),
        "signal_sd": float(between**0.5),
        "p": float(fdtrc(sum(of_groups), sum(of_groups) * (repeats - 1), means * repeats / rest)),
        "ratio": float(between / within),
        "updates": float(within / between) if between else None,
    }


def _residuals(table: np.ndarray) -> np.ndarray:
    """What is left of a table after the means of its rows and columns."""
    return table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()


def _measure(moments: Sequence[int], repeats: int, seed: int, environment: EnvOptions) -> list[Table]:
    """Return the table of every moment of one run."""
    run = environment.pretraining(seed)
    rng = np.random.default_rng([seed, 1])
    tables = []
    for update in range(1, max(moments) + 1):
        if not train(run, _draw_groups(run, _fractions(run), rng)):
            raise RuntimeError(f"seed {seed} diverged in update {update}: nothing to measure")
        if update in moments:
            tables.append(_at_a_moment(run, repeats, rng))
    return tables


def _at_a_moment(run: Pretraining, repeats: int, rng: np.random.Generator) -> Table:
    fractions = _fractions(run)
    table: Table = {name: [] for name in _REWARDS}
    data_seeds = rng.integers(2**31, size=repeats).tolist()  # the same for all groups
    for group in np.flatnonzero(fractions).tolist():
        chosen = _draw_groups(run, tilt(fractions, group, _SHARE), rng)
        rewards = [_rewards(run, chosen, data_seed) for data_seed in data_seeds]
        for name, rows in table.items():
            rows.append([each[name] for each in rewards])
    return table


def _rewards(run: Pretraining, chosen: np.ndarray, data_seed: int) -> dict[str, float]:
    """Return every reward of an update with these choices and other data, up to a constant of the moment."""
    fork = run.fork()
    fork.seed = data_seed
    if not train(fork, chosen):
        raise RuntimeError(f"seed {run.seed} diverged after iteration {run.iteration}: nothing to measure")
    task = fork.tasks["spatial"]
    live = validate(fork.trainer.network, "spatial", task.pieces(fork.held_out["spatial"]), task.permutations)
    rewards = {}
    for weights, found in (("averaged", fork.validation["spatial"]), ("live", live)):
        rewards[f"error, {weights}"] = -found.error
        rewards[f"cross-entropy, {weights}"] = -found.cross_entropy
    return rewards


def _fractions(run: Pretraining) -> np.ndarray:
    """Return the share of the permutations that each group holds, (|C|,) float64."""
    sizes = run.observation[:, 0].astype(np.float64)
    return sizes / sizes.sum()


def _draw_groups(run: Pretraining, chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the choices of an update, (iterations, A, 1) int."""
    return rng.choice(len(chances), (run.config.iterations_per_cycle, run.config.actions_per_iteration, 1), p=chances)


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}, after {report['moments']} updates, {report['repeats']} repetitions",
        "",
        "| reward, weights | noise | signal | p | ratio of variances | updates to know a group's gain |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["rewards"].items():
        updates = "none" if row["updates"] is None else f"{row['updates']:.1f}"
        p = f"{row['p']:.3f}" if row["p"] >= 0.001 else "below 0.001"
        lines.append(
            f"| {name} | {row['noise_sd']:.4f} | {row['signal_sd']:.4f} | {p} | {row['ratio']:.2f} | {updates} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
