"""Figures G.1 and G.2: how shuffled the permutations are that a policy chooses, at several moments of its run.

    python experiments/paper/figures_g1_g2.py
    python experiments/paper/figures_g1_g2.py --policy experiments/results/pool-policy.safetensors

G.1 is the share of the chosen permutations by Hamming distance to the order that is not shuffled, G.2 shows some of
those with the highest and with the lowest probability. Appendix G sees no pattern: neither does the policy begin with
strongly shuffled permutations, nor end with them. It gives no numbers, of one run with 1000 permutations. Here it is
the nano preset (500 permutations) on embedded scenes, with REINFORCE as it learns within the run, or a frozen policy
learned across runs. As a measure of a pattern serves the mean distance of what is chosen minus that of Ψ, which random
permutations have on average.

Ψ holds permutations that are far from each other, so hardly any is close to the original order; what is drawn at random
is shown beside what is chosen. A permutation's probability is what the update's choices gave it: all of a group have
the same, and of equals those shown are drawn. A job that is done is kept in the folder `runs`. Writes
`experiments/results/figures-g1-g2.json` and `.png`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.common.learned import LearnedPolicy
from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.figures import tiled
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, Estimate, mean_of
from experiments.common.reports.style import styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.paper.shared import find_policy, follow, moments_of, policy_in
from permenv import Task
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENTS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the updates after which the choices are shown."""
EXAMPLES = 3
"""Permutations of high and of low probability at each."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    preset: Preset = "nano"
    task: tyro.conf.Suppress[str] = "spatial"
    policy: Path | None = None
    """Run folder of `experiments/across_runs.py`, or a copy of its checkpoint; by default REINFORCE within each run."""
    seeds: int = 5
    """Runs."""
    first_seed: int = 780
    """The first of the seeds; its run is the one of which examples are drawn."""
    runs: Path | None = Path("runs/figures-g1-g2")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/figures-g1-g2.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        CheckpointError: If `policy` holds no policy.
        RuntimeError: If a run diverges.
    """
    name, policy = find_policy(config.policy)
    runs = over_seeds(_run, {name: {"policy": policy}}, config)[name]
    task = base_env_of(config.environment.make()).tasks[config.task]
    distances = distances_of(task.permutations)
    by_distance = np.array([run["by_distance"] for run in runs])  # [seeds, moments, distances]
    excess = by_distance @ np.arange(by_distance.shape[2]) - distances.mean()  # [seeds, moments]
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "policy": name,
        "iterations_before": runs[0]["iterations"],
        "random": spread_over(distances, np.full(len(distances), 1 / len(distances)), task.num_pieces).tolist(),
        "chosen": by_distance.tolist(),
        "excess_distance": [mean_of(each) for each in excess.T],
        "high": [run["high"] for run in runs],
        "low": [run["low"] for run in runs],
    }
    publish(report, in_words(report), config.out, _figure(report, task))
    return report


def distances_of(permutations: np.ndarray) -> np.ndarray:
    """Return the Hamming distances (|Ψ|,) of permutations (|Ψ|, n) to the order that is not shuffled, 0 to n."""
    return (permutations != np.arange(permutations.shape[1])).sum(axis=1)


def spread_over(distances: np.ndarray, shares: np.ndarray, pieces: int) -> np.ndarray:
    """Add up the shares (|Ψ|,) of the permutations at each distance, (pieces + 1,); sums to 1."""
    return np.bincount(distances, weights=shares, minlength=pieces + 1)


def extremes(shares: np.ndarray, count: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return the permutations of the highest and those of the lowest shares; of equals they are drawn."""
    drawn = rng.permutation(len(shares))
    order = drawn[np.argsort(-shares[drawn], kind="stable")].tolist()
    return order[:count], order[::-1][:count]


def _run(policy: LearnedPolicy | None, seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Play one run.

    Returns:
        By moment "iterations" before the update, "by_distance", "high" and "low".
    """
    env = environment.make()
    updates = environment.env.total_updates
    env, agent = policy_in(env, policy, seed)
    choices = follow(env, agent, environment.task, seed=seed, learn=policy is None)
    if len(choices) < updates:
        raise RuntimeError(f"seed {seed} diverged after {len(choices)} updates: lower the learning rate")
    shown = [choices[update - 1] for update in moments_of(updates, MOMENTS)]
    permutations, rng = base_env_of(env).permutations[environment.task], np.random.default_rng([seed, 1])
    distances = distances_of(permutations)
    examples = [extremes(each.shares, EXAMPLES, rng) for each in shown]
    return {
        "iterations": [each.iteration for each in shown],
        "by_distance": [spread_over(distances, each.shares, permutations.shape[1]).tolist() for each in shown],
        "high": [high for high, _ in examples],
        "low": [low for _, low in examples],
    }


@styled
def _figure(report: dict[str, Any], task: Task) -> Figure:
    import matplotlib  # slow to import
    from matplotlib.figure import Figure

    iterations, columns = report["iterations_before"], 2 * EXAMPLES
    picture = Figure(figsize=(6 + 1.1 * columns, 1.2 * len(iterations) + 0.6), dpi=120, layout="constrained")
    left, right = picture.subfigures(1, 2, squeeze=False, width_ratios=(6, 1.1 * columns))[0]
    axis, chosen = left.subplots(), np.mean(report["chosen"], axis=0)
    width = 0.8 / (len(iterations) + 1)
    first = np.flatnonzero(report["random"])[0]  # the least distance in Ψ
    axis.bar(np.arange(len(report["random"])), report["random"], width, color="0.72", label="random permutations")
    for number, (iteration, shares) in enumerate(zip(iterations, chosen, strict=True)):
        colour = matplotlib.colormaps["viridis"](number / len(iterations))
        positions = np.arange(len(shares)) + width * (number + 1)
        axis.bar(positions, shares, width, color=colour, label=f"iteration {iteration}")
    axis.set(xlabel="Hamming distance to the true order", ylabel="share of the choices")
    axis.set(title=f"{report['policy']}, mean of {report['seeds']} seeds")
    axis.set_xticks(np.arange(len(report["random"])) + 0.4 - width / 2, [str(d) for d in range(len(report["random"]))])
    axis.set_xlim(first - width, len(report["random"]) - width)
    left.legend(fontsize=9, loc="outside lower center", ncols=3)
    axes = right.subplots(len(iterations), columns, squeeze=False)
    for line, iteration, high, low in zip(axes, iterations, report["high"][0], report["low"][0], strict=True):
        for column, (cell, number) in enumerate(zip(line, [*high, *low], strict=True)):
            sample = np.zeros((1, 1), dtype=np.int64)  # the first image
            cell.imshow(tiled(task.raw_pieces(sample, task.permutations[[number]])[0], task.picture_columns))
            cell.set(xticks=[], yticks=[], ylabel=f"iteration {iteration}" if column == 0 else "")
            cell.spines[:].set_visible(False)
    axes[0, 0].set_title(f"often chosen (seed {report['first_seed']})")
    axes[0, EXAMPLES].set_title("seldom chosen")
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}, {report['policy']}; mean Hamming distance of the chosen permutations minus that "
        f"of Ψ, mean [{report['interval']}]",
        "",
        "| iteration | distance above random |",
        "|---|---|",
    ]
    for iteration, excess in zip(report["iterations_before"], report["excess_distance"], strict=True):
        lines.append(f"| {iteration} | {Estimate(*excess):+.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
