r"""Figure D.1: the ratios of Eq. 3, and whether groups of permutations differ in them, for several numbers of groups.

    python experiments/paper/figure_d1.py

Appendix D: (a) the histogram of all entries of the matrix s at 300k of 350k iterations; (b) the p-values of pairwise
two-sample Kolmogorov-Smirnov tests between groups for \|C\| = 10, 15, 20 at 150k, 250k and 350k iterations. Two groups
whose p-value is above 0.01 are taken to be equally difficult. The paper finds several such pairs at \|C\| = 15, and
therefore uses 10 groups; its matrices have no numbers in the text. Here checkpoints are at the same shares of a run of
the nano preset (500 permutations, 100 validation samples) on embedded scenes, without a policy.

The test assumes two sets of independent numbers that were not chosen by what they are. Groups are made of rows that are
alike: where all permutations are equally difficult, K-means sorts noise into groups, and more pairs are told apart than
the significance says. So the same is done twice more:

- "homogeneous": the ratios of each sample are dealt anew to the permutations, so that all permutations are equally
  difficult and samples are as they were. Pairs that are rejected here are rejected for K-means' sake alone.
- "half of the samples": groups are made and compared on one half of X_val.
- "fresh samples": groups are made on that half and compared on the other, on which nothing was chosen.

A number of groups is too high where pairs of groups are told apart on the samples that they were made on and not on as
many fresh ones. A job that is done is kept in
the folder `runs`. Writes `experiments/results/figure-d1.json` and `.png`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tyro

from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, Estimate, mean_of
from experiments.common.reports.style import styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.paper.shared import at_checkpoints, moments_of
from permenv import ConfigurationError
from permenv.grouping import HIGHEST_RATIO, LOWEST_RATIO, group_permutations
from permenv.render import VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = (10, 15, 20)
"""|C|."""
CHECKPOINTS = (3 / 7, 5 / 7, 1.0)
"""Shares of a run: 150k, 250k and 350k of 350k iterations."""
HISTOGRAM = 6 / 7
"""300k."""
ALPHA = 0.01
"""Significance of the paper."""
KINDS = ("as in the paper", "homogeneous", "half of the samples", "fresh samples")
_BINS = 75
_COLOURS = ("0.85", VERMILION)  # of pairs that are told apart, and that are not


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    changes: ClassVar = {"num_validation": 100}

    preset: Preset = "nano"
    task: tyro.conf.Suppress[str] = "spatial"
    counts: tuple[int, ...] = COUNTS
    """Numbers of groups."""
    seeds: int = 3
    """Networks."""
    first_seed: int = 760
    """The first of the seeds."""
    runs: Path | None = Path("runs/figure-d1")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/figure-d1.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        ConfigurationError: If there are more groups than permutations, or fewer than two.
        RuntimeError: If a run diverges.
    """
    most = config.env.num_permutations
    if not config.counts or not 2 <= min(config.counts) <= max(config.counts) <= most:
        raise ConfigurationError(f"--counts {config.counts}: name numbers from 2 to {most}, that of the permutations")
    found = over_seeds(_run, {"random": {"counts": config.counts}}, config)["random"]
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "alpha": ALPHA,
        "checkpoints": found[0]["checkpoints"],
        "histogram": {
            "edges": np.linspace(LOWEST_RATIO, HIGHEST_RATIO, _BINS + 1).round(4).tolist(),
            "counts": np.sum([run["histogram"] for run in found], axis=0).tolist(),
        },
        "counts": {str(count): _row(str(count), found) for count in config.counts},
    }
    report["more"] = _more(report["counts"])
    publish(report, in_words(report), config.out, _figure(report))
    return report


