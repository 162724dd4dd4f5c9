"""What a run will cost: memory and time of a configuration, predicted before it is started.

    python experiments/benchmarks/dry_run.py --preset paper --task spatiotemporal
    python experiments/benchmarks/dry_run.py --preset paper --device cuda --images path/to/train
    python experiments/benchmarks/dry_run.py --preset paper --env.precision bf16 --peak-tflops 600 --bandwidth 2600
    python experiments/benchmarks/dry_run.py --check --device cpu --out experiments/results/dry-run-cpu.json

The real code runs on noise, for a few iterations of two mini-batches that are much smaller than the one asked for, and
validates a few samples. Every operation of torch is counted meanwhile (`counting.py`). What an operation computes,
moves and keeps grows linearly with the mini-batch, and so does its time where the device is busy; so the two sizes give
any other. The time is never less than what the measured rates of the device allow for all operations.

With `--peak-tflops` and `--bandwidth`, the rates that another device reaches, the time is that least time alone; on the
CPU of `experiments/results/iteration-tiny-cpu.json` an iteration takes 2.8 times as long. Give the precision of that
device as well. Memory does not depend on the device, but for what its libraries need.

Left out: what the agent, `env.step`, checkpoints and pictures take (a few percent, see `speed.py`); the start; and the
wait for data that must be decoded. What is kept of data is estimated from the number of files.

`--check` compares predictions with runs of processes of their own, and writes predicted, measured and their ratio.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import permenv
from experiments.benchmarks import check
from experiments.benchmarks.limits import Limits
from experiments.benchmarks.prediction import Prediction, memory_of_libraries, predict
from experiments.common.files import write_json
from experiments.common.machine import keep_freed_memory, machine
from experiments.common.options import EnvOptions
from experiments.common.reports.report import origin
from experiments.common.script import run_script
from permenv import ConfigurationError
from permenv.data import store
from permenv.data.sets import free_bytes
from permenv.device import resolve_device
from permenv.registry import parts_of

_START = 1e-5  # seconds that torch's own code takes to start an operation, on another device
UNCERTAINTY = {
    "cpu": "on a CPU seconds within a factor of 1.3, memory within 20% (experiments/results/dry-run-cpu.json)",
    "cuda": "an iteration was predicted once, 14% too short (experiments/results/nvidia-h200); memory was not compared",
    "elsewhere": "the least seconds that these rates allow, those of training in validation too; on a GPU an iteration "
    "took 2.6 times as long; memory as on a CPU",
}
"""What is known of how far predictions are off, by device."""


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options."""

    peak_tflops: float | None = None
    """TFLOP/s that another device reaches in large matrix products, in the precision of training."""
    bandwidth: float | None = None
    """GB/s that it reaches between its memory and its processors, read and written."""
    check: bool = False
    """Compare predictions with measurements on this machine instead, for some configurations."""
    out: Path | None = None
    """JSON file; by default none is written."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the rates.

        Raises:
            ConfigurationError: If only one of the rates is given, or one is not positive.
        """
        super().__post_init__()
        if (self.peak_tflops is None) != (self.bandwidth is None):
            raise ConfigurationError("--peak-tflops and --bandwidth describe a device together: give both or neither")
        for name, rate in (("peak-tflops", self.peak_tflops), ("bandwidth", self.bandwidth)):
            if rate is not None and not rate > 0:
                raise ConfigurationError(f"--{name} {rate}: must be more than 0")

    @property
    def limits(self) -> Limits | None:
        """The rates of another device, if they are given."""
        if self.peak_tflops is None or self.bandwidth is None:
            return None
        return Limits(self.peak_tflops * 1e12, self.bandwidth * 1e9, _START)


def main(config: Config) -> dict[str, Any]:
    """Predict, print and write.

    Returns:
        What the JSON file holds.
    """
    device = resolve_device("cpu" if config.limits else config.device)
    keep_freed_memory()
    base = memory_of_libraries(device)  # before anything else is made
    report: dict[str, Any] = {
        **origin(config),
        "machine": machine(device),
        "preset": config.preset,
        "task": config.task,
    }
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    if config.check:
        report |= check.compare(device, base)
    else:
        found = predict(config.task, config.env, device, base, _data_bytes(config, device), config.limits)
        report |= {
            "uncertainty": UNCERTAINTY[device.type if config.limits is None else "elsewhere"],
            "env": config.env.as_dict(),
            **found.as_dict(),
        }
        _print(config, found, report["uncertainty"])
    if config.out is not None:
        write_json(config.out, report)
        print(f"\nwritten to {config.out}")
    return report


def _data_bytes(config: Config, device: torch.device) -> int:
    """Estimate the memory that the pixels of the data take.

    On a GPU they take none where they do not fit and stay in files, on a CPU where files are kept as JPEG.
    """
    numbers, total = config.env, 0
    sizes: Mapping[str, tuple[Path | None, int, int]] = {
        "images": (config.images, numbers.num_scenes, 3 * numbers.image_size**2),
        "videos": (config.videos, numbers.num_clips, 3 * numbers.clip_frames * numbers.frame_size**2),
    }
    for part in parts_of(config.task):
        folder, count, size = sizes[part.data_keyword]
        if folder is not None:
            if not folder.is_dir():
                raise permenv.DataError(f"--{part.data_keyword} {folder}: there is no such folder")
            count = sum(len(files) for _, _, files in os.walk(folder))
        needed = count * size
        if device.type == "cuda":
            stays = needed > free_bytes(device) // 2
        else:
            stays = folder is not None and part.data_keyword == "images" and needed > store.RAW_BYTES
        total += 0 if stays else needed
    return total


def _print(config: Config, found: Prediction, uncertainty: str) -> None:
    where = "another device" if config.limits else str(resolve_device(config.device))
    print(f"\n{config.preset} preset, {config.task} task, batch of {config.env.batch_size}, on {where}, {found.clock}")
    print(f"  {'part of an iteration':<52} {'ms':>10} {'GFLOP':>10} {'GB moved':>10}")
    for name, part in found.parts.items():
        print(f"  {name:<52} {1e3 * part['seconds']:10.2f} {part['flops'] / 1e9:10.2f} {part['bytes'] / 1e9:10.3f}")
    for title, sizes in (("memory of the device", found.device_memory), ("memory of the process", found.host_memory)):
        if sizes:
            print(f"\n  {title:<52} {'MB':>10}")
            for name, size in {**sizes, "together": sum(sizes.values())}.items():
                print(f"  {name:<52} {size / 1e6:10.1f}")
    print(f"\n  an iteration {found.iteration_seconds:.4g} s, a validation {found.validation_seconds:.4g} s")
    print(
        f"  the run, {found.iterations:,} iterations and {found.validations:,} validations: "
        f"{found.run_seconds / 3600:.3g} hours"
    )
    print(f"  uncertainty: {uncertainty}")
    sys.stdout.flush()


if __name__ == "__main__":
    run_script(main, Config, __doc__)
