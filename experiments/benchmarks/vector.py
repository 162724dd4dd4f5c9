"""Many runs at once: which way of training M networks is fastest, measured in one run.

    python experiments/benchmarks/vector.py

Each rival trains M independent networks, and none validates. A block is some iterations of all M networks. The rivals
of a table run their blocks in turn, so that a slow moment of the machine affects all of them. Reported are medians:
images a second over all M networks, and the ratio to M separate processes.

Training alone, with `Pretraining.iterate`:

- processes: M processes of one thread.
- in turn: one process with all threads, network after network.

Through Gymnasium, with a step for every action:

- processes: M processes of one thread, each with an environment of its own.
- async: `AsyncVectorEnv`, as `gym.make_vec(..., vectorization_mode="async")` makes it: M processes of one thread that
  wait for each other after every step.
- sync: `SyncVectorEnv`, likewise: one process with all threads.

Prints a table for each M, and writes the numbers with the machine's description as JSON. M = 16 needs 16 GB.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from experiments.benchmarks.timing import seconds_in_turn
from experiments.common.files import write_json
from experiments.common.machine import keep_freed_memory, machine
from experiments.common.options import EnvOptions
from experiments.common.reports.report import origin
from experiments.common.script import run_script
from experiments.common.sweeps.processes import end_with_parent, interrupts_for_this_process_only
from permenv import Pretraining
from permenv.device import resolve_device, resolve_precision
from permenv.setup import make_tasks

Work = Callable[[int], None]
"""Trains every network of a rival for that many iterations."""


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The benchmark's options."""

    # The number of scenes changes no time but that of the start. A validation would be in some blocks only.
    changes: ClassVar = {"num_scenes": 200, "iterations_per_update": 10**6}

    device: str = "cpu"
    """auto, cpu or cuda."""
    networks: tuple[int, ...] = (1, 4, 16)
    """Values of M."""
    blocks: int = 5
    """Timed blocks of each rival; the medians count."""
    block_images: int = 2048
    """Images of a block, of all networks together; at least one mini-batch a network."""
    out: Path | None = None
    """JSON file; experiments/results/vector-DEVICE.json if not given."""

    @property
    def file(self) -> Path:
        """Where the numbers are written."""
        return self.out or Path("experiments/results") / f"vector-{resolve_device(self.device).type}.json"


@dataclass(frozen=True)
class Setting:
    """What one process trains.

    Attributes:
        environment: Preset, task, data, device and numbers.
        count: How many networks.
        seed: Of the first network; the others have the seeds that follow.
    """

    environment: EnvOptions
    count: int
    seed: int = 0


