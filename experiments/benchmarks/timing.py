"""How the benchmarks measure time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


def seconds_in_turn(
    rivals: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time rivals in turn, so that a slow moment of the machine affects all of them.

    Each runs once before it is timed. The order is reversed after every round, because the machine's speed drifts.

    Args:
        rivals: By name, what is timed.
        repeats: Times that each is timed.
        device: The device whose work is waited for.

    Returns:
        By rival, the seconds of each time, in the order in which they were measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for work in rivals.values():
        work()
    for repeat in range(repeats):
        for name in reversed(seconds) if repeat % 2 else seconds:
            _wait_for(device)
            start = time.perf_counter()
            rivals[name]()
            _wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
