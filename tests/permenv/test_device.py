"""Devices and precisions by name, and errors about those that are not there."""

import pytest
import torch

from permenv import ConfigurationError
from permenv.device import resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_devices_and_precisions():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    assert resolve_precision("float32", CPU) == torch.float32
    with pytest.raises(ConfigurationError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no GPU"):
            resolve_device("cuda")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(ConfigurationError, match="sees 2 GPUs here, the last is 'cuda:1'"):
        resolve_device("cuda:2")
