"""Tools for folders of files of any kind: finding, opening, labelling and identifying files.

Every file of a data set or of the cache is opened here, and only if it is a regular one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from permenv.data.messages import DataError, log, printable

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_EXTENSIONS = (".avi", ".mp4", ".mkv", ".webm", ".gif", ".mov", ".mpg", ".mpeg", ".m4v")
UNLABELLED = -1
DIGEST_BYTES = 16
UNSETTLED = 2 * 10**9  # ns; within that of its last change a file may change again and still have the same time
UNKNOWN_TIME = -1  # of a file that cannot be reached
NAMED_IN_LOG = 5  # names in a warning; the others are counted


def data_folder(given: str | Path, kind: str, expected: str) -> Path:
    """Check the folder of a data set.

    Args:
        given: Its path; a leading ~ is the user's home.
        kind: What it contains, for the message.
        expected: The end of the message.

    Raises:
        DataError: If it is missing, is a file or cannot be listed, or the path is empty or invalid.
    """
    if given == "":  # to `Path` it is the current folder
        raise DataError(f"the {kind} folder is an empty path; pass '.' for the current folder; {expected}")
    try:
        folder = Path(given).expanduser()
        os.scandir(folder).close()
    except (OSError, RuntimeError, ValueError) as fault:  # the others: ~ of an unknown user, a zero byte
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise DataError(f"the {kind} folder {given} cannot be listed: {reason}; {expected}") from fault
    return folder


def listing(folder: str | Path) -> list[os.DirEntry[str]]:
    """The sorted content of a folder, without hidden files and folders.

    Raises:
        OSError: If it cannot be listed.
    """
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def walk(root: Path) -> Iterator[tuple[str, list[str] | None]]:
    """Step through a folder and all folders below it, without hidden ones.

    Links to folders are followed, but every real folder is visited once: under its own name if it lies below `root`,
    else under the first link to it. A warning names the links that are left out.

    Yields:
        The relative POSIX path of a folder as a prefix of its files' names, "" or "a/b/"; and the names of the
        files directly in it, without hidden ones, or None if the folder cannot be listed.
    """
    visited: dict[str, str] = {}
    again: list[tuple[str, str]] = []
    links = deque([("", os.path.realpath(root))])  # followed when all that is really there has been visited
    while links:
        folders = [links.popleft()]
        while folders:
            prefix, real = folders.pop()
            if real in visited:
                again.append((prefix.removesuffix("/"), f"the folder {visited[real].removesuffix('/') or '.'}"))
                continue
            visited[real] = prefix
            try:
                entries = listing(root / prefix)
            except OSError:
                yield prefix, None
                continue
            below = [entry for entry in entries if is_folder(entry)]
            names = {entry.name for entry in below}
            yield prefix, [entry.name for entry in entries if entry.name not in names]
            linked = [entry for entry in below if entry.is_symlink()]
            links += [(f"{prefix}{entry.name}/", os.path.realpath(entry.path)) for entry in linked]
            folders += [
                (f"{prefix}{entry.name}/", os.path.join(real, entry.name))  # noqa: PTH118 - of 1,000 nested folders
                for entry in reversed(below)
                if not entry.is_symlink()
            ]
    if again:
        log.warning("%s: %d links to folders that are read already: %s", root, len(again), list_some(again))


class UnusableFileError(OSError):
    """A file that must not be read; it does not help to try again."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Pipes, sockets and devices are not opened and not waited for.

    Raises:
        UnusableFileError: If there is no regular file of this name.
        OSError: If it cannot be opened.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - returned open
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been replaced meanwhile
                return file
            file.close()
    except OSError as fault:
        if fault.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
    if not os.path.lexists(path):
        raise UnusableFileError(errno.ENOENT, "there is no such file", str(path))
    raise UnusableFileError(
        errno.EINVAL, "not a regular file, a dangling link, or a folder that cannot be listed", str(path)
    )


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait; Windows has none


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        most: Largest number of bytes.

    Raises:
        UnusableFileError: If there is no regular file of this name, or it is larger.
        OSError: If it cannot be read.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise UnusableFileError(errno.EFBIG, f"larger than {most} bytes", str(path))
        return file.read()


def state_of(path: str | Path) -> tuple[int, int]:
    """Size in bytes and time in nanoseconds of a file, by which a change is noticed.

    The time of its status counts as well: it changes when another time is set. A file that cannot be reached has
    `UNKNOWN_TIME`.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - of a million files
    except OSError:
        return -1, UNKNOWN_TIME
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def stem(clip: str) -> str:
    """A clip's path without its extension; the same for v.avi, a copy v.mp4, and frames in v/ or v.avi/."""
    return clip[: clip.rindex(".")] if clip.lower().endswith(VIDEO_EXTENSIONS) else clip


def labels_by_folder(names: Sequence[str], left_out: Collection[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Label files by the first folder of their paths.

    Args:
        names: Relative POSIX paths of all files that were found.
        left_out: Those that get no label, because they could not be read or are not used.

    Returns:
        (N,) int64 labels of the others, or None if there are no class folders; and the sorted names of the classes.
        A class keeps its number even if all its files are left out.
    """
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({folder for folder in folders if folder is not None})
    if not classes:
        return None, ()
    number = {folder: index for index, folder in enumerate(classes)}
    labels = [
        number[folder] if folder is not None else UNLABELLED
        for name, folder in zip(names, folders, strict=True)
        if name not in left_out
    ]
    return np.array(labels, dtype=np.int64), tuple(classes)


def fingerprint(recipe: str, names: Sequence[str], digests: Sequence[bytes]) -> str:
    """Hex digest of a dataset that is made from files.

    Args:
        recipe: Everything else that the dataset depends on.
        names: Relative POSIX paths of the files.
        digests: 16 bytes for the content of each file.
    """
    key = hashlib.blake2b(os.fsencode(recipe) + b"\0", digest_size=16)
    # no path contains a zero byte, and digests have a fixed length
    key.update(b"".join([name + b"\0" + digest for name, digest in zip(encoded(names), digests, strict=True)]))
    return key.hexdigest()


def encoded(names: Sequence[str]) -> list[bytes]:
    """`os.fsencode` of names of files, quickly: a set may have a million."""
    return os.fsencode("\0".join(names)).split(b"\0") if names else []


def content_digest(content: bytes | str) -> bytes:
    """16 bytes that identify the content of a file, or the reason why there is none."""
    given = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return hashlib.blake2b(given, digest_size=DIGEST_BYTES).digest()


def faults_of(names: Sequence[str], digests: Sequence[bytes], reasons: Sequence[str]) -> list[str]:
    """Why each file is not used. Identical files are used once, so that no copy of a held-out one is left.

    Args:
        names: Relative POSIX paths of the files.
        digests: Of their contents.
        reasons: Why each cannot be used, empty where it can.

    Returns:
        The reasons, and for a copy of a file that is used a text that says so.
    """
    seen: dict[bytes, str] = {}
    first = [seen.setdefault(digest, name) for name, digest in zip(names, digests, strict=True)]
    return [
        reason or ("" if name is original else f"identical to {original}")
        for name, original, reason in zip(names, first, reasons, strict=True)
    ]


def list_some(remarks: Sequence[tuple[str, str]]) -> str:
    """Name the first few of (relative path, remark), in printable characters, and count the others."""
    named = [printable(f"{name} ({remark})") for name, remark in remarks[:NAMED_IN_LOG]]
    more = len(remarks) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
