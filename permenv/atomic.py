"""Files that are written whole or not at all, also by a process that is killed.

A file is written beside its target and renamed into place. It is locked meanwhile, so that what a killed process has
left can be told from what another is still writing.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TRIES = 100  # to make a temporary file that no other process locks; one or two are enough


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, atomically; see `written`.

    Args:
        path: The file.
        content: What it is to hold.

    Raises:
        OSError: If the file cannot be written; a file of that name is then as it was.
    """
    with written(path) as file:
        file.write(content)


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is there, whole, when the `with` block ends without an exception.

    What an earlier write that was killed left beside it is removed, except on Windows.

    Args:
        path: The file; its folder is made if need be, a file of that name is replaced.

    Yields:
        The file, which has another name until then.

    Raises:
        OSError: If the file cannot be written; a file of that name is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary, file = _open_temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":  # while it is locked; elsewhere an open file cannot be renamed
                temporary.replace(path)
        if os.name != "posix":
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the file is there; some file systems cannot flush a folder
        _flush_to_disk(path.parent)


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Make a temporary file beside a path, and lock it.

    Until it is locked, another write to this path takes it for a leftover and may delete it: then make another one.

    Raises:
        OSError: If the file cannot be made, or others lock each of them.
    """
    for _ in range(_TRIES):
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        file = temporary.open("xb")
        try:
            _lock(file)
        except BlockingIOError:  # the other is about to delete it
            pass
        except OSError:  # a file system without locks, where nothing is deleted
            return temporary, file
        else:
            if temporary.exists():
                return temporary, file
        file.close()
        temporary.unlink(missing_ok=True)
    raise BlockingIOError(errno.EWOULDBLOCK, "other processes lock each temporary file beside it", str(path))


def _remove_leftovers(path: Path) -> None:
    """Delete the temporary files of writes to this path that were killed."""
    if fcntl is None:  # nothing tells them from what another process is still writing
        return
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            _lock(file)  # fails where a living process is still writing
            leftover.unlink()


def _lock(file: BinaryIO) -> None:
    """Lock a file until it is closed or the process ends.

    A lock of `permenv.locks` is on a name, under which it makes a file that stays. This one is on an open file, which
    is renamed.

    Raises:
        OSError: If another process has locked it, or the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
