r"""Figure C.1: how E depends on the size of the validation set, and what determines how it scatters.

    python experiments/paper/figure_c1.py

Appendix C: five validation sets of each size (10, 20, 50, 100, 200) are drawn, E of each is measured at seven
checkpoints of a network that is trained without a policy (50k, 100k, ... of 350k iterations), and mean and standard
deviation over the five are shown; the paper finds "little difference" between 100 and 200, in a picture without
numbers. Here the checkpoints are at the same shares of a run of the tiny preset on embedded scenes.

What is to be expected. Let e_x be the share of the \|Ψ\| permutations that are not recognised on sample x. E of a set
of V samples is the mean of its e_x. The sets are drawn independently of each other and of training, so

    Var(E) = Var_x(e_x) / V,                                        (between samples)

whatever depends on whatever within a sample. If the answers to all pairs of sample and permutation were independent
with the same error E, then e_x would be a binomial share, Var_x(e_x) = E (1 - E) / \|Ψ\|, and

    Var(E) = E (1 - E) / (V \|Ψ\|).                                   (binomial)

The two differ by what is not equal. Let the answers be independent with an error p_xl for sample x and permutation l.
By the law of total variance, and since the mean of p (1 - p) is E (1 - E) - Var(p),

    Var_x(e_x) = Var_x(mean_l p_xl) + [E (1 - E) - Var_xl(p_xl)] / \|Ψ\|.

Where samples differ in difficulty, the first term adds to the binomial's; where only permutations do, the last one
takes from it: a network that always answers alike has the same error on every sample. Measuring more permutations
lowers only what is divided by \|Ψ\|; twice as many samples lower the deviation by 29%.

E is a mean over samples, so one validation of a pool that is held out of training has that of all sets; the sets of a
size share no sample. A job that is done is kept in the folder `runs`. Writes `experiments/results/figure-c1.json` and
`.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tyro

from experiments.common.options import EnvOptions, SweepOptions, require_at_least
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_RATIOS, Estimate, ratio_of_means
from experiments.common.reports.style import label_lines, styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.paper.shared import at_checkpoints, moments_of
from permenv import ConfigurationError
from permenv.validation import validate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (10, 20, 50, 100, 200)
"""|X_val|."""
DRAWS = 5
"""Sets of each size."""
CHECKPOINTS = tuple(step / 7 for step in range(1, 8))
"""Shares of a run: 50k, 100k, ..., 350k of 350k iterations."""
PREDICTIONS = ("between samples", "binomial")


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    changes: ClassVar = {"num_scenes": 3000}  # the pool is held out, and 2000 are left as in the preset

    task: tyro.conf.Suppress[str] = "spatial"
    sizes: tuple[int, ...] = SIZES
    """Sizes of the sets."""
    draws: int = DRAWS
    """Sets of each size, at least 2; as many times the largest size is held out of training."""
    seeds: int = 3
    """Networks."""
    first_seed: int = 740
    """The first of the seeds."""
    runs: Path | None = Path("runs/figure-c1")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/figure-c1.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        ConfigurationError: If a number is out of range.
        RuntimeError: If a run diverges.
    """
    require_at_least(config, draws=2)
    if not config.sizes or min(config.sizes) < 1:
        raise ConfigurationError(f"--sizes {config.sizes}: name sizes of at least 1")
    found = over_seeds(_run, {"random": {"sizes": config.sizes, "draws": config.draws}}, config)["random"]
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_RATIOS,
        "draws": config.draws,
        "checkpoints": found[0]["iterations"],
        "sizes": [_row(size, found, config.env.num_permutations) for size in config.sizes],
    }
    publish(report, in_words(report), config.out, _figure(report))
    return report


def predicted_variances(sample_errors: np.ndarray, num_permutations: int, size: int) -> dict[str, float]:
    """Predict the variance of E over sets of samples; see above.

    Args:
        sample_errors: (N,), e_x of held-out samples.
        num_permutations: |Ψ|.
        size: V.

    Returns:
        By prediction.
    """
    error = sample_errors.mean()
    variances = sample_errors.var(ddof=1), error * (1 - error) / num_permutations
    return {name: float(variance) / size for name, variance in zip(PREDICTIONS, variances, strict=True)}


