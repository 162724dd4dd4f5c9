"""What reading a folder takes, whatever its files hold: find, label, identify, work in parallel, tell."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from permenv.data.source import DataError

VIDEO_EXTENSIONS = (".avi", ".mp4", ".mkv", ".webm", ".gif", ".mov", ".mpg", ".mpeg", ".m4v")
UNLABELLED = -1
UNREADABLE = "not a regular file, a dangling link, or a folder that cannot be listed"
NAMED_IN_LOG = 5  # files; the others are counted

T = TypeVar("T")
R = TypeVar("R")


# ---------------------------------------------------------------------------------------------- what is there


def require_folder(root: Path, kind: str, expected: str) -> None:
    """Raise a DataError if a folder of this kind is missing, a file or not allowed; it ends with what is expected."""
    try:
        os.scandir(root).close()
    except OSError as fault:
        raise DataError(f"the {kind} folder {root} cannot be listed: {fault.strerror}; {expected}") from fault


def walk(root: Path) -> Iterator[tuple[str, list[str] | None]]:
    """Step through a folder and all folders below it, without hidden ones.

    Linked folders are followed, but not in circles.

    Yields:
        A folder as the relative POSIX path that stands before its files' names, "" or "a/b/"; and the names
        of the files that lie directly in it, without hidden ones, None if the folder cannot be listed.
    """
    yield from _walk(root, "", frozenset())


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, list[str] | None]]:
    place = folder.resolve()
    if place in above:  # a link back to a folder that we are in
        return
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        yield prefix, None
        return
    folders = {entry.name for entry in entries if _is_folder(entry)}
    yield prefix, [entry.name for entry in entries if entry.name not in folders]
    for name in sorted(folders):
        yield from _walk(folder / name, f"{prefix}{name}/", above | {place})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a place that is closed to us
        return False


def stem(clip: str) -> str:
    """A clip's path without its extension, equal for v.avi, its copy v.mp4 and its frames in v/ or v.avi/."""
    return clip[: clip.rindex(".")] if clip.lower().endswith(VIDEO_EXTENSIONS) else clip


def labels_by_folder(names: Sequence[str], left_out: Collection[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Label files by the first folder of their paths.

    Args:
        names: Relative POSIX paths of all that was found.
        left_out: Those of them that get no label, because they could not be read or were not wanted.

    Returns:
        (N,) int64 labels of the other ones, or None where there are no class folders; and the classes' names,
        sorted. A class keeps its number even if all its files are left out.
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


# --------------------------------------------------------------------------------------------------- identity


def fingerprint(recipe: str, names: Sequence[str], digests: Sequence[bytes]) -> str:
    """Hex digest of what is made, by which recipe, from which files.

    Args:
        recipe: Everything but the files that what is made depends on.
        names: Relative POSIX paths of the files.
        digests: 16 bytes for the content of each.
    """
    key = hashlib.blake2b(recipe.encode() + b"\0", digest_size=16)
    for name, digest in zip(names, digests, strict=True):
        key.update(os.fsencode(name) + b"\0" + digest)  # neither part can be mistaken for another
    return key.hexdigest()


# ------------------------------------------------------------------------------------------------- many files


def in_parallel(
    work: Callable[[T], R], items: Sequence[T], label: str, progress: bool, unit: str, in_flight: int
) -> Iterator[R]:
    """Map with threads (OpenCV, hashing and reading free the interpreter), in order and in bounded memory.

    Args:
        work: What is done with an item.
        items: The items.
        label: What the progress bar says is being done.
        progress: Show a progress bar where stderr is a terminal.
        unit: What the progress bar counts.
        in_flight: Items handed to the threads before the first one's result is used.

    Yields:
        The results, in the order of the items.
    """
    todo = iter(items)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(items), desc=label, unit=unit, disable=None if progress else True) as bar,
    ):
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(todo, in_flight))
        while waiting:
            yield waiting.popleft().result()
            bar.update()
            waiting.extend(pool.submit(work, item) for item in islice(todo, 1))


# ---------------------------------------------------------------------------------------------------- wording


def summary(remarks: Sequence[tuple[str, str]]) -> str:
    """Name the first few of (relative path, remark), and count the others."""
    named = [f"{name} ({remark})" for name, remark in remarks[:NAMED_IN_LOG]]
    more = len(remarks) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
