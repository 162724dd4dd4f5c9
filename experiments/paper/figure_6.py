"""Figure 6: the error of every spatial permutation over the joint task's training, with the policy and without.

    python experiments/paper/figure_6.py

Each row of the picture is a permutation, each column a validation; rows are sorted by their mean error over time. The
paper sees a uniform improvement without the policy and an uneven one with it (section 4.3), in one run each of CaffeNet
on ImageNet and UCF-101 with 1000 permutations; it gives no numbers. Here it is the tiny preset (100 permutations of
each task) on embedded scenes and clips, with REINFORCE within the run.

How uneven the errors are is measured as their standard deviation over the permutations. Errors on V samples scatter
even where all permutations are equally difficult; that part of the variance is subtracted (`noise_variance`). All
permutations have the same samples, so that a difficult sample raises all errors alike and adds nothing to it.
Whether the error ends lower where the agent chose more is measured by the rank correlation, over the permutations, of
their shares of the choices and their errors at the end.

A job that is done is kept in the folder `runs`. Writes `experiments/results/figure-6.json`, with the deciles over the
permutations at each validation, and `.png`, the first seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

import agents
from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, Estimate, mean_of
from experiments.common.reports.style import styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.paper.shared import follow
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS = {"S+T+P": "reinforce", "S+T": "random"}
"""By the paper's name, the agent."""
TASK = "spatial"
"""Whose permutations are shown."""
MOMENTS = {"half": 0.5, "end": 1.0}
"""Shares of the run at which numbers are given."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    task: tyro.conf.Suppress[str] = "spatiotemporal"
    seeds: int = 3
    """Runs of each."""
    first_seed: int = 720
    """The first of the seeds."""
    runs: Path | None = Path("runs/figure-6")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/figure-6.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        RuntimeError: If a run diverges.
    """
    found = over_seeds(_run, {name: {"agent": agent} for name, agent in NETWORKS.items()}, config)
    rows = {name: _row(runs) for name, runs in found.items()}
    ours, theirs = rows.values()
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "validated": found["S+T"][0]["iterations"],
        "networks": rows,
        "differences": {
            f"{metric}_{moment}": mean_of(
                np.array(ours["by_seed"][metric])[:, index] - np.array(theirs["by_seed"][metric])[:, index]
            )
            for metric in ("error", "spread")
            for index, moment in enumerate(MOMENTS)
        },
    }
    publish(report, in_words(report), config.out, _figure(found))
    return report


def noise_variance(correct: np.ndarray) -> float:
    """Return the part of the variance of errors over the permutations that is due to the choice of the samples.

    It is the residual mean square of the two-way table of permutations and samples, over V.

    Args:
        correct: (|Ψ|, V) bool, whether a permutation of a sample was recognised; |Ψ| and V at least 2.
    """
    table = correct.astype(float)
    residuals = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    permutations, samples = table.shape
    return float(np.square(residuals).sum() / ((samples - 1) * (permutations - 1) * samples))


def deviation(errors: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the permutations of their true errors.

    Args:
        errors: (validations, |Ψ|), the share of the samples on which each permutation was not recognised.
        noise: (validations,), see `noise_variance`.

    Returns:
        (validations,), the deviation after that variance is subtracted; 0 where less is left.
    """
    return np.sqrt(np.maximum(0, errors.var(axis=1, ddof=1) - noise))


def correlation(shares: np.ndarray, errors: np.ndarray) -> float:
    """Return Spearman's rank correlation over the permutations, 0 where all of either are equal.

    Args:
        shares: (|Ψ|,), of the choices.
        errors: (|Ψ|,).
    """
    from scipy.stats import spearmanr  # slow to import

    if np.ptp(shares) == 0 or np.ptp(errors) == 0:
        return 0.0
    return float(spearmanr(shares, errors).statistic)


def sorted_rows(errors: np.ndarray) -> np.ndarray:
    """Turn errors (validations, |Ψ|) into rows of permutations (|Ψ|, validations), highest mean error first."""
    return errors.T[np.argsort(-errors.mean(axis=0), kind="stable")]


def _run(agent: str, seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Train one network.

    Returns:
        "iterations" of the validations; "errors", (validations, |Ψ|); "noise", (validations,), the variance of errors
        by the choice of the samples; and "shares", (|Ψ|,), of the run's choices.
    """
    env = environment.make()
    base_env = base_env_of(env)
    choices = follow(env, agents.make(agent, env, seed=seed), TASK, seed=seed)
    if base_env.run.diverged:
        raise RuntimeError(f"seed {seed} diverged: lower the learning rate")
    validations = [*(each.validation for each in choices), base_env.validation[TASK]]
    return {
        "iterations": [*(each.iteration for each in choices), base_env.run.iteration],
        "errors": [each.permutation_errors.tolist() for each in validations],
        "noise": [noise_variance(each.correct) for each in validations],
        "shares": np.mean([each.shares for each in choices], axis=0).tolist(),
    }


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of the runs of one network."""
    errors = [np.array(run["errors"]) for run in runs]  # (validations, |Ψ|) each
    noises = [np.array(run["noise"]) for run in runs]
    validations = [round(share * (len(errors[0]) - 1)) for share in MOMENTS.values()]
    by_seed = {
        "error": [each.mean(axis=1)[validations].tolist() for each in errors],
        "spread": [deviation(each, noise)[validations].tolist() for each, noise in zip(errors, noises, strict=True)],
        "correlation": [correlation(np.array(run["shares"]), each[-1]) for run, each in zip(runs, errors, strict=True)],
    }
    return {
        **{
            f"{metric}_{moment}": mean_of(np.array(values)[:, index])
            for metric, values in by_seed.items()
            if metric != "correlation"
            for index, moment in enumerate(MOMENTS)
        },
        "correlation": mean_of(by_seed["correlation"]),
        "by_seed": by_seed,
        "deciles": [np.quantile(each, np.linspace(0, 1, 11), axis=1).T.round(4).tolist() for each in errors],
    }


@styled
def _figure(found: dict[str, list[dict[str, Any]]]) -> Figure:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5 * len(found), 5), dpi=120, layout="constrained")
    axes = picture.subplots(1, len(found), sharey=True)
    for axis, (name, runs) in zip(axes, found.items(), strict=True):
        rows, last = sorted_rows(np.array(runs[0]["errors"])), runs[0]["iterations"][-1]
        shown = axis.imshow(
            rows, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="none", extent=(0, last, len(rows), 0)
        )
        axis.set(title=name, xlabel="SGD iteration")
    axes[0].set_ylabel("permutation, by mean error")
    picture.colorbar(shown, ax=axes, label="error")
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    columns = {f"{metric}_{moment}": f"{metric}, {moment}" for metric in ("error", "spread") for moment in MOMENTS}
    lines = [
        f"{heading_in_words(report)}; spatial permutations of the joint task, mean [{report['interval']}]",
        "",
        "| network | " + " | ".join(columns.values()) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, row in report["networks"].items():
        lines.append(f"| {name} | " + " | ".join(f"{Estimate(*row[column]):.3f}" for column in columns) + " |")
    more = report["differences"]
    lines.append("| difference | " + " | ".join(f"{Estimate(*more[column]):+.3f}" for column in columns) + " |")
    found = ", ".join(f"{name} {Estimate(*row['correlation']):+.2f}" for name, row in report["networks"].items())
    lines += ["", f"rank correlation of a permutation's share of the choices and its error at the end: {found}"]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
