"""Why training may hurt nearest neighbours: colour, batch statistics, stride, scale.

    python experiments/studies/features.py    # trains the networks
    python experiments/studies/conditions.py

The networks of `experiments/studies/features.py` search nearest neighbours under one changed condition at a time:

- batch statistics measured on the images that are searched, instead of those of training;
- queries and images without colour: what is found by colour is no longer found;
- images of half and of twice the size: the scale of what the network sees;
- the first convolution at half its stride: a denser map.

Writes `experiments/results/conditions.json` and prints the table.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.common.evaluation.protocols import SETS, Data
from experiments.common.evaluation.sources import Source, source_of, weights_of
from experiments.common.options import require_known
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, mean_of
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import executor_of, sweep
from experiments.studies import features
from permenv import ConfigurationError, StillImages, VideoClips
from permenv.device import resolve_device
from permenv.transfer.retrieval import retrieval
from permenv.transfer.trunks import some_of, with_measured_statistics

CONDITIONS = ("as evaluated", "measured statistics", "grey", "half size", "twice the size", "half the stride")
_SIZES = {"half size": 0.5, "twice the size": 2.0}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Config(features.Config):
    """The study's options: those of `experiments/studies/features.py`, whose folder `runs` holds the networks."""

    networks: tuple[str, ...] = features.NETWORKS
    """Which networks."""
    sets: tuple[str, ...] = tuple(SETS)
    """What is searched: images, objects, frames."""
    out: Path = Path("experiments/results/conditions.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        ConfigurationError: If a set is unknown, or a network has not been trained.
        DataError: If data cannot be used.
    """
    require_known("--sets", config.sets, SETS)
    assert config.runs is not None, "it has a default"
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    sources = {
        (network, seed): source_of(_weights(config.runs, network, seed), config.env)
        for network in config.networks
        for seed in seeds
    }
    jobs = {
        f"{network}-{name}-{condition}-seed{seed}": {
            "source": sources[network, seed],
            "data": config.folders,
            "name": name,
            "condition": condition,
            "seed": seed,
            "device": str(resolve_device(config.device)),
        }
        for seed in seeds
        for name in config.sets
        for network in config.networks
        for condition in CONDITIONS
    }
    with executor_of(config) as executor:
        found = sweep(search, jobs, executor=executor, folder=config.runs / "conditions")
    rows = []
    for name in config.sets:
        for network in config.networks:
            values = {
                condition: [found[f"{network}-{name}-{condition}-seed{seed}"] for seed in seeds]
                for condition in CONDITIONS
            }
            rows.append({"set": name, "network": network, "top 1": values})
    report = {**heading(config), "first_seed": config.first_seed, "interval": OF_MEANS, "rows": rows}
    publish(report, in_words(report), config.out)
    return report


def search(source: Source, data: Data, name: str, condition: str, seed: int, device: str) -> float | None:
    """Return the Top-1 accuracy of one network on one set under one condition, in [0, 1]; None if not finite."""
    trunk = source.load(seed)
    trunk = dataclasses.replace(trunk, module=trunk.module.to(device))
    if condition == "half the stride":
        trunk = dataclasses.replace(trunk, module=at_half_the_stride(trunk.module))
    side = round(trunk.input_size * _SIZES.get(condition, 1.0))
    database, queries = (grey(each) if condition == "grey" else each for each in SETS[name](data, side))
    if source.is_untrained or condition == "measured statistics":
        trunk = with_measured_statistics(trunk, some_of(database))
    found = retrieval(trunk.module, queries, database, progress=False)
    return None if found is None else found[1]


def grey(data: StillImages | VideoClips) -> StillImages | VideoClips:
    """Take the colour out of images or frames."""
    if isinstance(data, VideoClips):
        frames = grey(data.frames)
        assert isinstance(frames, StillImages), "of still images"
        return dataclasses.replace(data, frames=frames)
    pixels = np.empty(data.pixels.shape, np.uint8)
    for row, image in enumerate(np.asarray(data.pixels)):
        pixels[row] = np.rint(image @ _LUMA)[..., None]
    return dataclasses.replace(data, pixels=torch.from_numpy(pixels), fingerprint=f"{data.fingerprint}, grey")


def at_half_the_stride(module: nn.Module) -> nn.Module:
    """Copy a trunk, and halve the stride of its first convolution.

    Raises:
        ConfigurationError: If the stride is odd.
    """
    module = copy.deepcopy(module)
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    if any(stride % 2 for stride in first.stride):
        raise ConfigurationError(f"the first convolution has the stride {first.stride}, which cannot be halved")
    first.stride = (first.stride[0] // 2, first.stride[1] // 2)
    return module


def _weights(runs: Path, network: str, seed: int) -> Path | None:
    if network == features.UNTRAINED:
        return None
    path = weights_of(runs, network, seed)
    if not path.is_file():
        raise ConfigurationError(f"there is no {path}: run experiments/studies/features.py first, with the same --runs")
    return path


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}; Top-1 in percent, mean [{report['interval']}]",
        "",
        "| searched | network | " + " | ".join(CONDITIONS) + " |",
        "|---" * (2 + len(CONDITIONS)) + "|",
    ]
    for row in report["rows"]:
        shown = []
        for condition in CONDITIONS:
            values = row["top 1"][condition]
            if None in values:
                shown.append("not finite")
                continue
            found = mean_of(values)
            shown.append(f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]")
        lines.append(f"| {row['set']} | {row['network']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
