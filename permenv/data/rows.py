"""Rows of an entry of the cache, each checked when it is read for the first time, see `permenv.data.cache`."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from permenv.data.messages import DataError

Opened = tuple[np.ndarray, np.ndarray]
"""(N, *row) uint8, a memory map, and (N,) uint32, the checksums that its rows had when they were written."""


class CachedRows:
    """Rows as a read-only array (N, *row) uint8 that is not in memory.

    Reading takes an integer, a slice, a mask or an array of integers, and gives arrays. A row is checked against its
    checksum when it is read for the first time. If it is damaged, the entry is made again.

    Args:
        name: Of the entry, for errors.
        opened: Its rows and their checksums.
        again: Opens the entry after it has been checked as a whole, and made again if need be.
        pickled: What this is pickled as: a function and its arguments.
    """

    dtype = np.dtype(np.uint8)
    read_ahead = 0  # nothing is to be decoded

    def __init__(self, name: str, opened: Opened, again: Callable[[], Opened], pickled: tuple[Any, ...]):
        self._name, self._again, self._pickled = name, again, pickled
        self._rows, self._checksums = opened
        self._numbers, self._checked = np.arange(len(self._rows)), np.zeros(len(self._rows), dtype=bool)
        self._repairing = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *row)."""
        return self._rows.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._rows.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._rows.nbytes

    def __getitem__(self, key: Any) -> np.ndarray:
        numbers = np.atleast_1d(self._numbers[key])
        for number in numbers[~self._checked[numbers]].tolist():
            if not self._is_intact(number):
                self._repair(number)
            self._checked[number] = True
        return self._rows[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        rows = self[:].astype(dtype or self.dtype, copy=False)
        return rows.copy() if copy else rows

    def announce(self, numbers: np.ndarray, pinned: bool = False) -> None:
        """Do nothing: nothing is to be decoded."""

    def read(self, numbers: np.ndarray, pinned: bool = False) -> torch.Tensor:
        """Read rows.

        Args:
            numbers: (B,) integers from -N to N - 1, in any order, repeats allowed.
            pinned: Read them into pinned memory, from which they are copied to a GPU while it computes.

        Returns:
            (B, *row) uint8, in memory.

        Raises:
            IndexError: If a number lies outside.
            DataError: If a row is damaged and cannot be made again.
        """
        rows = torch.from_numpy(self[numbers])
        return rows.pin_memory() if pinned else rows

    def _is_intact(self, number: int) -> bool:
        return zlib.crc32(self._rows[number].data) == self._checksums[number]

    def _repair(self, number: int) -> None:
        """Open the entry again, unless another thread has done so."""
        with self._repairing:
            if self._is_intact(number):
                return
            rows, checksums = self._again()
            if not np.array_equal(checksums, self._checksums):
                raise DataError(f"{self._name} was damaged, and cannot be made again as it was; start again")
            self._rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled
