"""Memory and time of a configuration, from two small mini-batches: see `dry_run.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import permenv
from experiments.benchmarks.counting import Counter, Operation, extrapolate
from experiments.benchmarks.limits import Limits, measure_limits
from experiments.benchmarks.noise import new_run, tasks_of_noise
from experiments.benchmarks.parts import PARTS, by_part, count_iteration, time_iteration
from experiments.benchmarks.timing import Clock, medians_in_turn
from permenv import Pretraining
from permenv.grouping import group_permutations
from permenv.validation import _CHUNK_SAMPLES, validate

_MOST = {"cpu": 16, "cuda": 64}  # samples of the larger mini-batch
_LEAST = 4
_SECONDS = 2.0  # of timed work; on a machine that is busy, shorter ones vary
_REPEATS = 3
# gaps between blocks of memory, and scratch memory of libraries, beside the tensors of an iteration or a validation: on
# a CPU what `dry_run.py --check` left unexplained; a GPU has not been measured
_GAPS = {"cpu": 0.5, "cuda": 0.2}
_CONTEXT = 500_000_000  # bytes of a GPU that CUDA and its libraries take


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to cost.

    Attributes:
        clock: What seconds are of.
        iteration_seconds: Of a training iteration.
        validation_seconds: Of a validation, the grouping of permutations included.
        iterations: Of the whole run.
        validations: Of the whole run.
        parts: Of an iteration, by part: "seconds", "operations", "flops" and "bytes".
        device_memory: Bytes of a GPU at the peak, by what takes them; empty on a CPU.
        host_memory: Bytes of the process at the peak, by what takes them.
        limits: The rates that the time was bounded with.
        sizes: The mini-batches that were counted.
    """

    clock: str
    iteration_seconds: float
    validation_seconds: float
    iterations: int
    validations: int
    parts: Mapping[str, Mapping[str, float]]
    device_memory: Mapping[str, float]
    host_memory: Mapping[str, float]
    limits: Limits
    sizes: tuple[int, int]

    @property
    def run_seconds(self) -> float:
        """Of the whole run."""
        return self.iterations * self.iteration_seconds + self.validations * self.validation_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, and their sums."""
        return {
            **dataclasses.asdict(self),
            "sizes": list(self.sizes),
            "run_seconds": self.run_seconds,
            "device_bytes": sum(self.device_memory.values()),
            "host_bytes": sum(self.host_memory.values()),
        }


def predict(
    task: str,
    numbers: permenv.Config,
    device: torch.device,
    base: int,
    data: int,
    elsewhere: Limits | None = None,
) -> Prediction:
    """Predict what a run costs.

    Args:
        task: "spatial", "temporal" or "spatiotemporal".
        numbers: All numbers of the run.
        device: Where it is to train; where operations are counted.
        base: Bytes of a process that trains next to nothing, see `memory_of_libraries`.
        data: Bytes of the pixels of the data.
        elsewhere: The rates of another device that it is to train on.
    """
    samples = _sizes(numbers.num_validation, device)
    small = dataclasses.replace(numbers, samples_per_action=1, num_validation=samples[1])
    run = new_run(small, tasks_of_noise(small, device, task, samples[1] + 1))
    dtype = torch.bfloat16 if run.trainer.precision == "bf16" else torch.float32
    limits = elsewhere or measure_limits(device, dtype)
    iteration = _iteration(run, numbers.batch_size, limits, timed=elsewhere is None)
    validation = _validation(run, samples, numbers.num_validation, limits, timed=elsewhere is None)
    kept = _kept(run, numbers)
    largest = max(iteration.memory, validation.memory)
    working = {
        "a mini-batch, or what validation needs": largest,
        "gaps between its blocks, and scratch memory": _GAPS[device.type] * largest,
    }
    pixels = {"pixels of the data": data}
    process = {"the process and its libraries": base}
    on_gpu = device.type == "cuda"
    return Prediction(
        clock="the least seconds" if elsewhere else Clock(device).name,
        iteration_seconds=iteration.seconds,
        validation_seconds=validation.seconds + _grouping(run, numbers),
        iterations=numbers.total_iterations,
        validations=1 + numbers.total_updates * numbers.phases_per_update,
        parts=by_part(iteration.operations, iteration.parts),
        device_memory={"CUDA and its libraries": _CONTEXT, **kept, **working, **pixels} if on_gpu else {},
        host_memory=process if on_gpu else {**process, **kept, **working, **pixels},
        limits=limits,
        sizes=_sizes(numbers.batch_size, device),
    )


def memory_of_libraries(device: torch.device) -> int:
    """Return the bytes that a process has in memory that trains next to nothing.

    Libraries load and reserve much when they are first used, so a run of the nano preset is made first.

    Args:
        device: Where runs are to train.
    """
    numbers = permenv.make_config("nano", batch_size=_LEAST, samples_per_action=1, num_validation=_LEAST)
    new_run(numbers, tasks_of_noise(numbers, device)).iterate()
    return memory_of_this_process()


def memory_of_this_process(peak: bool = False) -> int:
    """Return the bytes that this process has in memory, now or at its peak; 0 where the system does not tell."""
    key = "VmHWM" if peak else "VmRSS"  # not ru_maxrss, which begins with that of the process that started this one
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


@dataclass(frozen=True)
class _Cost:
    """Seconds of something, and the bytes that it needs beside what is kept."""

    seconds: float
    memory: float
    operations: Sequence[Operation] = ()
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _iteration(run: Pretraining, batch_size: int, limits: Limits, timed: bool) -> _Cost:
    """Extrapolate an iteration."""
    sizes = _sizes(batch_size, run.device)
    times = _times(batch_size, sizes)
    counted, parts = [], []
    for size in sizes:
        _resize(run, size)
        run.iterate()  # makes what is kept
        counted.append(count_iteration(run)[0])
        if timed:
            parts.append(time_iteration(run, _REPEATS)[1])
    operations = extrapolate(counted[0], counted[1], times)
    gradients = sum(parameter.nbytes for parameter in run.trainer.network.parameters())  # counted as what is kept
    memory = max(each.live for each in operations) - gradients
    bound = limits.bound(operations)
    if not timed:
        found = {name: limits.bound([each for each in operations if each.part == name]) for name in PARTS}
        return _Cost(bound, memory, operations, found)
    found = {name: max(0.0, _line((parts[0][name], parts[1][name]), times)) for name in PARTS}
    measured = _measured([_iterating(run, size) for size in sizes], run.device)
    seconds = max(_line(measured, times), bound)
    scale = seconds / sum(found.values())  # the parts sum to the whole
    return _Cost(seconds, memory, operations, {name: scale * value for name, value in found.items()})


def _iterating(run: Pretraining, size: int) -> Callable[[], object]:
    def work() -> None:
        _resize(run, size)
        run.iterate()

    return work


def _resize(run: Pretraining, size: int) -> None:
    """Let a run's next mini-batches have another size."""
    run.config = dataclasses.replace(run.config, batch_size=size)


