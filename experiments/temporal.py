"""What lets a small network learn the order of frames: the measurements behind three defaults of the tiny preset.

    python experiments/temporal.py

- crops: how often the smoothest of the permutations in Ψ (the one whose undoing gives the shortest path through the
  frames' pixels) is the true one, with the frames not cropped, cropped at one place and cropped at a place each. No
  network: this is how much of the order the pixels still show.
- network: the final error of the temporal task by the preset, with `relative_frames` or `shared_crop` off as in the
  paper, with the learning rate of the tiny preset's spatial task, and with one that drops to a tenth.

Both use embedded clips of a seed that nothing else uses. `--videos` measures the crops on a folder of videos as well.
Writes `experiments/results/temporal.json` and prints both tables.
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

from agents import RandomPolicy
from experiments import runs
from permenv import PermShuffleEnv, VideoClips, embedded_clips, make_config, video_folder
from permenv.augment import centre_offsets, crop_frames, normalise, random_offsets
from permenv.permutations import maximally_different
from permenv.tasks import TemporalTask

_SAMPLES = 300  # clips of which the pixels are asked
_VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "relative_frames=False": {"relative_frames": False},
    "shared_crop=False": {"shared_crop": False},
    "learning_rate=0.03": {"learning_rate": 0.03},
    "learning_rate_drop=700": {"learning_rate_drop": 700},
}


@dataclass(frozen=True)
class Config:
    """The measurement's options."""

    videos: tuple[Path, ...] = ()
    """Folders of videos whose crops to measure besides."""
    seeds: int = 3
    """Repetitions, seeds 0, 1, ..."""
    iterations: int = 1000
    """SGD iterations of each network."""
    scenes_seed: int = 1000
    """Seed of the clips."""
    processes: int = 2
    """Networks at once, one thread each."""
    out: Path = Path("experiments/results/temporal.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    numbers = make_config("tiny", "temporal")
    embedded = embedded_clips(numbers.num_clips, numbers.clip_frames, numbers.frame_size, config.scenes_seed)
    sources = {f"embedded clips, seed {config.scenes_seed}": embedded}
    for folder in config.videos:
        clips = video_folder(folder, numbers.frame_size, numbers.clip_frames, min_frames=numbers.num_frames)
        sources[f"{folder.parent.name}/{clips.name}"] = clips
    report: dict[str, Any] = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "crops": {name: _smoothest(clips) for name, clips in sources.items()},
        "network": {"seeds": config.seeds, "iterations": config.iterations, "chance": 1 - 1 / numbers.num_permutations},
    }
    print(f"share of {_SAMPLES} samples whose smoothest order of {numbers.num_permutations} is the true one")
    for name, row in report["crops"].items():
        print(f"  {name:<36}" + "  ".join(f"{crop} {share:.3f}" for crop, share in row.items()))
    jobs = [(variant, seed, config) for variant in _VARIANTS for seed in range(config.seeds)]
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        errors = list(pool.map(_final_error, *zip(*jobs, strict=True)))
    print(f"\nfinal error after {config.iterations} iterations, {config.seeds} seeds (mean ± sd)")
    for variant in _VARIANTS:
        values = [error for error, job in zip(errors, jobs, strict=True) if job[0] == variant]
        row = {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        report["network"][variant] = row
        print(f"  {variant:<28} {row['mean']:.3f} ± {row['sd']:.3f}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, report)
    return report


def _smoothest(clips: VideoClips) -> dict[str, float]:
    """How often the smoothest order is the true one, by where the frames are cropped."""
    numbers = make_config("tiny", "temporal")
    permutations = maximally_different(numbers.num_frames, numbers.num_permutations, numbers.permutation_seed)
    task = TemporalTask(numbers, permutations, clips, torch.device("cpu"))
    rng = np.random.default_rng(0)
    frames = task.originals(task.draw(np.arange(len(clips)), _SAMPLES, rng))  # [samples, n, S, S, 3]
    labels = rng.integers(len(permutations), size=_SAMPLES)
    slack, undone = numbers.frame_size - numbers.piece_size, np.argsort(permutations, axis=1)  # [|Ψ|, n]
    places = {
        "not cropped": centre_offsets(_SAMPLES, numbers.num_frames, slack),
        "one place": random_offsets(rng, _SAMPLES, 1, slack).repeat(numbers.num_frames, axis=1),
        "a place each": random_offsets(rng, _SAMPLES, numbers.num_frames, slack),
    }
    shares = {}
    for name, offsets in places.items():
        pixels = normalise(crop_frames(frames, offsets, numbers.piece_size)).flatten(2)
        distances = torch.cdist(pixels, pixels).numpy()  # [samples, n, n]
        right = 0
        for distance, label in zip(distances, labels, strict=True):
            seen = distance[np.ix_(permutations[label], permutations[label])]
            lengths = seen[undone[:, :-1], undone[:, 1:]].sum(axis=1)  # [|Ψ|], of the path by each permutation
            right += int(lengths.argmin() == label)
        shares[name] = right / _SAMPLES
    return shares


def _final_error(variant: str, seed: int, config: Config) -> float:
    """E at the end of one run with random permutations."""
    torch.set_num_threads(1)
    every = 50
    env = gym.make(
        "PermShuffle-v0",
        task="temporal",
        scenes_seed=config.scenes_seed,
        iterations_per_update=every,
        total_updates=config.iterations // every,
        device="cpu",
        **_VARIANTS[variant],
    )
    world = env.unwrapped
    assert isinstance(world, PermShuffleEnv)
    agent = RandomPolicy(env.observation_space, env.action_space, seed=seed)
    observation, _ = env.reset(seed=seed)
    over = False
    while not over:
        observation, _, terminated, truncated, _ = env.step(agent.act(observation))
        over = terminated or truncated
    return world.history["temporal"][-1][1]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
