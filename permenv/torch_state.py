"""Isolation from the caller's torch state: a run computes the same numbers whatever modes the process is in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.backends import _FP32Precision


@contextlib.contextmanager
def default_torch_state() -> Iterator[None]:
    """Run a block, or a decorated function, in torch's default state; the caller's state is restored afterwards.

    Inside, gradients are recorded, inference mode, autocast and the detection of anomalies are off, new tensors are
    float32 on the CPU, and float32 products are computed in float32 (no TF32, no bf16). On a GPU cuDNN measures which
    algorithms are fastest (`torch.backends.cudnn.benchmark`). Some of this state belongs to the process and not to the
    thread, so runs in several threads of a process must not be moved at the same time.

    One setting of the caller's counts: after `torch.use_deterministic_algorithms(True)` cuDNN uses deterministic
    algorithms too, so that a run on a GPU repeats bit for bit. It is slower.

    Example:
        >>> with torch.no_grad(), default_torch_state():
        ...     torch.is_grad_enabled()
        True
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        stack.enter_context(_full_float32())
        stack.enter_context(_algorithms_of_cudnn())
        yield


@contextlib.contextmanager
def _algorithms_of_cudnn() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    with contextlib.ExitStack() as stack:
        for name, value in {"enabled": True, "benchmark": not deterministic, "deterministic": deterministic}.items():
            stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
            setattr(torch.backends.cudnn, name, value)
        yield


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Switch TF32 and bf16 products of float32 matrices off.

    torch has an older and a newer kind of settings, and raises where they are read and contradict each other, as
    `torch.backends.cudnn.flags` does. So both are set. The older ones set some of the newer: they are restored first.
    """
    matmul = _old_setting(torch.get_float32_matmul_precision)
    cudnn = _old_setting(lambda: torch.backends.cudnn.allow_tf32)
    with contextlib.ExitStack() as stack:
        for backend, value in _precision_settings():
            stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            backend.fp32_precision = value
        if matmul is not None:
            stack.callback(torch.set_float32_matmul_precision, matmul)
            torch.set_float32_matmul_precision("highest")
        if cudnn is not None:
            stack.callback(setattr, torch.backends.cudnn, "allow_tf32", cudnn)
            torch.backends.cudnn.allow_tf32 = False
        for backend, value in _precision_settings():
            backend.fp32_precision = value
        yield


def _old_setting(read: Callable[[], Any]) -> Any:
    """Read one of torch's older settings; None where it contradicts the newer ones already."""
    try:
        return read()
    except RuntimeError:
        return None


def _precision_settings() -> list[tuple[Any, str]]:
    """Float32 precisions, from general to particular: an unset one inherits, and must be restored as unset."""
    backends: Any = torch.backends  # torch's stubs lack `fp32_precision`
    general = [backends, backends.mkldnn, backends.cudnn]
    # not `cudnn.rnn`: before torch 2.11 moving an LSTM to a GPU puts a module without this setting in its place
    particular = [
        _FP32Precision(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")
    ]
    return [*((each, "none") for each in general), *((each, "ieee") for each in particular)]
