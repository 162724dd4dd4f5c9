"""Predictions of `dry_run.py` against measurements, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

import permenv
from experiments.benchmarks.noise import new_run, tasks_of_noise
from experiments.benchmarks.prediction import memory_of_this_process, predict
from experiments.benchmarks.timing import Clock
from experiments.common.machine import keep_freed_memory
from permenv import make_config

CASES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "nano spatial, 24": ("nano", "spatial", {"batch_size": 24}),
    "nano spatial, 96": ("nano", "spatial", {"batch_size": 96}),
    "tiny spatial, 32": ("tiny", "spatial", {"batch_size": 32}),
    "tiny spatial, 128": ("tiny", "spatial", {"batch_size": 128}),
    "tiny temporal, 32": ("tiny", "temporal", {"batch_size": 32}),
    "tiny temporal, 128": ("tiny", "temporal", {"batch_size": 128}),
    "tiny joint, 32": ("tiny", "spatiotemporal", {"batch_size": 32}),
    "tiny joint, 128": ("tiny", "spatiotemporal", {"batch_size": 128}),
    "tiny joint, 32, 500 permutations": ("tiny", "spatiotemporal", {"batch_size": 32, "num_permutations": 500}),
    "tiny joint, 32, float32": ("tiny", "spatiotemporal", {"batch_size": 32, "precision": "float32"}),
    "paper joint, 12": ("paper", "spatiotemporal", {"batch_size": 12, "num_validation": 10}),
    "paper temporal, 24": ("paper", "temporal", {"batch_size": 24, "num_validation": 10}),
}
"""By name: preset, task, and changes of the preset."""

_SECONDS = 3.0  # of timed work


def compare(
    device: torch.device, base: int, cases: Mapping[str, tuple[str, str, dict[str, Any]]] = CASES
) -> dict[str, Any]:
    """Predict and measure, print a table of the ratios.

    Args:
        device: Where.
        base: Bytes of a process that trains next to nothing, see `memory_of_libraries`.
        cases: See `CASES`.

    Returns:
        By case and quantity "predicted", "measured" and their "ratio"; and the largest ratio or its inverse.
    """
    found = {}
    print(f"\n{'predicted / measured':<28} {'iteration, s':>26} {'validation, s':>26} {'memory, MB':>26}")
    for name, (preset, task, changes) in cases.items():
        numbers = make_config(preset, task, **{"samples_per_action": 1, **changes})
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            measured = executor.submit(measure, task, numbers, str(device)).result()
        predicted = _predicted(task, numbers, device, base, int(measured.pop("data_bytes")))
        found[name] = {
            what: {"predicted": value, "measured": measured[what], "ratio": value / measured[what]}
            for what, value in predicted.items()
        }
        columns = [
            f"{scale * each['predicted']:9.4g} / {scale * each['measured']:.4g} = {each['ratio']:.2f}"
            for each, scale in zip(found[name].values(), (1, 1, 1e-6), strict=True)
        ]
        print(f"{name:<28} " + " ".join(f"{column:>26}" for column in columns), flush=True)
    quantities = next(iter(found.values()))
    worst = {
        what: max(max(each[what]["ratio"], 1 / each[what]["ratio"]) for each in found.values()) for what in quantities
    }
    print("largest factor: " + ", ".join(f"{what} {value:.2f}" for what, value in worst.items()))
    return {"clock": Clock(device).name, "cases": found, "largest_factor": worst}


def measure(task: str, numbers: permenv.Config, device_name: str) -> dict[str, float]:
    """Train for a few iterations in this process, and validate.

    Returns:
        Seconds of an iteration and of a validation, the bytes at the peak, and those of the data.
    """
    device = torch.device(device_name)
    keep_freed_memory()
    tasks = tasks_of_noise(numbers, device, task)
    run = new_run(numbers, tasks)
    clock = Clock(device)
    run.iterate()
    iteration, validation = clock.median(run.iterate, _SECONDS), clock.median(run.validate, _SECONDS)
    on_gpu = device.type == "cuda"
    return {
        "iteration_seconds": iteration,
        "validation_seconds": validation,
        "bytes": torch.cuda.max_memory_reserved(device) if on_gpu else memory_of_this_process(peak=True),
        "data_bytes": sum(_pixels(each.data) for each in tasks.values()),
    }


def _pixels(data: Any) -> int:
    return (data.frames if isinstance(data, permenv.VideoClips) else data).pixels.nbytes


def _predicted(task: str, numbers: permenv.Config, device: torch.device, base: int, data: int) -> dict[str, float]:
    found = predict(task, numbers, device, base, data)
    # of a GPU what torch takes for tensors, without CUDA's own
    memory = {**found.device_memory, "CUDA and its libraries": 0} if found.device_memory else found.host_memory
    return {
        "iteration_seconds": found.iteration_seconds,
        "validation_seconds": found.validation_seconds,
        "bytes": sum(memory.values()),
    }
