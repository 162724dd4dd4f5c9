"""One run trained by several processes, the ranks, of which each computes a share of every mini-batch and of X_val.

Every rank replays the whole run: the same environment, the same agent, the same draws. Only the network's work is
divided, so all that the ranks exchange are sums: of losses, gradients, batch statistics and scores. Code that needs
such a sum takes the ranks from `current()`. Before `start` is called this is one rank, and sums are returned unchanged.
So nothing changes in a process that was not started by torchrun, and neither environments nor agents know of ranks.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from permenv.config import Config, ConfigurationError

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a rank waits for the others: longer than one writes a checkpoint or pictures."""


class RankError(RuntimeError):
    """Another rank has ended or does not answer, or is not replaying the same run."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train one network, as one of them sees them; by default there is only this one.

    Every method is called by all ranks, in the same order. Of a single rank each returns what it was given.

    Attributes:
        rank: Number of this process, 0 to size - 1.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes all files."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """The part of `count` rows that this rank computes: they are divided in order, as evenly as possible."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, a new tensor, bitwise identical on all of them, without gradient.

        Raises:
            RankError: If another rank has ended or does not answer.
        """
        return tensor if self.size == 1 else self._sum(_copy(tensor))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a floating-point tensor over all ranks, see `total`."""
        return tensor if self.size == 1 else self.mean_(_copy(tensor))

    def mean_(self, tensor: Tensor) -> Tensor:
        """Replace a floating-point tensor, contiguous and without gradient, by its mean over all ranks.

        Returns:
            The tensor itself, bitwise identical on all ranks.

        Raises:
            RankError: If another rank has ended or does not answer.
        """
        return tensor if self.size == 1 else self._sum(tensor).div_(self.size)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, of which this rank has those that `shard` gave it.

        Args:
            rows: (rows of this rank, ...).

        Returns:
            (rows, ...), bitwise identical on all ranks: a sum in which all terms but one are 0.
        """
        if self.size == 1:
            return rows
        count = int(self.total(torch.tensor(len(rows), device=rows.device)))
        whole = rows.new_zeros(count, *rows.shape[1:])
        whole[self.shard(count)] = rows
        return self.total(whole)

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """The array that rank 0 has in this place; those of the others have the same shape and type."""
        if self.size == 1:
            return values
        found = torch.from_numpy(np.array(values, order="C"))
        with _rank_errors():
            dist.broadcast(found, src=0)
        return found.numpy()

    def require_same(self, what: str, value: object) -> None:
        """Check that all ranks have come to the same.

        Args:
            what: What `value` is, for the error.
            value: Anything with a `repr` that shows all of it.

        Raises:
            RankError: On each rank that has something else than rank 0.
        """
        if self.size == 1:
            return
        digest = np.array([zlib.crc32(repr(value).encode())])
        if not np.array_equal(self.broadcast(digest), digest):
            raise RankError(
                f"rank {self.rank} does not replay the run of rank 0, it has another {what}: give every rank the same "
                f"data and options, and let an agent draw from its own seeded generator only"
            )

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.total(torch.zeros(()))

    def require_shards(self, config: Config) -> None:
        """Check that a run can be divided: in equal shares of a mini-batch, so that a mean of means is the mean.

        Raises:
            ConfigurationError: If it cannot; the message names the remedy.
        """
        if config.batch_size % self.size:
            raise ConfigurationError(
                f"batch_size={config.batch_size} on {self.size} ranks: must be a multiple of their number; set "
                f"batch_size={self.size * (config.batch_size // self.size + 1)} or start fewer ranks"
            )
        if config.num_validation < self.size:
            raise ConfigurationError(
                f"num_validation={config.num_validation} on {self.size} ranks: each needs a sample; raise "
                f"num_validation or start fewer ranks"
            )

    def _sum(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over all ranks."""
        with _rank_errors():
            dist.all_reduce(tensor)
        return tensor


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


ALONE = Ranks()
_current = ALONE


def current() -> Ranks:
    """The ranks that this process has joined with `start`; else this process alone."""
    return _current


def start(device: torch.device, timeout: datetime.timedelta = TIMEOUT) -> Ranks:
    """Join the ranks that torchrun has started on this machine. Runs that are made from now on are divided among them.

    On GPUs the rank uses the one of its number; "cuda" without a number is that one from now on.

    Args:
        device: Where networks will live.
        timeout: How long to wait for another rank.

    Raises:
        ConfigurationError: If the device has a number, or there are fewer GPUs than ranks.
        RankError: If the ranks do not find each other.
    """
    global _current
    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        if device.index is not None:
            raise ConfigurationError(f"device={str(device)!r} for {count} ranks: each takes its own; use device='cuda'")
        if count > torch.cuda.device_count():
            raise ConfigurationError(
                f"{count} ranks, but {torch.cuda.device_count()} GPUs: start one rank a GPU, with --nproc-per-node, or "
                f"use device='cpu'"
            )
        torch.cuda.set_device(local)
    with _rank_errors():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    _current = Ranks(dist.get_rank(), dist.get_world_size())
    return _current


def stop() -> None:
    """Leave the ranks, when all are done."""
    global _current
    _current = ALONE
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _rank_errors() -> Iterator[None]:
    """Let what the backends raise in many forms be a RankError."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"the other ranks cannot be reached ({(str(error) or repr(error)).splitlines()[0]})") from error
