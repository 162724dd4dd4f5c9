"""What a setting needs of the memory, estimated before any work.

The estimate is a lower bound: it counts what is in memory at one time for certain. So a setting that it refuses cannot
run, while one that it lets pass may still be too large. `tests/permenv/test_memory.py` compares it with measured runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from permenv.config import PRESETS, Config, ConfigurationError
from permenv.data.cache import cache_folder
from permenv.device import resolve_precision
from permenv.distributed import current
from permenv.networks import BACKBONES
from permenv.registry import parts_of
from permenv.tasks import ImageTask, SpatialTask, Task, TemporalTask
from permenv.torch_state import default_torch_state

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Attributes:
        name: What it is, in words.
        size: Bytes.
        settings: The fields of `Config` that decide its size.
    """

    name: str
    size: int
    settings: tuple[str, ...]


def check_memory(task: str, config: Config, device: torch.device, data: Mapping[str, Any]) -> None:
    """Refuse a setting that cannot fit into this machine.

    Args:
        task: A name in `registered_tasks()`.
        config: All numbers of the run.
        device: Where the network lives.
        data: By data keyword, what was passed; None or absent for the embedded data.

    Raises:
        ConfigurationError: If it needs more memory than there is, or the embedded data fit neither the disk of the
            cache nor the memory. The message names the estimate, what takes most of it, and what to lower.
    """
    own = current()  # of several ranks, each holds its shard
    shard = dataclasses.replace(
        config,
        batch_size=max(1, config.batch_size // own.size),
        samples_per_action=1,
        num_validation=max(1, config.num_validation // own.size),
    )
    _require(
        estimate(task, shard, device), _memory_of(device), config, "memory" if device.type == "cpu" else "GPU memory"
    )
    room = max(_memory_of(torch.device("cpu")), _disk_of_cache())
    for part in parts_of(task):
        if data.get(part.data_keyword) is None:
            _require(_rendered(part, config), room, config, "disk space in the cache")


def estimate(task: str, config: Config, device: torch.device) -> list[Part]:
    """Estimate the memory that a run needs, apart from its data.

    What a backbone, a head or a task of the user's own needs is left out.

    Args:
        task: A name in `registered_tasks()`.
        config: All numbers of the run.
        device: Where the network lives.

    Returns:
        What is in memory at one time: what a run keeps, and the largest of what it needs in turn.
    """
    parts, trunk = parts_of(task), _trunk_of(config)
    number = _FLOAT if resolve_precision(config.precision, device) == torch.float32 else 2  # bytes of an activation
    weights = trunk.parameters + sum(_head_parameters(part, config, trunk.features) for part in parts)
    copies = 4 if config.ema_decay else 3  # gradients, momentum and averages are as large as the weights
    heads = tuple(setting for part in parts for setting in _head_of(part))
    kept, pieces, cut, predictions = 0, 0, 0, 0
    for part in parts:
        count = part.count_pieces(config)
        pixels = 3 * config.piece_size**2 if issubclass(part, ImageTask) else 0
        pieces += count * (_FLOAT * pixels + number * trunk.activations)
        source = 3 * (config.image_size**2 if issubclass(part, SpatialTask) else 0)
        kept += config.num_validation * count * _FLOAT * pixels
        cut += config.num_validation * (count * pixels + source)
        predictions += config.num_permutations * config.num_validation
    sizes = ("piece_size", *(name for part in parts for name in _pieces_of(part)))
    in_turn = [
        Part("the activations of a mini-batch", config.batch_size * pieces, ("batch_size", *sizes)),
        Part("the images of X_val, before they are normalised", cut, ("num_validation", *sizes)),
        Part("the scores of all permutations", 3 * _FLOAT * predictions, ("num_permutations", "num_validation")),
    ]
    return [
        Part("the weights, their gradients, momentum and averages", copies * _FLOAT * weights, heads),
        Part("the pieces of X_val", kept, ("num_validation", *sizes)),
        Part("the matrix s", (_FLOAT + 1) * predictions, ("num_permutations", "num_validation")),
        max(in_turn, key=lambda part: part.size),
    ]


def _rendered(part: type[Task], config: Config) -> list[Part]:
    """The embedded data that a task loads."""
    load = part.load.__func__  # type: ignore[attr-defined]  # of whatever subclass
    if load is SpatialTask.load.__func__:  # type: ignore[attr-defined]
        size = config.num_scenes * 3 * config.image_size**2
        return [Part("the embedded scenes", size, ("num_scenes", "cell_size", "grid"))]
    if load is TemporalTask.load.__func__:  # type: ignore[attr-defined]
        size = config.num_clips * config.clip_frames * 3 * config.frame_size**2
        return [Part("the embedded clips", size, ("num_clips", "clip_frames", "piece_size"))]
    return []


def _require(parts: Sequence[Part], available: int, config: Config, what: str) -> None:
    needed = sum(part.size for part in parts)
    if needed <= available:
        return
    largest = max(parts, key=lambda part: part.size)
    usual = PRESETS["paper"]
    settings = sorted(largest.settings, key=lambda name: getattr(config, name) / getattr(usual, name), reverse=True)
    first, *others = (f"{name}={getattr(config, name)}" for name in settings)
    raise ConfigurationError(
        f"these settings need at least {_gigabytes(needed)} of {what}, but there are {_gigabytes(available)}. Most of "
        f"it, {_gigabytes(largest.size)}, is for {largest.name}: lower {first}, or {', '.join(others)}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size > 1e11 else f"{size / 1e9:.3g} GB"


# The network


@dataclass(frozen=True)
class _Trunk:
    """A trunk in numbers: its parameters, the features of a piece, and the activations of a piece that are kept."""

    parameters: int = 0
    features: int = 0
    activations: int = 0


def _trunk_of(config: Config) -> _Trunk:
    backbone = config.backbone
    known = isinstance(backbone, str) and backbone in BACKBONES
    return _trace(str(backbone), config.piece_size) if known else _Trunk()


@functools.lru_cache(maxsize=32)
def _trace(backbone: str, side: int) -> _Trunk:
    """Follow a piece of this side through the layers of a trunk."""
    # not with torch's meta tensors, which import its compiler: that takes seconds
    with default_torch_state(), torch.random.fork_rng(devices=[]):
        trunk = BACKBONES[backbone]()
    channels, kept = 3, 0
    for layer in trunk.children():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            size, stride, padding = (_first(each) for each in (layer.kernel_size, layer.stride, layer.padding))
            side = (side + 2 * padding - size) // stride + 1
            if side < 1:  # too small a piece, which `build_network` refuses
                return _Trunk()
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if not isinstance(layer, nn.ReLU):  # which works in place
            kept += channels * side**2
    return _Trunk(sum(parameter.numel() for parameter in trunk.parameters()), channels * side**2, kept)


def _first(number: Any) -> int:
    """Of a square layer's two equal numbers the first, where it has two."""
    return number[0] if isinstance(number, tuple) else number


def _pieces_of(part: type[Task]) -> tuple[str, ...]:
    """The fields of `Config` that decide how many pieces a sample has, and how large it is."""
    if issubclass(part, SpatialTask):
        return ("grid", "cell_size")
    return ("num_frames",) if issubclass(part, TemporalTask) else ()


def _head_of(part: type[Task]) -> tuple[str, ...]:
    """The fields of `Config` that decide a head's size."""
    if part.head is Task.head:
        return ("fc6", "fc7", "num_permutations", "grid")
    return ("temporal_fc6", "lstm", "num_permutations") if part.head is TemporalTask.head else ()


def _head_parameters(part: type[Task], config: Config, features: int) -> int:
    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    if part.head is Task.head:
        stacked = part.count_pieces(config) * config.fc6
        hidden = linear(features, config.fc6) + linear(stacked, config.fc7)
        return hidden + linear(config.fc7, config.num_permutations)
    if part.head is TemporalTask.head:
        gates = 4 * config.lstm
        recurrent = linear(config.temporal_fc6, gates) + linear(config.lstm, gates)
        return linear(features, config.temporal_fc6) + recurrent + linear(config.lstm, config.num_permutations)
    return 0


# The machine


def _memory_of(device: torch.device) -> int:
    """Memory of a device in bytes, in use or not; of a host the limit of its container, if there is one."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if not hasattr(os, "sysconf"):  # Windows
        return 2**63
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # no limit, or no such system
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _disk_of_cache() -> int:
    """Size in bytes of the disk on which the cache is, or will be."""
    folder = cache_folder()
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):  # it is not there, or must not be seen
            return shutil.disk_usage(place).total
    return 0
