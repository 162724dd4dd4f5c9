"""How much of a reward is signal: the effect of the choice of a group, against the effect of chance.

    python experiments/studies/noise.py

At a few moments of a run with random permutations the run is forked. Each fork is tilted towards one group for one
update: half of the samples get a permutation of that group, half any. For every group the sequence of actions is drawn
once, and used several times with other data: other samples, other members of the groups, other crops. The baseline of a
reward is fixed when its update begins, so the rewards of one moment differ as the errors at the end of the update do.

Reported for the gain in error and in cross-entropy, of the averaged weights and of the live ones:

- noise: standard deviation of r under identical actions with different data;
- signal: standard deviation of r between groups, without the noise of their means;
- signal to noise: the ratio of the two variances, and the updates after which the mean gain of a group would be known
  as well as groups differ (1 / ratio).

Variances are pooled over all moments. Data are embedded scenes of a seed that is used for nothing else. Writes
`experiments/results/noise.json` and prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro

from experiments.common.files import write_json
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, SweepOptions, run_script
from experiments.common.sweep import make_executor, sweep
from permenv import Pretraining
from permenv.training import resolve_device
from permenv.validation import validate

_SHARE = 0.5  # of the samples whose permutation is of the group in question
_MEASURES = ("error", "cross-entropy")
_WEIGHTS = ("averaged", "live")


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000}

    task: tyro.conf.Suppress[str] = "spatial"
    seeds: int = 2
    """Networks, seeds 0, 1, ..."""
    moments: tuple[int, ...] = (4, 12)
    """Updates after which to measure."""
    repeats: int = 5
    """Data seeds under identical actions."""
    out: Path = Path("experiments/results/noise.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    common: dict[str, Any] = {"moments": config.moments, "repeats": config.repeats, "environment": config.environment}
    jobs = {f"seed{seed}": {"seed": seed, **common} for seed in range(config.seeds)}
    with make_executor(config.processes) as executor:
        found = sweep(_measure, jobs, executor=executor, folder=config.runs)
    moments = [table for run in found.values() for table in run]
    report: dict[str, Any] = {
        "machine": machine(resolve_device(config.device), threads=1),  # of each process
        "data": config.data,
        "seeds": config.seeds,
        "moments": list(config.moments),
        "repeats": config.repeats,
        "share": _SHARE,
        "rewards": {},
    }
    print(
        f"{report['data']}, {config.seeds} networks after {config.moments} updates, {config.repeats} repetitions\n\n"
        f"{'reward':<32} {'noise':>8} {'signal':>8} {'ratio':>7} {'updates':>8}"
    )
    for measure in _MEASURES:
        for weights in _WEIGHTS:
            row = signal_to_noise([np.array(table[f"{measure}, {weights}"]) for table in moments])
            report["rewards"][f"{measure}, {weights}"] = row
            updates = "none" if row["updates"] is None else f"{row['updates']:.1f}"
            print(
                f"{measure + ', ' + weights + ' weights':<32} {row['noise_sd']:>8.4f} {row['signal_sd']:>8.4f} "
                f"{row['ratio']:>7.2f} {updates:>8}"
            )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, report)
    return report


def signal_to_noise(tables: list[np.ndarray]) -> dict[str, float | None]:
    """Split the variance of rewards into what groups explain and what data explain (one-way random effects).

    Args:
        tables: For each moment (groups, repeats), the reward up to a constant of the moment.

    Returns:
        "noise_sd", "signal_sd", "ratio" of the variances, "updates" = 1 / ratio (None if there is no signal).
    """
    within = np.mean([table.var(axis=1, ddof=1).mean() for table in tables])
    means = np.mean([table.mean(axis=1).var(ddof=1) for table in tables])
    between = max(0.0, means - within / tables[0].shape[1])
    return {
        "noise_sd": float(within**0.5),
        "signal_sd": float(between**0.5),
        "ratio": float(between / within),
        "updates": float(within / between) if between else None,
    }


def _measure(
    seed: int, moments: tuple[int, ...], repeats: int, environment: EnvOptions
) -> list[dict[str, list[list[float]]]]:
    """Return for every moment of one run, by reward, (groups, repeats): minus the value at the end of the update."""
    run = environment.pretraining(seed)
    rng = np.random.default_rng([seed, 1])
    tables = []
    for update in range(1, max(moments) + 1):
        for _ in range(run.config.iterations_per_update):
            run.iterate()
        run.validate()
        if update in moments:
            tables.append(_at_a_moment(run, repeats, rng))
    return tables


def _at_a_moment(run: Pretraining, repeats: int, rng: np.random.Generator) -> dict[str, list[list[float]]]:
    config = run.config
    fractions = run.observation[:, 0].astype(np.float64)
    fractions /= fractions.sum()
    groups = np.flatnonzero(fractions)
    table = {f"{measure}, {weights}": np.empty((len(groups), repeats)) for measure in _MEASURES for weights in _WEIGHTS}
    data_seeds = rng.integers(2**31, size=repeats)  # the same for all groups
    for row, group in enumerate(groups):
        chances = fractions * (1 - _SHARE)
        chances[group] += _SHARE
        shape = (config.iterations_per_update, config.actions_per_iteration, 1)
        actions = rng.choice(len(chances), shape, p=chances)
        for column, data_seed in enumerate(data_seeds):
            twin = run.fork()
            twin.generator = np.random.default_rng(data_seed)
            for chosen in actions:
                twin.iterate(chosen)
            twin.validate()
            pieces = twin.tasks["spatial"].pieces(twin.held_out["spatial"])
            live = validate(twin.trainer.network, "spatial", pieces, twin.permutations["spatial"])
            for weights, found in (("averaged", twin.validation["spatial"]), ("live", live)):
                table[f"error, {weights}"][row, column] = -found.error
                table[f"cross-entropy, {weights}"][row, column] = -found.cross_entropy
    return {name: values.tolist() for name, values in table.items()}


if __name__ == "__main__":
    run_script(main, Config, __doc__)
