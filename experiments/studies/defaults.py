"""The measurements behind two defaults of the tiny preset: `samples_per_action` and `ema_decay`.

    python experiments/studies/defaults.py

- samples_per_action m: the final error, the mean of the last two validations, for several m: under random permutations,
  and tilted towards the hard groups. One group per mini-batch (m = B) is Algorithm 1 to the letter.
- ema_decay: the error of averaged weights and the noise of their reward, the standard deviation of r (Eq. 7) over the
  updates of a run with random permutations.

The embedded scenes have a seed that is used for nothing else, so that nothing reported elsewhere was tuned on its own
data. Writes `experiments/results/defaults.json` and prints both tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish, with_sd
from experiments.common.reports.statistics import mean_and_sd
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.studies.shared import train
from permenv import ConfigurationError
from permenv.reward import extrapolate, reward
from permenv.validation import validate

_TILTS = {"random": 0.0, "tilted": 1.0}
"""By policy, the log-preference of the hardest group over the average one, and of the average one over the easiest."""
_LAST = 2  # validations whose mean is the final error
_LEAST_UPDATES = 4  # the first reward is that of the third update, and a standard deviation needs two


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000, "total_updates": 12}

    task: tyro.conf.Suppress[str] = "spatial"
    samples_per_action: tuple[int, ...] = (1, 4, 16, 64)
    """Values of m to compare; divisors of the batch size."""
    decays: tuple[float, ...] = (0.0, 0.9, 0.97, 0.99)
    """Values of ema_decay to compare."""
    out: Path = Path("experiments/results/defaults.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Raises:
        ConfigurationError: If a run is too short for two rewards.
    """
    if config.env.total_updates < _LEAST_UPDATES:
        raise ConfigurationError(
            f"--updates {config.env.total_updates}: the noise of the reward needs at least {_LEAST_UPDATES} updates"
        )
    variants = {
        f"m{m}-{policy}": {"m": m, "tilt": tilt} for m in config.samples_per_action for policy, tilt in _TILTS.items()
    }
    errors = over_seeds(_final_error, variants, config)
    runs = over_seeds(_averages, {"decays": {"decays": config.decays}}, config)["decays"]
    report = {
        **heading(config),
        "samples_per_action": {
            str(m): {policy: mean_and_sd(errors[f"m{m}-{policy}"]) for policy in _TILTS}
            for m in config.samples_per_action
        },
        "ema_decay": {
            str(decay): {name: mean_and_sd([run[str(decay)][name] for run in runs]) for name in ("error", "reward_sd")}
            for decay in config.decays
        },
    }
    publish(report, in_words(report), config.out)
    return report


def _final_error(m: int, tilt: float, seed: int, environment: EnvOptions) -> float:
    """Return E at the end of one run; 1 if the network diverged."""
    run = environment.pretraining(seed, samples_per_action=m)
    rng = np.random.default_rng([seed, 1])
    preferences = np.exp(tilt * np.linspace(1, -1, run.config.num_groups))
    shape = (run.config.iterations_per_cycle, run.config.actions_per_iteration, 1)
    for _ in range(run.config.total_updates):
        weights = run.observation[:, 0] * preferences
        if not train(run, rng.choice(len(weights), shape, p=weights / weights.sum())):
            return 1.0
    return float(np.mean([record.errors["spatial"] for record in run.records[-_LAST:]]))


def _averages(decays: tuple[float, ...], seed: int, environment: EnvOptions) -> dict[str, dict[str, float]]:
    """Train one network and follow its averaged weights.

    Returns:
        By decay, "error", E at the end, and "reward_sd", the standard deviation of the reward.
    """
    run = environment.pretraining(seed, ema_decay=0.0)
    task, network = run.tasks["spatial"], run.trainer.network
    pieces = task.pieces(run.held_out["spatial"])
    averages = {
        decay: AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) for decay in decays
    }
    history: dict[float, list[tuple[int, float]]] = {decay: [] for decay in decays}
    rewards: dict[float, list[float]] = {decay: [] for decay in decays}
    for _ in range(run.config.total_updates):
        for _ in range(run.config.iterations_per_cycle):
            run.iterate()
            for average in averages.values():
                average.update_parameters(network)
        for decay, average in averages.items():
            error = validate(average.module, "spatial", pieces, task.permutations).error  # type: ignore[arg-type]
            if len(history[decay]) >= 2:
                rewards[decay].append(reward(extrapolate(history[decay], run.iteration), error))
            history[decay].append((run.iteration, error))
    half = run.config.total_updates // 2  # at the steep start the rewards are trend, not noise
    return {
        str(decay): {"error": history[decay][-1][1], "reward_sd": float(np.std(rewards[decay][-half:]))}
        for decay in decays
    }


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [heading_in_words(report), "", "final error by samples_per_action (mean ± sd)"]
    for m, row in report["samples_per_action"].items():
        lines.append(f"  m = {m:>3}  " + "  ".join(f"{policy} {with_sd(metric)}" for policy, metric in row.items()))
    lines += ["", "averaged weights (mean ± sd)"]
    for decay, row in report["ema_decay"].items():
        lines.append(f"  decay {decay:>4}  error {with_sd(row['error'])}  sd of r {with_sd(row['reward_sd'], 4)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
