"""What the tests of data share: files that cannot be opened, folders out of reach, threads that are counted."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def fail_to_open(patch: pytest.MonkeyPatch, name: str, fault: OSError) -> None:
    """Let every attempt to open a file of this name fail; the super-user of a container may read all files."""
    opened = os.open

    def open_others(path, *args, **options):
        if Path(path).name == name:
            raise fault
        return opened(path, *args, **options)

    patch.setattr(os, "open", open_others)


def fail_to_reach(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let everything below a folder be out of reach, as if the folder belonged to another user."""
    for name in ("stat", "lstat", "mkdir", "open", "statvfs"):
        patch.setattr(os, name, _refusing(getattr(os, name), folder))


def _refusing(function: Any, folder: Path) -> Any:
    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(path, int) and folder in Path(os.fsdecode(path)).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *args, **options)

    return refuse


class Crowd:
    """Counts the threads that are at a place at a time; there they wait until `size` have come."""

    def __init__(self, size: int):
        self.most, self.all = 0, 0
        self._now, self._lock, self._barrier = 0, threading.Lock(), threading.Barrier(size, timeout=60)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be at the place."""
        with self._lock:
            self._now += 1
            self.all += 1
            self.most = max(self.most, self._now)
        self._barrier.wait()
        yield
        with self._lock:
            self._now -= 1
