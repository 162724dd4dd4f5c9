"""A lock on a file. The operating system releases it when the process that holds it ends, also when it is killed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # errors of a file system that has none

log = logging.getLogger("permenv")


@contextmanager
def locked(path: Path, *, wait: bool = True, message: str | None = None) -> Iterator[bool]:
    """Hold the lock of a file inside a `with` block. Threads of a process exclude each other too.

    Args:
        path: The file. It is made if there is none, in a folder that exists, and it is not deleted afterwards: another
            process may have opened it already, to wait for its lock.
        wait: Wait while another process holds the lock.
        message: What is logged, as a warning, if it has to wait.

    Yields:
        Whether it holds the lock: False if the file system has none.

    Raises:
        BlockingIOError: If `wait` is False and another process holds the lock.
        OSError: If the file cannot be opened.
    """
    if fcntl is None:
        with _locked_on_windows(path, wait, message):
            yield True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        held = _acquire(descriptor, path, wait, message)
        try:
            yield held
        finally:
            if held:  # closing is not enough while a forked child has the file open as well
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, wait: bool, message: str | None) -> bool:
    """Lock an open file; False if the file system has no locks."""
    assert fcntl is not None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as fault:  # some file systems say the latter of a lock that is held
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(path)) from fault
            if message:
                log.warning(message)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as fault:
        if fault.errno in NO_LOCKS:
            return False
        raise
    return True


@contextmanager
def _locked_on_windows(path: Path, wait: bool, message: str | None) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as fault:
        if not wait:
            raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(path)) from fault
        if message:
            log.warning(message)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