def p_values(ratios: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Test each pair of groups for different distributions of their ratios.

    Args:
        ratios: (|Ψ|, V), rows of s.
        groups: (|Ψ|,) int, from 0 to count - 1.
        count: |C|.

    Returns:
        (count, count) p-values of the two-sided Kolmogorov-Smirnov test, 1 on the diagonal; NaN for empty groups.
    """
    from scipy.stats import ks_2samp  # slow to import

    members = [ratios[groups == group].ravel() for group in range(count)]
    found = np.full((count, count), np.nan)
    for first, second in itertools.combinations_with_replacement(range(count), 2):
        if len(members[first]) and len(members[second]):
            p = ks_2samp(members[first], members[second], method="asymp").pvalue
            found[first, second] = found[second, first] = p
    return found


def homogeneous(ratios: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal the ratios of each sample anew to the permutations, (|Ψ|, V): none is more difficult than another."""
    return rng.permuted(ratios, axis=0)


def tested(ratios: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """Group permutations and test the groups, in each of the four ways.

    Args:
        ratios: (|Ψ|, V), the matrix s.
        count: |C|.
        seed: Of K-means, and of what is dealt anew.

    Returns:
        By kind, the p-values (count, count).
    """
    dealt = homogeneous(ratios, np.random.default_rng([seed, 1]))
    ours, others = ratios[:, ::2], ratios[:, 1::2]
    pairs = ((ratios, ratios), (dealt, dealt), (ours, ours), (ours, others))
    return {
        kind: p_values(judged, group_permutations(grouped, count, seed), count)
        for kind, (grouped, judged) in zip(KINDS, pairs, strict=True)
    }


def indistinct(p: np.ndarray) -> float:
    """Return the share of the pairs of groups that are not told apart at `ALPHA`; pairs with an empty group count."""
    upper = p[np.triu_indices(len(p), k=1)]
    return float(1 - (upper < ALPHA).mean())


def _run(counts: Sequence[int], seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Train one network without a policy.

    Returns:
        "checkpoints", iterations; "histogram"; "tests": by |C|, by checkpoint, by kind the p-values.
    """
    run = environment.pretraining(seed)
    total = run.config.total_iterations
    (histogram,), checkpoints = moments_of(total, [HISTOGRAM]), moments_of(total, CHECKPOINTS)
    result: dict[str, Any] = {"checkpoints": checkpoints, "tests": {str(count): [] for count in counts}}
    for moment in at_checkpoints(run, sorted({histogram, *checkpoints})):
        if not run.validate():
            raise RuntimeError(f"seed {seed} diverged at iteration {moment}: nothing to measure")
        ratios = run.validation[environment.task].ratios
        if moment == histogram:
            result["histogram"] = np.histogram(ratios, _BINS, (LOWEST_RATIO, HIGHEST_RATIO))[0].tolist()
        if moment in checkpoints:
            for count in counts:
                found = tested(ratios, count, seed)
                result["tests"][str(count)].append({kind: _as_lists(p) for kind, p in found.items()})
    return result


def _as_lists(p: np.ndarray) -> list[list[float | None]]:
    """JSON has no NaN."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in p]


def _row(count: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, by checkpoint and kind, the share of pairs that are not told apart; and the first seed's p-values."""
    shares = [
        [{kind: indistinct(np.array(p, dtype=float)) for kind, p in tests.items()} for tests in run["tests"][count]]
        for run in runs
    ]
    return {
        "indistinct": [
            {kind: mean_of([of_seed[index][kind] for of_seed in shares]) for kind in KINDS}
            for index in range(len(shares[0]))
        ],
        "by_seed": {kind: [[each[kind] for each in of_seed] for of_seed in shares] for kind in KINDS},
        "p_values": [tests[KINDS[0]] for tests in runs[0]["tests"][count]],
    }


def _more(counts: dict[str, dict[str, Any]]) -> dict[str, list[Estimate]]:
    """Return, by count but the first and by checkpoint, how much larger the paper's share is than with the first."""
    first, *others = (np.array(row["by_seed"][KINDS[0]]) for row in counts.values())  # (seeds, checkpoints) each
    return {
        count: [mean_of(each) for each in (shares - first).T]
        for count, shares in zip(list(counts)[1:], others, strict=True)
    }


@styled
def _figure(report: dict[str, Any]) -> Figure:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows, columns = len(report["counts"]), len(report["checkpoints"])
    picture = Figure(figsize=(4 + 2.2 * columns, 2.2 * rows), dpi=120, layout="constrained")
    left, right = picture.subfigures(1, 2, squeeze=False, width_ratios=(4, 2.2 * columns))[0]
    axis = left.subplots()
    edges = np.array(report["histogram"]["edges"])
    axis.stairs(report["histogram"]["counts"], edges, fill=True)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.text(1.03, 0.98, "recognised", fontsize=9, verticalalignment="top", transform=axis.get_xaxis_transform())
    axis.set(title=f"random permutations, {report['seeds']} seeds", yscale="log")
    axis.set(xlabel="ratio of the true class to the best other (Eq. 3)", ylabel="pairs of a sample and a permutation")
    right.suptitle(f"tests of pairs of groups, seed {report['first_seed']}", fontsize=10, fontweight="bold")
    axes = right.subplots(rows, columns, squeeze=False)
    for line, (count, row) in zip(axes, report["counts"].items(), strict=True):
        for cell, p, iteration in zip(line, row["p_values"], report["checkpoints"], strict=True):
            alike = (~(np.array(p, dtype=float) < ALPHA)).astype(float)  # empty groups are not told apart
            np.fill_diagonal(alike, np.nan)  # a group with itself
            cell.imshow(alike, vmin=0, vmax=1, cmap=ListedColormap(list(_COLOURS)))
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
            if cell in axes[0]:
                cell.set_title(f"iteration {iteration}", fontsize=9, fontweight="normal")
            if cell in axes[:, 0]:
                cell.set_ylabel(f"{count} groups")
                cell.set_yticks([0, len(alike) - 1], ["hardest", "easiest"], fontsize=8)
            if cell in axes[-1]:
                cell.set_xlabel("group")
                cell.set_xticks([0, len(alike) - 1], ["hardest", "easiest"], fontsize=8)
    words = (f"p < {ALPHA}: told apart", f"p ≥ {ALPHA}: not told apart")
    patches = [Patch(color=colour, label=label) for colour, label in zip(_COLOURS, words, strict=True)]
    right.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=9)
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}; share of the pairs of groups with p >= {report['alpha']}, "
        f"mean [{report['interval']}]",
        "",
        "| groups | iteration | " + " | ".join(KINDS) + " |",
        "|---" * (2 + len(KINDS)) + "|",
    ]
    for count, row in report["counts"].items():
        for iteration, shares in zip(report["checkpoints"], row["indistinct"], strict=True):
            cells = " | ".join(f"{Estimate(*shares[kind]):.0%}" for kind in KINDS)
            lines.append(f"| {count} | {iteration} | {cells} |")
    for count, more in report["more"].items():
        points = ", ".join(f"{Estimate(*(100 * end for end in each)):+.1f}" for each in more)
        lines += [
            "",
            f"{KINDS[0]}, {count} groups, in points above {next(iter(report['counts']))}, same seed: {points}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
