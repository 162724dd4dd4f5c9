"""How the benchmarks measure time."""

from __future__ import annotations

import contextlib
import itertools
import resource
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

AT_ONCE = {"cpu": 1, "cuda": 10}
"""Iterations that are timed as one: a GPU works on one while the next is prepared."""
REST = "rest"
"""The part of a `Stopwatch` that runs when no other does."""


def seconds_in_turn(
    rivals: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time rivals in turn, so that a slow moment of the machine affects all of them.

    Each runs once before it is timed. The order is reversed after every round, because the machine's speed drifts.

    Args:
        rivals: By name, what is timed.
        repeats: Times that each is timed.
        device: The device whose work is waited for.
        now: Returns the time.

    Returns:
        By rival, the seconds of each time, in the order in which they were measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for work in rivals.values():
        work()
    for repeat in range(repeats):
        for name in reversed(seconds) if repeat % 2 else seconds:
            wait_for(device)
            start = now()
            rivals[name]()
            wait_for(device)
            seconds[name].append(now() - start)
    return seconds


def medians_in_turn(
    rivals: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each rival, see `seconds_in_turn`."""
    return {name: statistics.median(each) for name, each in seconds_in_turn(rivals, repeats, device, now).items()}


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a function that does something several times."""

    def all_of_it() -> None:
        for _ in range(times):
            work()

    return all_of_it


@dataclass(frozen=True)
class Clock:
    """What seconds are read from.

    On a CPU with one thread these are CPU seconds: on a machine that does nothing else they are those of the clock, and
    they stay the same on one that does. Elsewhere they are those of the clock.

    Attributes:
        device: The device whose work is waited for before the clock is read.
    """

    device: torch.device

    @property
    def counts_cpu(self) -> bool:
        """Whether these are CPU seconds."""
        return self.device.type == "cpu" and torch.get_num_threads() == 1

    @property
    def name(self) -> str:
        """The clock in words, for a report."""
        return "CPU seconds of one thread" if self.counts_cpu else "seconds of the clock"

    def now(self) -> float:
        """Wait for the device and read the clock."""
        wait_for(self.device)
        return time.process_time() if self.counts_cpu else time.perf_counter()

    def median(self, work: Callable[[], object], seconds: float) -> float:
        """Return the median seconds of as many repetitions as take so many seconds, but at least three."""
        (first,) = self.times(work, 1)
        return statistics.median(self.times(work, max(3, int(seconds / max(first, seconds / 100)))))

    def times(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Return the seconds of each repetition, after one that is not timed."""
        work()
        marks = [self.now()]
        for _ in range(repeats):
            work()
            marks.append(self.now())
        return [after - before for before, after in itertools.pairwise(marks)]


class Stopwatch:
    """Divides time among parts of a program: every moment belongs to the part that was entered last.

    So the parts sum to the whole. The device is waited for wherever a part begins or ends.

    Attributes:
        seconds: By part, since the last `lap`.
        part: The part that runs.
    """

    def __init__(self, clock: Clock):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.part = REST
        self._clock = clock
        self._since = clock.now()

    def lap(self) -> dict[str, float]:
        """Return the seconds of each part since the last time, and begin again."""
        self._enter(self.part)
        found, self.seconds = dict(self.seconds), defaultdict(float)
        return found

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, as a part of the program."""

        def as_part(*args: Any, **kwargs: Any) -> Any:
            with self.running(part):
                return work(*args, **kwargs)

        return as_part

    @contextlib.contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Run a block as a part of the program."""
        before = self.part
        self._enter(part)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, part: str) -> None:
        now = self._clock.now()
        self.seconds[self.part] += now - self._since
        self.part, self._since = part, now


@dataclass(frozen=True)
class Process:
    """A process that has ended well.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Of it and of those that it started.
        output: What it wrote to its standard output.
    """

    seconds: float
    cpu_seconds: float
    output: str


def time_process(command: Sequence[str]) -> Process:
    """Run a command and time it.

    Raises:
        RuntimeError: If it fails; the message is the last line that it wrote.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command)} ended with code {result.returncode}: {last}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Process(seconds, cpu, result.stdout)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
