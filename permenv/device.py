"""Where a run computes: device, threads, and precision of the training iteration."""

from __future__ import annotations

import multiprocessing
import os

import torch

from permenv.config import ConfigurationError

_IMPORTED_BY = os.getpid()


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "auto" into the GPU if there is one, else the CPU.

    Raises:
        ConfigurationError: If the device is not known, or is a GPU that is not there, or whose driver was started
            before this process was forked.
    """
    if str(device) != "cpu" and torch.cuda._is_in_bad_fork():
        raise ConfigurationError(
            f"device={str(device)!r}: this process was forked from one that uses the GPU, which CUDA does not support; "
            f"start processes with vector_kwargs={{'context': 'spawn'}}, or use device='cpu'"
        )
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigurationError(f"unknown device {str(device)!r}; use 'auto', 'cpu' or 'cuda'")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {str(device)!r}; number GPUs as in 'cuda:0'") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ConfigurationError(f"device {device!r}: torch sees no GPU here; use device='auto' or 'cpu'")
        if chosen.index is not None and chosen.index >= count:
            raise ConfigurationError(f"device {device!r}: torch sees {count} GPUs here, the last is 'cuda:{count - 1}'")
    return chosen


def spare_threads() -> None:
    """Limit torch to one thread in a process that another process has started; elsewhere do nothing.

    By default each of several worker processes would start as many threads as there are cores; torch's DataLoader
    limits its workers in the same way. Set OMP_NUM_THREADS before processes are spawned to give them more threads. A
    forked process always gets one: OpenMP's threads do not survive a fork, and waiting for them would hang.
    """
    forked = os.getpid() != _IMPORTED_BY
    spawned = multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ
    if forked or spawned:
        torch.set_num_threads(1)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type of the training iteration's matrix products: for "auto" bf16 where the device has it in hardware."""
    if precision == "auto":
        if device.type == "cuda":
            with torch.cuda.device(device):  # the question is about the current one
                native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if native else "float32"
    return {"bf16": torch.bfloat16, "float32": torch.float32}[precision]
