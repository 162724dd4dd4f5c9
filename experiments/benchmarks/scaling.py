"""How many images a second N ranks train on, when each keeps its share of the mini-batch: weak scaling.

    torchrun --nproc-per-node 2 experiments/benchmarks/scaling.py --env.batch-size 128

prints the images a second of these ranks, on noise; `measure` runs it for N = 1, 2, 4, ... with N times the mini-batch.
On GPUs there is a rank a GPU, and N ends with all of them. On a CPU there are one and two processes of one thread each,
which speak through gloo: that shows what the ranks cost, and nothing of what GPUs gain.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from experiments.benchmarks.noise import new_run, tasks_of_noise
from experiments.benchmarks.timing import time_process, wait_for
from experiments.common.machine import keep_freed_memory
from experiments.common.options import EnvOptions
from experiments.common.script import run_script
from permenv.device import resolve_device
from permenv.distributed import current

_ON_A_CPU = 2  # ranks at most


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options of the ranks."""

    iterations: int = 10
    """Timed iterations."""


def main(config: Config) -> None:
    """Train in the ranks that torchrun has started, and print the images a second of all together."""
    keep_freed_memory()
    device = resolve_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # as torchrun does where there are several ranks
    run = new_run(config.env, tasks_of_noise(config.env, device, config.task))
    for _ in range(2):
        run.iterate()
    ranks = current()
    ranks.barrier()
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(config.iterations):
        run.iterate()
    wait_for(device)
    ranks.barrier()
    print(config.env.batch_size * config.iterations / (time.perf_counter() - begin))


def measure(config: EnvOptions, device: torch.device, iterations: int) -> dict[str, Any]:
    """Run N ranks for each N.

    Args:
        config: The options; the mini-batch is that of a rank.
        device: Where to train.
        iterations: Timed iterations.

    Returns:
        By N images a second, and efficiency, which is 1 where N ranks are N times as fast as one.
    """
    most = 1 if device.index is not None else torch.cuda.device_count() if device.type == "cuda" else _ON_A_CPU
    sizes = sorted({*(2**power for power in range(most.bit_length())), most})
    rates = {size: _images_per_second(config, device, size, iterations) for size in sizes}
    return {
        "task": config.task,
        "batch_size_of_a_rank": config.env.batch_size,
        "ranks": "a GPU each, nccl" if device.type == "cuda" else f"processes on {os.cpu_count()} CPU cores, gloo",
        "images_per_second": {str(size): rate for size, rate in rates.items()},
        "efficiency": {str(size): rate / (size * rates[1]) for size, rate in rates.items()},
    }


def _images_per_second(config: EnvOptions, device: torch.device, size: int, iterations: int) -> float:
    numbers = dataclasses.replace(config.env, batch_size=size * config.env.batch_size)
    options = dataclasses.replace(config.environment, env=numbers, device=str(device))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command = [*launcher, __file__, *options.arguments, "--iterations", str(iterations)]
    return float(time_process(command).output.splitlines()[-1])


if __name__ == "__main__":
    run_script(main, Config, __doc__, several_ranks=True)