def draw_sets(pool: int, sizes: Sequence[int], draws: int, seed: int) -> dict[int, np.ndarray]:
    """Draw sets of samples; those of a size have none in common.

    Args:
        pool: Number of samples to draw from.
        sizes: V.
        draws: Sets of each size.
        seed: Of the draws.

    Returns:
        By size, (draws, size) int.
    """
    rng = np.random.default_rng([seed, 1])
    return {size: rng.permutation(pool)[: draws * size].reshape(draws, size) for size in sizes}


def _run(sizes: Sequence[int], draws: int, seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Train one network without a policy.

    Returns:
        By checkpoint "iterations" and "sample_errors", e_x of the pool; by size "sets", rows of the pool.
    """
    task = environment.task
    run = environment.pretraining(seed, num_validation=draws * max(sizes))
    pieces = run.tasks[task].pieces(run.held_out[task])
    moments = moments_of(run.config.total_iterations, CHECKPOINTS)
    errors = []
    for _ in at_checkpoints(run, moments):
        found = validate(run.trainer.eval_network, task, pieces, run.permutations[task])
        errors.append((1 - found.correct.mean(axis=0)).tolist())
    sets = draw_sets(len(pieces), sizes, draws, seed)
    return {
        "iterations": moments,
        "sample_errors": errors,
        "sets": {str(size): rows.tolist() for size, rows in sets.items()},
    }


def _row(size: int, runs: list[dict[str, Any]], num_permutations: int) -> dict[str, Any]:
    """Compare, for one size, the deviation of E over the sets with the predictions."""
    sample_errors = np.array([run["sample_errors"] for run in runs])  # [seeds, checkpoints, pool]
    of_sets = np.array(
        [each[:, run["sets"][str(size)]].mean(axis=2) for each, run in zip(sample_errors, runs, strict=True)]
    )
    measured = of_sets.var(axis=2, ddof=1)  # [seeds, checkpoints]
    predicted = {
        name: np.array(
            [[predicted_variances(each, num_permutations, size)[name] for each in run] for run in sample_errors]
        )
        for name in PREDICTIONS
    }
    return {
        "size": size,
        "mean": of_sets.mean(axis=2).tolist(),
        "sd": np.sqrt(measured).tolist(),
        "sd_all": float(np.sqrt(measured.mean())),
        "predicted": {name: float(np.sqrt(each.mean())) for name, each in predicted.items()},
        "ratio": {
            name: _root(ratio_of_means(measured.mean(axis=1), each.mean(axis=1))).as_columns("ratio")
            for name, each in predicted.items()
        },
    }


def _root(ratio: Estimate) -> Estimate:
    """Return the ratio of deviations of that of variances, whose interval may begin below 0."""
    return Estimate(*np.sqrt(np.maximum(ratio, 0)).tolist())


@styled
def _figure(report: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    checkpoints, sizes = np.array(report["checkpoints"]), [row["size"] for row in report["sizes"]]
    width = np.diff([0, *checkpoints]).min() / (len(sizes) + 2)
    for number, row in enumerate(report["sizes"]):
        positions = checkpoints + width * (number - (len(sizes) - 1) / 2)
        left.errorbar(positions, row["mean"][0], row["sd"][0], fmt="o", markersize=3, capsize=3, label=str(row["size"]))
    left.set(xlabel="SGD iteration", ylabel="E", title=f"mean and deviation of {report['draws']} sets, one network")
    left.legend(title="size", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    lines = right.loglog(sizes, [row["sd_all"] for row in report["sizes"]], "o", color="black", label="measured")
    for name, style in zip(PREDICTIONS, ("-", "--"), strict=True):
        lines += right.loglog(
            sizes, [row["predicted"][name] for row in report["sizes"]], style, label=f"predicted, {name}"
        )
    right.set(xlabel="size", ylabel="deviation of E", title=f"{report['seeds']} networks, all checkpoints")
    label_lines(right, lines)
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}; deviation of E over {report['draws']} sets, root mean square over "
        f"{len(report['checkpoints'])} checkpoints; ratio to the prediction [{report['interval']}]",
        "",
        "| samples | deviation of E | " + " | ".join(f"ratio to the prediction, {name}" for name in PREDICTIONS) + " |",
        "|---" * (2 + len(PREDICTIONS)) + "|",
    ]
    for row in report["sizes"]:
        ratios = (Estimate.of_columns(row["ratio"][name], "ratio") for name in PREDICTIONS)
        lines.append(f"| {row['size']} | {row['sd_all']:.3f} | " + " | ".join(f"{each:.2f}" for each in ratios) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
