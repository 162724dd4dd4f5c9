"""Many runs at once: which way of training M networks is fastest, measured in one run.

    python experiments/vector.py

Every rival trains M independent networks of the tiny preset's spatial task, and none validates. A block is some
iterations of all M networks; the rivals take their blocks in turn, so that a slow moment of the machine hits all of
them, and the medians count. The rate is images a second over all M networks.

The bare training loop, without an environment:

- processes: M processes of one thread, each by itself.
- in turn: one process, network after network, each with all threads.
- threads: one process, as many Python threads as cores; each takes the next network and trains it with one thread.
- vmap: one program of torch.func over the stacked weights.
- grouped: one program written out: convolutions with M groups, batched matrix products, one SGD and average over all.

Through Gymnasium, `samples_per_action=1`, so 64 steps an iteration:

- separate environments: M processes of one thread, each with a `gym.make` of its own.
- async: `gym.make_vec(vectorization_mode="async")`, M processes of one thread that meet at every step.
- sync: `gym.make_vec(vectorization_mode="sync")`, one process with all threads.

Prints a table for each M, and writes the figures with the machine's description as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import permenv
from experiments import runs
from permenv import PermShuffleEnv, make_config
from permenv.heads import SpatialHead
from permenv.networks import OrderingNetwork
from permenv.tasks import Task, make_tasks
from permenv.training import Batch, Trainer, resolve_device, resolve_precision

_NEVER = 10**6  # iterations to an update: a validation would enter some blocks and not others


@dataclass(frozen=True)
class Config:
    """The benchmark's options."""

    networks: tuple[int, ...] = (1, 4, 16)
    """Values of M."""
    rivals: tuple[str, ...] = (
        "processes",
        "in turn",
        "threads",
        "vmap",
        "grouped",
        "separate environments",
        "async",
        "sync",
    )
    """What to measure; every ratio is to the first."""
    blocks: int = 7
    """Timed blocks of each rival; the medians count."""
    images: int = 2048
    """Images of a block, of all networks together; at least one mini-batch a network."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    out: Path | None = None
    """JSON file; experiments/results/vector-DEVICE.json if not given."""
    set: tuple[str, ...] = ()
    """Overrides of the tiny preset, NAME=INTEGER."""


Work = Callable[[int], None]
"""Trains all networks of a rival for that many iterations."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Returns:
        What the JSON file holds.
    """
    device = resolve_device(config.device)
    runs.keep_freed_memory()
    numbers = _numbers(config)
    auto = "bf16" if resolve_precision("auto", device) == torch.bfloat16 else "float32"
    report: dict[str, Any] = {"machine": runs.machine(device), "preset": "tiny", "precision": auto, "networks": {}}
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for count in config.networks:
        iterations = max(1, config.images // (numbers.batch_size * count))
        seconds = _seconds_in_turn(config, count, iterations, device)
        images = count * iterations * numbers.batch_size
        rates = {name: images / statistics.median(values) for name, values in seconds.items()}
        first = seconds[config.rivals[0]]
        report["networks"][str(count)] = found = {
            name: {
                "images_per_second": rates[name],
                "ratio": statistics.median(a / b for a, b in zip(first, seconds[name], strict=True)),
                "seconds": seconds[name],
            }
            for name in config.rivals
        }
        print(f"\nM = {count}: {config.blocks} blocks of {images} images, {auto}")
        for name, figures in found.items():
            print(f"  {name:<24} {rates[name]:8.0f} images/s   {figures['ratio']:.2f} times {config.rivals[0]}")
    out = config.out or Path("experiments/results") / f"vector-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(out, report)
    print(f"written to {out}")
    return report


def _numbers(config: Config) -> permenv.Config:
    return make_config("tiny", **_overrides(config))


def _overrides(config: Config) -> dict[str, int]:
    chosen = {name: int(value) for name, _, value in (each.partition("=") for each in config.set)}
    return {"num_scenes": 200, **chosen}  # how many there are changes no time but that of the start


def _seconds_in_turn(config: Config, count: int, iterations: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each rival's blocks."""
    seconds: dict[str, list[float]] = {name: [] for name in config.rivals}
    with contextlib.ExitStack() as stack:
        works = {name: stack.enter_context(_RIVALS[name](config, count, device)) for name in config.rivals}
        for work in works.values():
            work(1)
        for block in range(config.blocks):
            for name in sorted(works, reverse=bool(block % 2)):
                start = time.perf_counter()
                works[name](iterations)
                seconds[name].append(time.perf_counter() - start)
    return seconds


# Rivals in processes of their own: the parent's threads and memory are none of theirs


@contextlib.contextmanager
def _workers(
    make: Callable[[permenv.Config, int, int, torch.device], Work], split: bool, config: Config, count: int, device: torch.device
) -> Iterator[Work]:
    """Train `count` networks in one process with all threads, or split among as many processes with one thread."""
    context, numbers = get_context("spawn"), _numbers(config)
    pipes, processes = [], []
    for index in range(count if split else 1):
        ours, theirs = context.Pipe()
        threads = 1 if split else torch.get_num_threads()
        arguments = (theirs, make, numbers, index, 1 if split else count, threads, device)
        processes.append(context.Process(target=_serve, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)

    def work(iterations: int) -> None:
        for pipe in pipes:
            pipe.send(iterations)
        for pipe in pipes:
            pipe.recv()

    try:
        yield work
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _serve(
    pipe: Connection,
    make: Callable[[permenv.Config, int, int, torch.device], Work],
    numbers: permenv.Config,
    seed: int,
    count: int,
    threads: int,
    device: torch.device,
) -> None:
    torch.set_num_threads(threads)
    runs.keep_freed_memory()
    work = make(numbers, seed, count, device)
    with contextlib.suppress(EOFError):  # the parent has closed its end
        while True:
            work(pipe.recv())
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            pipe.send(None)