def _validation(run: Pretraining, sizes: tuple[int, int], samples: int, limits: Limits, timed: bool) -> _Cost:
    """Extrapolate the predictions of all permutations on X_val."""
    times, together = _times(samples, sizes), _times(min(samples, _CHUNK_SAMPLES), sizes)
    total, memory = 0.0, 0.0
    for name, task in run.tasks.items():
        works = [_validating(run, name, run._validation_pieces[name][:size], task.permutations) for size in sizes]
        counted = []
        for work in works:
            with Counter() as counter:
                work()
            counted.append(counter.operations)
        bound = _line([limits.bound(each) for each in counted], times)
        total += max(_line(_measured(works, run.device), times), bound) if timed else bound
        peaks = [max(each.live for each in operations) for operations in counted]
        memory = max(memory, _line(peaks, together))  # the tasks take turns
    return _Cost(total, memory)


def _measured(works: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the median seconds of each, measured in turn."""
    clock, rivals = Clock(device), {str(number): work for number, work in enumerate(works)}
    longest = clock.times(works[-1], 1)[0]
    repeats = max(_REPEATS, int(_SECONDS / max(longest, _SECONDS / 50)))
    return list(medians_in_turn(rivals, repeats, device, clock.now).values())


def _validating(run: Pretraining, name: str, pieces: Tensor, permutations: np.ndarray) -> Callable[[], object]:
    return lambda: validate(run.trainer.eval_network, name, pieces, permutations)


def _grouping(run: Pretraining, numbers: permenv.Config) -> float:
    """Time the grouping of as many permutations as there are."""
    rng = np.random.default_rng(0)
    ratios = rng.uniform(0.9, 1.1, (numbers.num_permutations, numbers.num_validation)).astype(np.float32)
    clock = Clock(torch.device("cpu"))
    return len(run.tasks) * clock.median(lambda: group_permutations(ratios, numbers.num_groups, 0), _SECONDS / 10)


def _kept(run: Pretraining, numbers: permenv.Config) -> dict[str, float]:
    """Return the bytes of what a run keeps."""
    weights = sum(parameter.nbytes for parameter in run.trainer.network.parameters())
    buffers = sum(buffer.nbytes for buffer in run.trainer.network.buffers())
    copies = 2 if numbers.ema_decay else 1
    share = numbers.num_validation / run.config.num_validation
    pieces = sum(pieces.nbytes for pieces in run._validation_pieces.values())
    return {
        "weights, their gradients, momentum and averages": (2 + copies) * weights + copies * buffers,
        "the pieces of X_val": share * pieces,
        "the matrix s": 5 * len(run.tasks) * numbers.num_permutations * numbers.num_validation,
    }


def _sizes(count: int, device: torch.device) -> tuple[int, int]:
    """Return two sizes, of which the larger is half of what is asked for, within bounds."""
    larger = max(_LEAST, min(_MOST[device.type], count // 2))
    return larger // 2, larger


def _times(count: int, sizes: tuple[int, int]) -> float:
    """Return how many times as far from the smaller size as the larger one is."""
    return (count - sizes[0]) / (sizes[1] - sizes[0])


def _line(values: Sequence[float], times: float) -> float:
    """Extrapolate what has one value at the smaller size and another at the larger one."""
    one, other = values
    return one + times * (other - one)
