"""The measurements behind two defaults of the tiny preset: `samples_per_action` and `ema_decay`.

    python experiments/defaults.py

Trains on embedded scenes of a seed that nothing else uses, so that nothing reported elsewhere was tuned on its own
data. Writes `experiments/results/defaults.json` and prints both tables:

- samples_per_action m: the final error under a policy that draws all permutations alike ("uniform"), and under one
  that leans to the hard groups ("lean"), for several m. One group a mini-batch (m = B) is Algorithm 1 to the letter.
- ema_decay: the error of averaged weights, and its noise, which is the noise of the reward: the standard deviation of
  r (Eq. 7) over the updates of a run in which every permutation is as likely as any other.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments import runs
from permenv import PermShuffleEnv, embedded_scenes, make_config
from permenv.networks import OrderingNetwork
from permenv.permutations import maximally_different
from permenv.reward import extrapolated_error, reward
from permenv.tasks import SpatialTask
from permenv.training import Batch, Trainer
from permenv.validation import validate

_LEAN = 1.0  # log-preference of the hardest group over the average one, minus that of the easiest: 2


@dataclass(frozen=True)
class Config:
    """The measurement's options."""

    samples_per_action: tuple[int, ...] = (1, 4, 16, 64)
    """Values of m to compare; divisors of the preset's batch size."""
    decays: tuple[float, ...] = (0.0, 0.9, 0.97, 0.99)
    """Values of ema_decay to compare."""
    seeds: int = 3
    """Repetitions, seeds 0, 1, ..."""
    updates: int = 12
    """Updates of each run."""
    scenes_seed: int = 1000
    """Seed of the scenes."""
    processes: int = 2
    """Runs at once, one thread each."""
    out: Path = Path("experiments/results/defaults.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    groups_jobs = [
        (m, policy, seed, config)
        for m in config.samples_per_action
        for policy in ("uniform", "lean")
        for seed in range(config.seeds)
    ]
    decay_jobs = [(seed, config) for seed in range(config.seeds)]
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        errors = list(pool.map(_final_error, *zip(*groups_jobs, strict=True)))
        noise = list(pool.map(_noise, *zip(*decay_jobs, strict=True)))
    report: dict[str, Any] = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": f"{make_config('tiny').num_scenes} embedded scenes, seed {config.scenes_seed}",
        "seeds": config.seeds,
        "iterations": config.updates * make_config("tiny").iterations_per_update,
        "samples_per_action": {},
        "ema_decay": {},
    }
    print(f"{report['data']}, {report['iterations']} iterations, {config.seeds} seeds\n\nfinal error (mean ± sd)")
    for m in config.samples_per_action:
        row = {}
        for policy in ("uniform", "lean"):
            values = [e for e, job in zip(errors, groups_jobs, strict=True) if job[:2] == (m, policy)]
            row[policy] = {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        report["samples_per_action"][str(m)] = row
        print(f"  m = {m:3d}  " + "  ".join(f"{p} {r['mean']:.3f} ± {r['sd']:.3f}" for p, r in row.items()))
    print("\nerror of averaged weights, and noise of the reward")
    for decay in config.decays:
        final = statistics.mean(run[decay]["error"] for run in noise)
        deviation = statistics.mean(run[decay]["reward_sd"] for run in noise)
        report["ema_decay"][str(decay)] = {"error": final, "reward_sd": deviation}
        print(f"  decay {decay:4.2f}  error {final:.3f}  sd of r {deviation:.4f}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, report)
    return report


def _final_error(m: int, policy: str, seed: int, config: Config) -> float:
    """E at the end of one run; the mean of its last two validations."""
    torch.set_num_threads(1)
    env = gym.make(
        "PermShuffle-v0",
        samples_per_action=m,
        scenes_seed=config.scenes_seed,
        total_updates=config.updates,
        device="cpu",
    )
    world = env.unwrapped
    assert isinstance(world, PermShuffleEnv)
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng([seed, 1])
    preference = _LEAN * np.linspace(1, -1, len(observation)) if policy == "lean" else np.zeros(len(observation))
    over = False
    while not over:
        weights = observation[:, 0] * np.exp(preference)
        observation, _, terminated, truncated, _ = env.step(int(rng.choice(len(weights), p=weights / weights.sum())))
        over = terminated or truncated
    return float(np.mean([error for _, error in world.history["spatial"][-2:]]))


def _noise(seed: int, config: Config) -> dict[float, dict[str, float]]:
    """By decay, final error and standard deviation of the reward; all decays follow one and the same training."""
    torch.set_num_threads(1)
    numbers = make_config("tiny", ema_decay=0.0)
    device = torch.device("cpu")
    permutations = maximally_different(numbers.num_tiles, numbers.num_permutations)
    data = embedded_scenes(numbers.num_scenes, numbers.image_size, config.scenes_seed)
    task = SpatialTask(numbers, permutations, data, device)
    trainer = Trainer(numbers, {"spatial": task.head}, device, seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    held_out, training = order[: numbers.num_validation], order[numbers.num_validation :]
    pieces = task.validation_pieces(held_out[:, None])
    averages = {
        decay: AveragedModel(trainer.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        for decay in config.decays
    }
    history: dict[float, list[tuple[int, float]]] = {decay: [] for decay in config.decays}
    rewards: dict[float, list[float]] = {decay: [] for decay in config.decays}
    for _ in range(config.updates):
        for _ in range(numbers.iterations_per_update):
            samples = rng.choice(training, numbers.batch_size)[:, None]
            labels = rng.integers(numbers.num_permutations, size=numbers.batch_size)
            trainer.step({"spatial": Batch(task.training_pieces(samples, labels, rng), labels)})
            for average in averages.values():
                average.update_parameters(trainer.network)
        for decay, average in averages.items():
            assert isinstance(average.module, OrderingNetwork)
            error = validate(average.module, "spatial", pieces, permutations).error
            if len(history[decay]) >= 2:
                rewards[decay].append(reward(extrapolated_error(history[decay], trainer.iteration), error))
            history[decay].append((trainer.iteration, error))
    half = config.updates // 2  # the steep start is trend, not noise
    return {
        decay: {"error": history[decay][-1][1], "reward_sd": float(np.std(rewards[decay][-half:]))}
        for decay in config.decays
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
