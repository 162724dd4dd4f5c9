"""Tools for folders of files of any kind: finding, labelling and identifying files, and working in parallel."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from permenv.data.source import DataError

if TYPE_CHECKING:
    from concurrent.futures import Future

VIDEO_EXTENSIONS = (".avi", ".mp4", ".mkv", ".webm", ".gif", ".mov", ".mpg", ".mpeg", ".m4v")
UNLABELLED = -1
UNREADABLE = "not a regular file, a dangling link, or a folder that cannot be listed"
NAMED_IN_LOG = 5  # names in a warning; the others are counted

T = TypeVar("T")
R = TypeVar("R")


def require_folder(root: Path, kind: str, expected: str) -> None:
    """Raise a DataError that ends with `expected` if a folder is missing, is a file or cannot be listed."""
    try:
        os.scandir(root).close()
    except OSError as fault:
        raise DataError(f"the {kind} folder {root} cannot be listed: {fault.strerror}; {expected}") from fault


def walk(root: Path) -> Iterator[tuple[str, list[str] | None]]:
    """Step through a folder and all folders below it, without hidden ones.

    Links to folders are followed, except links back to a parent folder.

    Yields:
        The relative POSIX path of a folder as a prefix of its files' names, "" or "a/b/"; and the names of the
        files directly in it, without hidden ones, or None if the folder cannot be listed.
    """
    yield from _walk(root, "", frozenset())


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, list[str] | None]]:
    place = folder.resolve()
    if place in above:  # a link back to a parent folder
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
    except OSError:  # a link to itself, or into a folder without permission
        return False


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
    key = hashlib.blake2b(recipe.encode() + b"\0", digest_size=16)
    for name, digest in zip(names, digests, strict=True):
        key.update(os.fsencode(name) + b"\0" + digest)  # no path contains a zero byte, and digests have a fixed length
    return key.hexdigest()


def in_parallel(
    work: Callable[[T], R], items: Sequence[T], label: str, progress: bool, unit: str, in_flight: int
) -> Iterator[R]:
    """Map with threads, in order and in bounded memory. Decoding, hashing and reading release the GIL.

    Args:
        work: The function.
        items: Its arguments.
        label: Label of the progress bar.
        progress: Show a progress bar where stderr is a terminal.
        unit: Unit of the progress bar.
        in_flight: Largest number of items submitted to the threads before the result of the first is used.

    Yields:
        The results, in the order of the items.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

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


def summary(remarks: Sequence[tuple[str, str]]) -> str:
    """Name the first few of (relative path, remark) and count the others."""
    named = [f"{name} ({remark})" for name, remark in remarks[:NAMED_IN_LOG]]
    more = len(remarks) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