@dataclass(frozen=True)
class Rival:
    """A way of training M networks.

    Attributes:
        make: Prepares the training in the process that trains.
        separate: Whether every network has a process of one thread; else one process with all threads trains all.
    """

    make: Callable[[Setting], Work]
    separate: bool = False


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Returns:
        What the JSON file holds.
    """
    device = resolve_device(config.device)
    dtype = resolve_precision(config.env.precision, device)
    precision = "bf16" if dtype == torch.bfloat16 else "float32"
    report: dict[str, Any] = {
        **origin(config),
        "machine": machine(device),
        "preset": config.preset,
        "precision": precision,
    }
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for title, rivals in RIVALS.items():
        report[title] = {str(count): measure(config, rivals, count, title) for count in config.networks}
    write_json(config.file, report)
    print(f"\nwritten to {config.file}")
    return report


def measure(config: Config, rivals: Mapping[str, Rival], count: int, title: str) -> dict[str, dict[str, Any]]:
    """Time rivals on `count` networks, and print the table.

    Args:
        config: The options.
        rivals: By name; one is "processes", to which the ratios are.
        count: M.
        title: Of the table.

    Returns:
        By rival, "images_per_second", "ratio_to_processes" and the "seconds" of each block.
    """
    batch_size = config.env.batch_size
    iterations = max(1, config.block_images // (batch_size * count))
    images = count * iterations * batch_size
    with contextlib.ExitStack() as stack:
        blocks = {}
        for name, rival in rivals.items():
            work = stack.enter_context(_started(rival, count, config.environment))
            blocks[name] = functools.partial(work, iterations)
        # the processes of the rivals wait for their own device
        seconds = seconds_in_turn(blocks, config.blocks, torch.device("cpu"))
    measured = {}
    print(f"\n{title}, M = {count}: {config.blocks} blocks of {images} images")
    for name, times in seconds.items():
        rate = images / statistics.median(times)
        ratio = statistics.median(one / other for one, other in zip(seconds["processes"], times, strict=True))
        measured[name] = {"images_per_second": rate, "ratio_to_processes": ratio, "seconds": times}
        print(f"  {name:<12} {rate:8.0f} images/s   {ratio:.2f} times processes", flush=True)
    return measured


# Every rival has processes of its own, so that none inherits another's threads or memory.


@contextlib.contextmanager
def _started(rival: Rival, count: int, environment: EnvOptions) -> Iterator[Work]:
    if rival.separate:
        settings, threads = [Setting(environment, 1, seed) for seed in range(count)], 1
    else:
        settings, threads = [Setting(environment, count)], torch.get_num_threads()
    context = get_context("spawn")
    pipes, processes = [], []
    for setting in settings:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, rival.make, setting, threads)))
        with interrupts_for_this_process_only():
            processes[-1].start()
        theirs.close()  # otherwise a process that died would be waited for
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


def _serve(pipe: Connection, make: Callable[[Setting], Work], setting: Setting, threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # without it an environment in a spawned process takes one thread
    keep_freed_memory()
    device = resolve_device(setting.environment.device)
    work = make(setting)
    while True:
        try:
            iterations = pipe.recv()
        except EOFError:  # the parent has closed its end
            return
        work(iterations)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        pipe.send(None)


def _train(setting: Setting) -> Work:
    """Prepare runs that share their data, and train them in turn."""
    options, device = setting.environment, resolve_device(setting.environment.device)
    tasks = make_tasks(options.task, options.env, device, {"images": options.images, "videos": options.videos})
    seeds = range(setting.seed, setting.seed + setting.count)
    runs = [Pretraining(options.env, tasks, device, seed=seed) for seed in seeds]

    def work(iterations: int) -> None:
        for _ in range(iterations):
            for run in runs:
                run.iterate()

    return work


def _environment(setting: Setting) -> Work:
    return _steps(setting.environment.make(), setting)


def _sync(setting: Setting) -> Work:
    return _steps(gym.vector.SyncVectorEnv([setting.environment.make] * setting.count), setting)


def _async(setting: Setting) -> Work:
    os.environ["OMP_NUM_THREADS"] = "1"  # the new processes read it when they load torch
    return _steps(gym.vector.AsyncVectorEnv([setting.environment.make] * setting.count, context="spawn"), setting)


def _steps(env: gym.Env | gym.vector.VectorEnv, setting: Setting) -> Work:
    """Begin the runs of an environment, and step through them with random actions."""
    env.reset(seed=setting.seed)
    numbers, rng = setting.environment.env, np.random.default_rng(setting.seed)
    shape = env.action_space.shape or ()

    def work(iterations: int) -> None:
        for action in rng.integers(numbers.num_groups, size=(iterations * numbers.actions_per_iteration, *shape)):
            env.step(action)

    return work


RIVALS: Mapping[str, Mapping[str, Rival]] = {
    "training": {
        "processes": Rival(_train, separate=True),
        "in turn": Rival(_train),
    },
    "gymnasium": {
        "processes": Rival(_environment, separate=True),
        "async": Rival(_async),
        "sync": Rival(_sync),
    },
}

if __name__ == "__main__":
    run_script(main, Config, __doc__)
