"""Images read from a store by their numbers: exact random access, in threads, and ahead of time.

Reading ahead changes no pixel and no draw: batches that were announced are decoded early, and found again by the
numbers of their images. Whoever asks for other images gets those.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from permenv.data.messages import DataError
from permenv.data.shards import Shard
from permenv.data.store import Source, Store

DECODERS = 5  # threads at most: on five cores they decode about 10,000 images of 255 pixels a second
CHUNK = 16  # images that a thread decodes at a time
READ_AHEAD = 4  # batches
MOST_AHEAD = 2 * READ_AHEAD  # batches that are kept for whoever announced them; then the oldest is dropped


class StoredImages:
    """Images of a store as a read-only array (N, S, S, 3) uint8 that is not in memory.

    An image is checked against its checksum when it is read for the first time. If it is damaged, its shard is made
    again from the files. Reading takes an integer, a slice, a mask or an array of integers, and gives arrays in memory.

    Args:
        store: An open store.
        used: (n,) bool, which of its items; N is the number of their images.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, store: Store, used: np.ndarray):
        self._store, self._used = store, used
        counts = [len(shard.index.ends) for shard in store.shards]
        of_used = np.repeat(used, store.counts)
        self._shards = np.repeat(np.arange(len(counts)), counts)[of_used]
        self._places = np.concatenate([np.arange(count) for count in counts])[of_used]  # in their shards
        self._checked = np.zeros(len(self._places), dtype=bool)
        self._begin_process()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3)."""
        return (len(self), self._store.source.size, self._store.source.size, 3)

    @property
    def source(self) -> Source:
        """Where the images come from."""
        return self._store.source

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return len(self) * self._store.source.size**2 * 3

    @property
    def read_ahead(self) -> int:
        """How many batches it is worth announcing: none where nothing is to be decoded."""
        return READ_AHEAD if self._store.jpeg else 0

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, int | np.integer):
            return self.read(np.array([key])).numpy()[0]
        if isinstance(key, slice):
            return self.read(np.arange(*key.indices(len(self)))).numpy()
        numbers = np.asarray(key)
        return self.read(np.flatnonzero(numbers) if numbers.dtype == bool else numbers).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the images are not in memory: a copy is needed")
        return self[:].astype(dtype or self.dtype, copy=False)

    def announce(self, numbers: np.ndarray, pinned: bool = False) -> None:
        """Decode a batch ahead of time, see `read`; nothing happens if that is going on already."""
        with self._lock():
            key = (pinned, numbers.tobytes())
            if key not in self._ahead:
                self._ahead[key] = self._begin(numbers, pinned)
            while len(self._ahead) > MOST_AHEAD:
                self._ahead.popitem(last=False)[1].cancel()

    def read(self, numbers: np.ndarray, pinned: bool = False) -> torch.Tensor:
        """Read images.

        Args:
            numbers: (B,) integers from -N to N - 1, in any order, repeats allowed.
            pinned: Read them into pinned memory, from which they are copied to a GPU while it computes.

        Returns:
            (B, S, S, 3) uint8, in memory.

        Raises:
            IndexError: If a number lies outside.
            DataError: If an image is damaged and cannot be made again.
        """
        with self._lock():
            batch = self._ahead.pop((pinned, numbers.tobytes()), None)
        return (batch or self._begin(numbers, pinned)).wait()

    def _begin(self, numbers: np.ndarray, pinned: bool) -> _Batch:
        """Begin to read a batch; raw images are read at once."""
        if np.any(numbers < -len(self)) or np.any(numbers >= len(self)):
            raise IndexError(f"an image lies outside the set: images go from 0 to {len(self) - 1}")
        images = torch.empty((len(numbers), *self.shape[1:]), dtype=torch.uint8, device="cpu", pin_memory=pinned)
        pixels = images.numpy()
        if not self._store.jpeg:
            self._fill(pixels, numbers)
            return _Batch(images, [])
        pool = _pool(os.getpid())
        starts = range(0, len(numbers), CHUNK)
        return _Batch(
            images,
            [
                pool.submit(self._fill, pixels[start : start + CHUNK], numbers[start : start + CHUNK])
                for start in starts
            ],
        )

    def _fill(self, pixels: np.ndarray, numbers: np.ndarray) -> None:
        """Read images into (B, S, S, 3) uint8."""
        self._check(numbers[~self._checked[numbers]])
        shards, rows = self._shards[numbers].tolist(), self._places[numbers].tolist()
        opened = {which: self._store.shards[which] for which in set(shards)}
        if self._store.jpeg:
            for image, which, row in zip(pixels, shards, rows, strict=True):
                _decode(opened[which].image(row), image)
            return
        raw = {which: shard.content.reshape(-1, *self.shape[1:]) for which, shard in opened.items()}
        for place, (which, row) in enumerate(zip(shards, rows, strict=True)):
            pixels[place] = raw[which][row]

    def _check(self, numbers: np.ndarray) -> None:
        """Compare images with their checksums; make their shards again if they are damaged."""
        for number in numbers.tolist():
            which = int(self._shards[number])
            shard = self._store.shards[which]
            if not shard.is_intact(int(self._places[number])):
                self._repair(which, shard)
            self._checked[number] = True

    def _repair(self, which: int, shard: Shard) -> None:
        """Make a shard again unless another thread has done so."""
        with self._repairing:
            if self._store.shards[which] is shard:
                self._store.repair(shard)

    def _begin_process(self) -> None:
        """Begin without anything that is read ahead."""
        self._process = os.getpid()
        self._ahead: OrderedDict[tuple[bool, bytes], _Batch] = OrderedDict()
        self._guard, self._repairing = threading.Lock(), threading.Lock()

    def _lock(self) -> threading.Lock:
        """The lock of what is read ahead. A forked process begins anew: its parent's threads are not there."""
        if self._process != os.getpid():
            self._begin_process()
        return self._guard

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredImages, (self._store, self._used)


class _Batch:
    """Images that threads are reading."""

    def __init__(self, images: torch.Tensor, parts: Sequence[Future[None]]):
        self._images, self._parts = images, parts

    def wait(self) -> torch.Tensor:
        """Return the images, (B, S, S, 3) uint8, when all are there."""
        for part in self._parts:
            part.result()
        return self._images

    def cancel(self) -> None:
        """Read no more than has begun."""
        for part in self._parts:
            part.cancel()


def _decode(content: memoryview, image: np.ndarray) -> None:
    """Decode a kept JPEG into (S, S, 3) uint8."""
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    if (height, width) != image.shape[:2]:
        raise DataError(f"an image of the store is {height} × {width} instead of {image.shape[0]}; delete the store")
    simplejpeg.decode_jpeg(content, "RGB", buffer=image)


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The decoding threads of a process."""
    cores = len(os.sched_getaffinity(process)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(DECODERS, cores), thread_name_prefix="permenv-decode")
