"""Isolation from the caller's torch state: a run computes the same numbers whatever modes the process is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def default_torch_state() -> Iterator[None]:
    """Run a block, or a decorated function, in torch's default state; the caller's state is restored afterwards.

    Inside, gradients are recorded, inference mode and autocast are off, new tensors are float32 on the CPU, and
    float32 products are computed in float32 (no TF32, no bf16).

    Example:
        >>> with torch.no_grad(), default_torch_state():
        ...     torch.is_grad_enabled()
        True
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        stack.enter_context(_full_float32())
        yield


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Switch TF32 and bf16 products of float32 matrices off, through the API that the caller has used.

    torch has two of them, and raises an error where both are mixed.
    """
    try:
        matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller has set `fp32_precision`
        with contextlib.ExitStack() as stack:
            for setting in _precision_settings():
                stack.callback(setattr, setting, "fp32_precision", setting.fp32_precision)
                setting.fp32_precision = "ieee"
            yield
        return
    with contextlib.ExitStack() as stack:
        if matmul != "highest":
            stack.callback(torch.set_float32_matmul_precision, matmul)
            torch.set_float32_matmul_precision("highest")
        if cudnn:
            stack.callback(setattr, torch.backends.cudnn, "allow_tf32", cudnn)
            torch.backends.cudnn.allow_tf32 = False
        yield


def _precision_settings() -> list[Any]:
    backends: Any = torch.backends  # torch's stubs lack `fp32_precision`
    return [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]
