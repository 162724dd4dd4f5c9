"""The datasets of the environment: square still images, and video clips made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch

_ON_DEVICES: WeakValueDictionary[tuple[str, tuple[int, ...], str], torch.Tensor] = WeakValueDictionary()
"""By fingerprint, shape and device, pixels that were moved there and are in use."""
COPY_BYTES = 64 * 2**20  # a memory map is copied to a device in pieces of this size


class Stored(Protocol):
    """Images that are read from a disk when they are needed, see `permenv.data.stored.StoredImages`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, 3)."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""

    @property
    def read_ahead(self) -> int:
        """How many batches it is worth announcing."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> np.ndarray: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...

    def announce(self, numbers: np.ndarray, pinned: bool = False) -> None:
        """Read a batch ahead of time."""

    def read(self, numbers: np.ndarray, pinned: bool = False) -> torch.Tensor:
        """Read a batch."""


@dataclass(frozen=True, eq=False)
class StillImages:
    """A set of square still images, X in the paper's section 3.

    A set is immutable. `copy.deepcopy` returns the set itself, so that a copied specification of an environment
    shares the pixels. A set of files that `to` has moved is pickled as what it was before, and moved again when it is
    unpickled.

    Args:
        pixels: (N, S, S, 3) uint8 RGB; a tensor, a read-only array such as a memory map of a file, or what is
            read from the cache when it is indexed; `np.asarray` reads all.
        labels: (N,) int64 indices into `classes`, -1 = unlabelled; None where nothing is labelled.
            They are for evaluation only and never used in training.
        classes: The classes' names; the index is the label.
        name: Name of the set in logs.
        fingerprint: Digest of the content; equal fingerprints mean equal images in equal order, if they were decoded by
            the same versions of the libraries.
        skipped: (relative path or item, reason) of everything that was found but is not used.

    Attributes:
        moved_from: Of a set that `to` has moved to a GPU, the set whose pixels are in files; else None.
    """

    pixels: torch.Tensor | np.ndarray | Stored
    labels: np.ndarray | None
    classes: tuple[str, ...]
    name: str
    fingerprint: str
    skipped: tuple[tuple[str, str], ...] = ()
    moved_from: StillImages | None = field(default=None, init=False, repr=False)  # a set with other pixels has none

    def __len__(self) -> int:
        return len(self.pixels)

    def __deepcopy__(self, memo: dict[int, Any]) -> StillImages:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.moved_from is None or not isinstance(self.pixels, torch.Tensor):
            return super().__reduce_ex__(protocol)
        return StillImages.to, (self.moved_from, self.pixels.device)

    @property
    def size(self) -> int:
        """Side S of the images in pixels."""
        return int(self.pixels.shape[1])

    def take(self, indices: np.ndarray, device: torch.device) -> torch.Tensor:
        """Gather images onto a device.

        Args:
            indices: (B,) integers in [0, N), in any order, repeats allowed.
            device: Device of the result.

        Returns:
            A copy, (B, S, S, 3) uint8 on `device`.

        Raises:
            IndexError: If an index lies outside the set.
        """
        indices = np.ascontiguousarray(indices, np.int64)  # torch reads uint8 as a mask and refuses reversed views
        # numpy would count from the end, and a GPU's context would end
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"an index lies outside the set: indices go from 0 to {len(self) - 1}")
        if isinstance(self.pixels, torch.Tensor):
            rows = torch.from_numpy(indices).to(self.pixels.device, non_blocking=True)
            return self.pixels.index_select(0, rows).to(device)
        on_gpu = device.type == "cuda"  # from pinned memory the copy overlaps with computation
        if not isinstance(self.pixels, np.ndarray):
            return self.pixels.read(indices, on_gpu).to(device, non_blocking=on_gpu)
        images = torch.from_numpy(np.asarray(self.pixels[indices]))
        return images.pin_memory().to(device, non_blocking=True) if on_gpu else images.to(device)

    @property
    def read_ahead(self) -> int:
        """How many batches it is worth announcing: none where the pixels are in memory, or need not be decoded."""
        return 0 if isinstance(self.pixels, torch.Tensor | np.ndarray) else self.pixels.read_ahead

    def announce(self, indices: np.ndarray, device: torch.device) -> None:
        """Begin to read a batch that `take` will be asked for, with the same arguments. No result depends on it."""
        if self.read_ahead and not isinstance(self.pixels, torch.Tensor | np.ndarray):
            self.pixels.announce(np.ascontiguousarray(indices, np.int64), device.type == "cuda")

    def to(self, device: torch.device) -> StillImages:
        """Move the pixels to a GPU if they fit into half of its free memory.

        Otherwise they stay where they are, and `take` reads from there. On a CPU a memory map is never copied: the
        system keeps the file in memory while there is room. Sets of the same content share their pixels on a GPU, as
        those of several environments in one process.

        Returns:
            The same set with its pixels as a tensor on `device`, or this set unchanged.
        """
        if device.type == "cuda" and device.index is None:  # by one name, so that pixels are there once
            device = torch.device("cuda", torch.cuda.current_device())
        if isinstance(self.pixels, torch.Tensor):
            if self.pixels.device == device:
                return self
        elif device.type == "cpu":
            return self
        key = self.fingerprint, tuple(self.pixels.shape), str(device)
        there = _ON_DEVICES.get(key)
        if there is None:
            if self.pixels.nbytes > free_bytes(device) // 2:
                return self
            pixels = self.pixels
            there = pixels.to(device) if isinstance(pixels, torch.Tensor) else _copy_to(pixels, device)
            _ON_DEVICES[key] = there
        moved = replace(self, pixels=there)
        origin = self.moved_from if isinstance(self.pixels, torch.Tensor) else self
        object.__setattr__(moved, "moved_from", origin)  # the set is frozen
        return moved


@dataclass(frozen=True, eq=False)
class VideoClips:
    """A set of video clips, each a sequence of square frames.

    A set is immutable, see `StillImages`.

    Args:
        frames: The frames of all clips, one clip after the other, each in temporal order. A frame has the label of
            its clip; name, fingerprint and skipped files are those of the set.
        starts: (V + 1,) int64: clip v has the frames `starts[v]` to `starts[v + 1] - 1`.
        names: (V,) names of the clips: for files, the path relative to the folder.
        irregular: (relative path, remark) of every clip that is used although frames are missing.
    """

    frames: StillImages
    starts: np.ndarray
    names: tuple[str, ...]
    irregular: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __deepcopy__(self, memo: dict[int, Any]) -> VideoClips:
        return self

    @property
    def name(self) -> str:
        """Name of the set in logs."""
        return self.frames.name

    @property
    def fingerprint(self) -> str:
        """Digest of the content, see `StillImages`."""
        return self.frames.fingerprint

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(relative path or item, reason) of everything that was found but could not be used."""
        return self.frames.skipped

    @property
    def lengths(self) -> np.ndarray:
        """(V,) int64, frames of each clip."""
        return np.diff(self.starts)

    def take(self, clips: np.ndarray, positions: np.ndarray, device: torch.device) -> torch.Tensor:
        """Gather frames onto a device.

        Args:
            clips: (B,) integers in [0, V), repeats allowed.
            positions: (B, n) integers, the frames of each clip, in [0, length of the clip), in any order.
            device: Device of the result.

        Returns:
            A copy, (B, n, S, S, 3) uint8 on `device`.

        Raises:
            IndexError: If a clip or a position lies outside.
        """
        if np.any(clips < 0):  # numpy would count from the end
            raise IndexError(f"a clip lies outside the set: clips go from 0 to {len(self) - 1}")
        if np.any(positions < 0) or np.any(positions >= self.lengths[clips][:, None]):
            raise IndexError("a position lies outside its clip: positions go from 0 to the clip's length - 1")
        rows = self.starts[clips][:, None] + positions
        return self.frames.take(rows.reshape(-1), device).unflatten(0, rows.shape)

    def to(self, device: torch.device) -> VideoClips:
        """Move the frames to a device if they fit, see `StillImages.to`."""
        return replace(self, frames=self.frames.to(device))


def _copy_to(pixels: np.ndarray | Stored, device: torch.device) -> torch.Tensor:
    """Copy pixels piece by piece, so that host memory never holds all of it."""
    copy = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    rows = max(1, COPY_BYTES * len(pixels) // pixels.nbytes)
    for start in range(0, len(pixels), rows):
        copy[start : start + rows] = torch.from_numpy(np.array(pixels[start : start + rows]))
    return copy


def free_bytes(device: torch.device) -> int:
    """Free memory of a device in bytes; 0 if the system does not report it, so that nothing fits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:  # not Linux
        return 0
    available = re.search(r"^MemAvailable: *(\d+) kB", meminfo, re.MULTILINE)
    return 1024 * int(available[1]) if available else 0
