"""The measurements behind two defaults of the tiny preset: `samples_per_action` and `ema_decay`.

    python experiments/studies/defaults.py

Trains on embedded scenes of a seed that is used for nothing else, so that nothing reported elsewhere was tuned on its
own data. Writes `experiments/results/defaults.json` and prints both tables:

- samples_per_action m: the final error for several m, under a policy that draws all permutations with equal
  probability ("uniform"), and under one that is tilted towards the hard groups ("tilt"). One group per mini-batch
  (m = B) is Algorithm 1 to the letter.
- ema_decay: the error of averaged weights, and its noise, which is the noise of the reward: the standard deviation of
  r (Eq. 7) over the updates of a run in which all permutations are equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.common.files import write_json
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, SweepOptions, run_script
from experiments.common.statistics import mean_and_sd
from experiments.common.sweep import make_executor, sweep
from permenv.reward import extrapolated_error, reward
from permenv.training import resolve_device
from permenv.validation import validate

_TILT = 1.0  # log-preference of the hardest group over the average one, and of the average one over the easiest
_POLICIES = ("uniform", "tilt")


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
    """Measure, print and write."""
    seeds = range(config.seeds)
    group_jobs: dict[str, dict[str, Any]] = {
        f"m{m}-{policy}-seed{seed}": {"m": m, "policy": policy, "seed": seed, "environment": config.environment}
        for m in config.samples_per_action
        for policy in _POLICIES
        for seed in seeds
    }
    decay_jobs: dict[str, dict[str, Any]] = {
        f"decays-seed{seed}": {"decays": config.decays, "seed": seed, "environment": config.environment}
        for seed in seeds
    }
    with make_executor(config.processes) as executor:
        errors = sweep(_final_error, group_jobs, executor=executor, folder=config.runs)
        noise = sweep(_noise, decay_jobs, executor=executor, folder=config.runs)
    report: dict[str, Any] = {
        "machine": machine(resolve_device(config.device), threads=1),  # of each process
        "data": config.data,
        "seeds": config.seeds,
        "iterations": config.env.total_updates * config.env.iterations_per_update,
        "samples_per_action": {
            str(m): {p: mean_and_sd([errors[f"m{m}-{p}-seed{seed}"] for seed in seeds]) for p in _POLICIES}
            for m in config.samples_per_action
        },
        "ema_decay": {
            str(decay): {
                name: float(np.mean([run[str(decay)][name] for run in noise.values()]))
                for name in ("error", "reward_sd")
            }
            for decay in config.decays
        },
    }
    print(f"{report['data']}, {report['iterations']} iterations, {config.seeds} seeds\n\nfinal error (mean ± sd)")
    for m, row in report["samples_per_action"].items():
        print(f"  m = {m:>3}  " + "  ".join(f"{p} {r['mean']:.3f} ± {r['sd']:.3f}" for p, r in row.items()))
    print("\nerror of averaged weights, and noise of the reward")
    for decay, row in report["ema_decay"].items():
        print(f"  decay {decay:>4}  error {row['error']:.3f}  sd of r {row['reward_sd']:.4f}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, report)
    return report


def _final_error(m: int, policy: str, seed: int, environment: EnvOptions) -> float:
    """Train one run; return the mean E of its last two validations."""
    run = environment.pretraining(seed, samples_per_action=m)
    config, rng = run.config, np.random.default_rng([seed, 1])
    preference = (_TILT if policy == "tilt" else 0.0) * np.linspace(1, -1, config.num_groups)
    for _ in range(config.total_updates):
        weights = run.observation[:, 0] * np.exp(preference)
        for _ in range(config.iterations_per_update):
            run.iterate(rng.choice(len(weights), (config.actions_per_iteration, 1), p=weights / weights.sum()))
        run.validate()
    return float(np.mean([record.errors["spatial"] for record in run.records[-2:]]))


def _noise(decays: tuple[float, ...], seed: int, environment: EnvOptions) -> dict[str, dict[str, float]]:
    """Return the final error and the standard deviation of the reward, by decay; all average the same training."""
    run = environment.pretraining(seed, ema_decay=0.0)
    config, task, network = run.config, run.tasks["spatial"], run.trainer.network
    pieces = task.pieces(run.held_out["spatial"])
    averages = {
        decay: AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) for decay in decays
    }
    history: dict[float, list[tuple[int, float]]] = {decay: [] for decay in decays}
    rewards: dict[float, list[float]] = {decay: [] for decay in decays}
    for _ in range(config.total_updates):
        for _ in range(config.iterations_per_update):
            run.iterate()
            for average in averages.values():
                average.update_parameters(network)
        for decay, average in averages.items():
            error = validate(average.module, "spatial", pieces, task.permutations).error  # type: ignore[arg-type]
            if len(history[decay]) >= 2:
                rewards[decay].append(reward(extrapolated_error(history[decay], run.iteration), error))
            history[decay].append((run.iteration, error))
    half = config.total_updates // 2  # the steep start is trend, not noise
    return {
        str(decay): {"error": history[decay][-1][1], "reward_sd": float(np.std(rewards[decay][-half:]))}
        for decay in decays
    }


if __name__ == "__main__":
    run_script(main, Config, __doc__)
