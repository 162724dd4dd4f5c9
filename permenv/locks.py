"""Locks between processes. The operating system releases those of a process that ends, also of one that is killed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system without locks answers, such as Lustre without its option flock or NFS without its lock service."""


@contextmanager
def locked(path: Path, busy: Callable[[], object], *, again: bool = False) -> Iterator[bool]:
    """Hold the lock of a file while the `with` block runs.

    Args:
        path: The file. It is made if need be, and stays: that it exists says nothing. Its folder exists.
        busy: Called if another process or thread holds the lock; what it raises passes through. If it returns, the lock
            is waited for.
        again: Whether the thread that holds it may lock it again.

    Yields:
        Whether the lock is held. It is not on a file system without locks, where nothing keeps other processes out.

    Raises:
        OSError: If the file cannot be opened.
    """
    import filelock  # where it is needed: starting is to be quick

    # preserved: else, where there are no locks, the file itself would be the lock, and outlive a process that is killed
    lock = filelock.FileLock(path, is_singleton=again, preserve_lock_file=True)
    held = True
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            busy()
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        held = False
    try:
        yield held
    finally:
        if held:
            lock.release()
