"""What a device can do at most: its rate of matrix products, its bandwidth, and the least time of an operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from experiments.benchmarks.counting import Operation
from experiments.benchmarks.timing import Clock
from permenv.torch_state import default_torch_state

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
_COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes: more than a cache holds
_SMALL, _OPERATIONS = 64, 500


@dataclass(frozen=True)
class Limits:
    """The rates of a device.

    Attributes:
        flops_per_second: Of a large matrix product in the precision of training.
        bytes_per_second: Read and written by a copy within the device's memory.
        seconds_per_operation: Of an operation on a few numbers, which is what it takes to start one.
    """

    flops_per_second: float
    bytes_per_second: float
    seconds_per_operation: float

    def bound(self, operations: Sequence[Operation]) -> float:
        """Return the least seconds of operations one after the other.

        Each takes as long as its FLOPs, as what it moves, or as its start, whichever is longest.
        """
        return sum(
            max(
                each.flops / self.flops_per_second,
                each.bytes / self.bytes_per_second,
                self.seconds_per_operation,
            )
            for each in operations
        )

    def as_dict(self) -> dict[str, float]:
        """Return the three rates."""
        return dataclasses.asdict(self)


@default_torch_state()
@torch.no_grad()
def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure a device; takes a second or two.

    Args:
        device: The device.
        dtype: The precision of training.
    """
    clock = Clock(device)
    side = _SIDE[device.type]
    # random: on a GPU products of constants may be faster
    matrix = torch.randn(side, side, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)
    product = torch.empty_like(matrix)
    source = torch.ones(_COPIED[device.type] // 4, device=device)
    copy = torch.empty_like(source)
    few = torch.ones(_SMALL, device=device)

    def start_many() -> None:
        for _ in range(_OPERATIONS):
            few.add_(1)

    return Limits(
        flops_per_second=2 * side**3 / _least(clock, lambda: torch.mm(matrix, matrix, out=product)),
        bytes_per_second=2 * source.nbytes / _least(clock, lambda: copy.copy_(source)),
        seconds_per_operation=_least(clock, start_many) / _OPERATIONS,
    )


def _least(clock: Clock, work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some repetitions: what the device can do."""
    return min(clock.times(work, 5))
