"""How much of the temporal error is a clip taken for one that is played backwards.

    python experiments/direction.py
    python experiments/direction.py --videos path/to/videos

Played backwards, a clip may look as likely as forwards: then a permutation and its reverse (`reverse_of`) cannot be
told apart. Three networks are trained on the temporal task, every permutation as likely as any other:

- "default": the tiny preset's Ψ, which may or may not hold a permutation's reverse;
- "pairs": a Ψ of as many permutations that holds the reverse of each, so that the confusion can show;
- "merged": half of these, one of each pair, clips played in either direction (`merge_reversed=True`).

Of each: E, the share of the errors that name the reverse (against what chance would be, 1 / (|Ψ| - 1)), and E where the
reverse counts as right. Writes JSON and prints the table.
"""

from __future__ import annotations

import dataclasses
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from experiments import runs
from permenv import VideoClips, embedded_clips, make_config, video_folder
from permenv.permutations import maximally_different, reverse_of
from permenv.tasks import TemporalTask
from permenv.training import Batch, Trainer
from permenv.validation import permuted_logits

_VARIANTS = ("default", "pairs", "merged")


@dataclass(frozen=True)
class Config:
    """The measurement's options."""

    videos: Path | None = None
    """Folder of videos; the embedded clips if none is given."""
    seeds: int = 3
    """Repetitions, seeds 0, 1, ..."""
    iterations: int = 1500
    """SGD iterations of each network."""
    processes: int = 2
    """Networks at once, one thread each."""
    out: Path | None = None
    """JSON file; experiments/results/direction-DATA.json if not given."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    clips = _clips(config)  # once before the processes start: they find it in the cache
    jobs = [(variant, seed, config) for variant in _VARIANTS for seed in range(config.seeds)]
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_measure, *zip(*jobs, strict=True)))
    report: dict[str, Any] = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": f"{clips.name}, {len(clips)} clips",
        "seeds": config.seeds,
        "iterations": config.iterations,
    }
    print(f"{report['data']}, {config.iterations} iterations, {config.seeds} seeds (mean ± sd)\n")
    for variant in _VARIANTS:
        rows = [row for row, job in zip(found, jobs, strict=True) if job[0] == variant]
        report[variant] = {name: _mean_and_sd([row[name] for row in rows]) for name in rows[0]}
        print(f"{variant}:")
        for name, value in report[variant].items():
            print(f"  {name:<44} {value['mean']:.4f} ± {value['sd']:.4f}")
    out = config.out or Path("experiments/results") / f"direction-{'videos' if config.videos else 'scenes'}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(out, report)
    print(f"written to {out}")
    return report


def _measure(variant: str, seed: int, config: Config) -> dict[str, float]:
    """Train one network and count its errors."""
    torch.set_num_threads(1)
    numbers, permutations = _permutations(variant)
    task = TemporalTask(numbers, permutations, _clips(config), torch.device("cpu"))
    trainer = Trainer(numbers, {"temporal": task.head}, task.device, seed)
    rng = np.random.default_rng(seed)
    held_out = task.hold_out(rng)
    trainable = task.trainable(held_out)
    for _ in range(config.iterations):
        samples = task.draw(trainable, numbers.batch_size, rng)
        labels = rng.integers(len(permutations), size=numbers.batch_size)
        trainer.step({"temporal": Batch(task.training_pieces(samples, labels, rng), labels)})
    blocks = list(permuted_logits(trainer.evaluated, "temporal", task.validation_pieces(held_out), permutations))
    named = torch.cat([logits.argmax(1) for logits, _ in blocks]).numpy()
    true = torch.cat([labels for _, labels in blocks]).numpy()
    reverses = _places(permutations, reverse_of(permutations))
    wrong, reversed_ = named != true, named == reverses[true]
    # of those errors where the reverse could have been named
    possible = wrong & (reverses[true] >= 0)
    return {
        "permutations": len(permutations),
        "permutations whose reverse is in Ψ": float((reverses >= 0).mean()),
        "E": float(wrong.mean()),
        "share of errors that name the reverse": float(reversed_[possible].mean()) if possible.any() else 0.0,
        "that share by chance": 1 / (len(permutations) - 1),
        "E where the reverse counts as right": float((wrong & ~reversed_).mean()),
    }


def _permutations(variant: str) -> tuple[Any, np.ndarray]:
    """The numbers of a variant, and its Ψ."""
    numbers = make_config("tiny", "temporal")
    count, pieces, seed = numbers.num_permutations, numbers.num_frames, numbers.permutation_seed
    if variant == "default":
        return numbers, maximally_different(pieces, count, seed)
    half = maximally_different(pieces, count // 2, seed, merge_reversed=True)
    if variant == "pairs":
        return numbers, np.concatenate([half, reverse_of(half)])
    return dataclasses.replace(numbers, num_permutations=count // 2, merge_reversed=True), half


def _places(permutations: np.ndarray, sought: np.ndarray) -> np.ndarray:
    """(|Ψ|,) at which row of Ψ each of the sought permutations (|Ψ|, n) is; -1 where it is none."""
    equal = (permutations[None, :, :] == sought[:, None, :]).all(axis=2)  # [sought, |Ψ|]
    return np.where(equal.any(axis=1), equal.argmax(axis=1), -1)


def _clips(config: Config) -> VideoClips:
    numbers = make_config("tiny", "temporal")
    if config.videos is None:
        return embedded_clips(numbers.num_clips, numbers.clip_frames, numbers.frame_size, numbers.scenes_seed)
    return video_folder(config.videos, numbers.frame_size, numbers.clip_frames, min_frames=numbers.num_frames)


def _mean_and_sd(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
