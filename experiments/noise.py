"""How much of a reward is signal: what the choice of a group changes, against what chance changes.

    python experiments/noise.py

At a few moments of a run with random permutations the environment is forked. Each fork is told to lean to one group
for one update: half of the samples get a permutation of that group, half any. For every group the sequence of actions
is drawn once, and played several times with other data: other samples, other members of the groups, other crops. The
baseline of a reward is settled when its update begins, so rewards of one moment differ as the errors they end with do.

Reported for the gain in error and in cross-entropy, of the averaged weights and of the live ones:

- noise: standard deviation of r under identical actions with different data;
- signal: standard deviation of r between groups, the noise of their means taken off;
- signal to noise: the ratio of the two variances, and the updates after which the mean gain of a group would be known
  as well as groups differ (1 / ratio).

Variances are pooled over all moments. Data are embedded scenes of a seed that nothing else uses. Writes
`experiments/results/noise.json` and prints the table.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from experiments import runs
from permenv import PermShuffleEnv
from permenv.validation import validate

_SHARE = 0.5  # of the samples whose permutation is of the group in question
_MEASURES = ("error", "cross-entropy")
_WEIGHTS = ("averaged", "live")


@dataclass(frozen=True)
class Config:
    """The measurement's options."""

    seeds: int = 2
    """Networks, seeds 0, 1, ..."""
    moments: tuple[int, ...] = (4, 12)
    """Updates after which to measure."""
    repeats: int = 5
    """Data seeds under identical actions."""
    scenes_seed: int = 1000
    """Seed of the scenes."""
    processes: int = 2
    """Networks at once, one thread each."""
    out: Path = Path("experiments/results/noise.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_measure, range(config.seeds), [config] * config.seeds))
    moments = [table for run in found for table in run]
    report: dict[str, Any] = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": f"embedded scenes, seed {config.scenes_seed}",
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
            row = signal_to_noise([table[f"{measure}, {weights}"] for table in moments])
            report["rewards"][f"{measure}, {weights}"] = row
            updates = "none" if row["updates"] is None else f"{row['updates']:.1f}"
            print(
                f"{measure + ', ' + weights + ' weights':<32} {row['noise_sd']:>8.4f} {row['signal_sd']:>8.4f} "
                f"{row['ratio']:>7.2f} {updates:>8}"
            )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, report)
    return report


def signal_to_noise(tables: list[np.ndarray]) -> dict[str, float | None]:
    """Split the variance of rewards into what groups explain and what data does (one-way random effects).

    Args:
        tables: A moment each, (groups, repeats): what the reward is, up to a constant of the moment.

    Returns:
        "noise_sd", "signal_sd", "ratio" of the variances, "updates" = 1 / ratio (None where there is no signal).
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


def _measure(seed: int, config: Config) -> list[dict[str, np.ndarray]]:
    """For every moment of one run, by reward: (groups, repeats), minus what an update ended with."""
    torch.set_num_threads(1)
    env = gym.make(
        "PermShuffle-v0", scenes_seed=config.scenes_seed, total_updates=max(config.moments) + 1, device="cpu"
    )
    world = env.unwrapped
    assert isinstance(world, PermShuffleEnv)
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng([seed, 1])
    tables: list[dict[str, np.ndarray]] = []
    while len(tables) < len(config.moments):
        observation, _, _, _, info = env.step(int(rng.choice(len(observation), p=_normalised(observation[:, 0]))))
        if info["validated"] and info["phase"] == "update" and info["update"] in config.moments:
            tables.append(_at_a_moment(world, observation[:, 0], config.repeats, rng))
    return tables


def _at_a_moment(
    world: PermShuffleEnv, fractions: np.ndarray, repeats: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    groups = np.flatnonzero(fractions)
    table = {f"{measure}, {weights}": np.empty((len(groups), repeats)) for measure in _MEASURES for weights in _WEIGHTS}
    data_seeds = rng.integers(2**31, size=repeats)  # the same for all groups
    for row, group in enumerate(groups):
        chances = _normalised(fractions) * (1 - _SHARE)
        chances[group] += _SHARE
        actions: list[int] = []  # as many as the first repetition needs, and the same in the others
        for column, data_seed in enumerate(data_seeds):
            twin = world.fork()
            twin.np_random = np.random.default_rng(data_seed)
            played, over = 0, False
            while not over:
                if played == len(actions):
                    actions.append(int(rng.choice(len(chances), p=chances)))
                _, _, terminated, _, info = twin.step(actions[played])
                played += 1
                over = terminated or (info["validated"] and info["phase"] == "update")
            pieces = twin.tasks["spatial"].validation_pieces(twin.validation_samples["spatial"])
            live = validate(twin.trainer.network, "spatial", pieces, twin.permutations["spatial"])
            for weights, found in (("averaged", twin.validation["spatial"]), ("live", live)):
                table[f"error, {weights}"][row, column] = -found.error
                table[f"cross-entropy, {weights}"][row, column] = -found.cross_entropy
    return table


def _normalised(fractions: np.ndarray) -> np.ndarray:
    weights = fractions.astype(np.float64)
    return weights / weights.sum()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
