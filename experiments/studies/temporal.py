"""What lets a small network learn the order of frames: the measurements behind three defaults of the tiny preset.

    python experiments/studies/temporal.py

- crops: how often the smoothest of the permutations in Ψ (the one whose inverse gives the shortest path through the
  frames' pixels) is the true one, with the frames not cropped, all cropped at one place, and each cropped at its own.
  No network is involved: this is how much of the order the pixels alone show.
- network: the final error of the temporal task with the preset, with `relative_frames` or `shared_crop` off as in the
  paper, with the learning rate of the tiny preset's spatial task, and with one that drops to a tenth.

The embedded clips have a seed that is used for nothing else. `--more-videos` measures the crops of other folders too.
Writes `experiments/results/temporal.json` and prints both tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import tyro

import permenv
from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish, with_sd
from experiments.common.reports.statistics import mean_and_sd
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.studies.shared import train
from permenv import VideoClips
from permenv.augment import centre_offsets, crop_frames, normalise, random_offsets
from permenv.tasks import TemporalTask

_SAMPLES = 300  # whose pixels are compared
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "preset": {},
    "relative_frames=False": {"relative_frames": False},
    "shared_crop=False": {"shared_crop": False},
    "learning_rate=0.03": {"learning_rate": 0.03},
    "learning_rate_drop=700": {"learning_rate_drop": 700},
}


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    changes: ClassVar = {"scenes_seed": 1000, "total_updates": 20}

    task: tyro.conf.Suppress[str] = "temporal"
    more_videos: tuple[Path, ...] = ()
    """Folders of videos whose crops are measured too; no network is trained on them."""
    out: Path = Path("experiments/results/temporal.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    sources = {config.data: TemporalTask.load(config.videos, config.env)}
    for folder in config.more_videos:
        clips = TemporalTask.load(folder, config.env)
        sources[f"{folder.parent.name}/{clips.name}"] = clips
    found = over_seeds(_final_error, {name: {"changes": changes} for name, changes in _VARIANTS.items()}, config)
    report = {
        **heading(config),
        "samples": _SAMPLES,
        "crops": {name: smoothest(clips, config.env) for name, clips in sources.items()},
        "permutations": config.env.num_permutations,
        "network": {name: mean_and_sd(errors) for name, errors in found.items()},
    }
    publish(report, in_words(report), config.out)
    return report


def smoothest(clips: VideoClips, numbers: permenv.Config) -> dict[str, float]:
    """Measure how often the smoothest order is the true one.

    Args:
        clips: Where the samples come from.
        numbers: Sizes, and the choice of Ψ.

    Returns:
        The share of the samples, by where the frames are cropped.
    """
    permutations = TemporalTask.choose_permutations(numbers)
    task = TemporalTask(numbers, permutations, clips, torch.device("cpu"))
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(task.originals(task.draw(np.arange(len(clips)), _SAMPLES, rng)))  # [samples, n, S, S, 3]
    labels = rng.integers(len(permutations), size=_SAMPLES)
    slack, inverses = numbers.frame_size - numbers.piece_size, np.argsort(permutations, axis=1)  # [|Ψ|, n]
    offsets_by_name = {
        "not cropped": centre_offsets(_SAMPLES, numbers.num_frames, slack),
        "one place": random_offsets(rng, _SAMPLES, 1, slack).repeat(numbers.num_frames, axis=1),
        "a place each": random_offsets(rng, _SAMPLES, numbers.num_frames, slack),
    }
    shares = {}
    for name, offsets in offsets_by_name.items():
        pixels = normalise(crop_frames(frames, offsets, numbers.piece_size)).flatten(2)
        distances = torch.cdist(pixels, pixels).numpy()  # [samples, n, n]
        right = 0
        for distance, label in zip(distances, labels, strict=True):
            shuffled = distance[np.ix_(permutations[label], permutations[label])]
            lengths = shuffled[inverses[:, :-1], inverses[:, 1:]].sum(axis=1)  # [|Ψ|], of the path by each permutation
            right += int(lengths.argmin() == label)
        shares[name] = right / _SAMPLES
    return shares


def _final_error(changes: Mapping[str, Any], seed: int, environment: EnvOptions) -> float:
    """Return E at the end of one run with random permutations; 1 if the network diverged."""
    run = environment.pretraining(seed, **changes)
    finite = train(run, itertools.repeat(None, run.config.total_iterations))
    return run.records[-1].errors["temporal"] if finite else 1.0


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [f"share of {report['samples']} samples whose smoothest order of {report['permutations']} is the true one"]
    for name, row in report["crops"].items():
        lines.append(f"  {name:<36}" + "  ".join(f"{crop} {share:.3f}" for crop, share in row.items()))
    lines += ["", f"final error (mean ± sd): {heading_in_words(report)}"]
    lines += [f"  {name:<28} {with_sd(metric)}" for name, metric in report["network"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
