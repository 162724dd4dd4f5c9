"""Where the time of a training iteration goes, and how near it comes to what the device can do.

The iteration that is measured is the real one: the functions that it calls are wrapped with a `Stopwatch` while it
runs, so the parts sum to the whole. On a GPU the wait at every border keeps work from overlapping, so their sum is
longer than an iteration without them, which is measured too.

The roofline: an iteration takes at least its FLOPs at the rate of a large matrix product in the precision of training,
and what it moves at the least at the bandwidth of a copy, where each tensor that it reads is read once, and each that
it writes is written once. The share is the longer of the two over the measured seconds. Channels that
`permenv.networks.convolve_rows` adds on a GPU are counted as well. torch computes operation by operation, each of which
reads its inputs and writes its result; the second bound is the sum over operations of the longest of FLOPs, bytes and
the start of an operation. A cache may move more than a copy of much memory does.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch

from experiments.benchmarks.counting import Counter, Operation
from experiments.benchmarks.limits import Limits, measure_limits
from experiments.benchmarks.noise import new_run, tasks_of_noise
from experiments.benchmarks.timing import AT_ONCE, REST, Clock, Stopwatch, repeated
from experiments.common.options import EnvOptions
from permenv import Pretraining, StillImages, VideoClips

PARTS = ("draw and fetch", "cut and augment", "forward", "backward", "optimiser", REST)
"""Parts of an iteration: to draw the mini-batch and to fetch it from the data; to cut, augment and normalise pieces;
the network and its losses; their gradients; SGD and the averages of the weights; all else."""


@contextlib.contextmanager
def watching(run: Pretraining, watch: Stopwatch) -> Iterator[None]:
    """Let a stopwatch know which part of an iteration a run is in.

    Args:
        run: The run, which is as it was afterwards.
        watch: The stopwatch.
    """
    methods: list[tuple[object, str, str]] = [
        (run, "_draw_labels", "draw and fetch"),
        *((each, name, "draw and fetch") for each in run._minibatches.values() for name in ("_draw", "announce")),
        (StillImages, "take", "draw and fetch"),
        (VideoClips, "take", "draw and fetch"),
        *((task, name, "cut and augment") for task in run.tasks.values() for name in ("pieces", "shard_of_pieces")),
        (run.trainer, "_losses", "forward"),
        (torch.Tensor, "backward", "backward"),
        (run.trainer, "_descend", "optimiser"),
        (run.trainer, "_update_averages", "optimiser"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, part in methods:
            stack.enter_context(mock.patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        yield


def count_iteration(run: Pretraining) -> tuple[list[Operation], int]:
    """Count what an iteration computes.

    Args:
        run: The run; it trains for two iterations.

    Returns:
        The operations of the second, by part, with the memory of all tensors that the two have made; and its least
        bytes.
    """
    watch = Stopwatch(Clock(torch.device("cpu")))
    with watching(run, watch), Counter(lambda: watch.part) as counter:
        run.iterate()
        before = len(counter.operations)
        counter.forget_moves()
        run.iterate()
    return counter.operations[before:], counter.least_bytes


def time_iteration(run: Pretraining, repeats: int) -> tuple[float, dict[str, float]]:
    """Time an iteration.

    Args:
        run: The run, which trains.
        repeats: Blocks of `AT_ONCE` iterations that are timed whole, and iterations that are timed by part.

    Returns:
        The median of the seconds of those that are timed whole; and the seconds of each part, means over the middle
        half of the others, ordered by their sum, so that the parts sum to the mean of these.
    """
    clock = Clock(run.device)
    at_once = AT_ONCE[run.device.type]
    whole = statistics.median(clock.times(repeated(run.iterate, at_once), repeats)) / at_once
    watch = Stopwatch(clock)
    laps = []
    with watching(run, watch):
        watch.lap()
        for _ in range(repeats):
            run.iterate()
            laps.append(watch.lap())
    return whole, _middle(laps)


def measure(config: EnvOptions, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure an iteration by part, and its share of the roofline.

    Args:
        config: The options; the data are noise.
        device: Where to train.
        repeats: Timed repetitions.
    """
    run = new_run(config.env, tasks_of_noise(config.env, device, config.task))
    for _ in range(2):  # the first iterations make what is kept
        run.iterate()
    whole, seconds = time_iteration(run, repeats)
    operations, least_bytes = count_iteration(run)
    dtype = torch.bfloat16 if run.trainer.precision == "bf16" else torch.float32
    return {
        "task": config.task,
        "batch_size": config.env.batch_size,
        "precision": run.trainer.precision,
        "clock": Clock(device).name,
        "seconds": whole,
        "seconds_by_part": sum(seconds.values()),
        "parts": by_part(operations, seconds),
        "roofline": _roofline(measure_limits(device, dtype), operations, least_bytes, whole),
    }


def by_part(operations: Sequence[Operation], seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Sum operations up by part.

    Returns:
        By part "seconds", "operations", "flops" and "bytes".
    """
    found: dict[str, dict[str, float]] = {
        part: {"seconds": seconds.get(part, 0.0), "operations": 0, "flops": 0, "bytes": 0} for part in PARTS
    }
    for each in operations:
        own = found[each.part]
        own["operations"] += 1
        own["flops"] += each.flops
        own["bytes"] += each.bytes
    return found


def _roofline(limits: Limits, operations: Sequence[Operation], least_bytes: int, seconds: float) -> dict[str, float]:
    flops = sum(each.flops for each in operations)
    flop_seconds = flops / limits.flops_per_second
    byte_seconds = least_bytes / limits.bytes_per_second
    bound, operation_bound = max(flop_seconds, byte_seconds), limits.bound(operations)
    return {
        **limits.as_dict(),
        "flops": flops,
        "least_bytes": least_bytes,
        "flop_seconds": flop_seconds,
        "byte_seconds": byte_seconds,
        "bound_seconds": bound,
        "share": bound / seconds,
        "bound_seconds_by_operation": operation_bound,
        "share_by_operation": operation_bound / seconds,
    }


def _middle(laps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean seconds of each part over the middle half of the laps."""
    ordered = sorted(laps, key=lambda lap: sum(lap.values()))
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    sums: defaultdict[str, float] = defaultdict(float)
    for lap in middle:
        for part, seconds in lap.items():
            sums[part] += seconds / len(middle)
    return {part: sums[part] for part in PARTS}
