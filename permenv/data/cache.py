"""Arrays that were expensive to make, kept on disk between runs.

An entry is a folder `<cache>/<key>/`: `array.bin`, the raw uint8 rows, and `index.json`, which describes
them and carries a checksum over both. It is built under a temporary name and renamed when it is complete,
and verified in full whenever it is opened. So whatever happens to an entry (a kill, a full disk, a flipped
bit, an edit), it is either used as it was made or made again; any entry may be deleted at any time.

The cache lies in the user's cache folder, or in the folder named by the environment variable PERMENV_CACHE.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs

from permenv.data.source import DataError

FORMAT = 1  # of an entry's two files; entries of another format are made again
ARRAY, INDEX = "array.bin", "index.json"
READ_BYTES = 16 * 2**20  # a checksum reads in pieces of this size
ABANDONED_SECONDS = 24 * 3600  # a build that has written nothing for so long is not going on
ATTEMPTS = 3  # one is enough unless other processes break or replace the entry meanwhile

log = logging.getLogger("permenv")

Append = Callable[[np.ndarray], None]
Build = Callable[[Append], dict[str, Any]]


def cached_rows(key: str, shape: tuple[int, ...], build: Build) -> tuple[np.ndarray, dict[str, Any]]:
    """Open the entry of this key; make it first if there is none, or none that is intact.

    Several processes may ask for the same key at once: each that finds nothing builds, the first to finish
    puts its entry in place, and all of them use that one.

    Args:
        key: Name of the entry, fit for a folder's name. It must change whenever what `build` makes changes.
        shape: (rows planned at most, *shape of a row). Room on the disk is checked for the planned rows
            before the work starts; fewer may be written.
        build: Makes the rows. It is given `append`, which takes (n, *row) uint8 arrays and writes them at
            once, and returns metadata that JSON can hold.

    Returns:
        (rows, *row) uint8 as a read-only memory map, and the metadata as JSON gives it back.

    Raises:
        DataError: If the cache cannot be written or is full, or `build` appended nothing.
    """
    entry = cache_folder() / key
    found = _open_intact(entry, shape[1:])
    for _ in range(ATTEMPTS):
        if found is None:
            _make(entry, shape, build)
            found = _open_intact(entry, shape[1:])
    if found is None:
        raise DataError(
            f"the cache does not give back what was written to {entry}, {ATTEMPTS} times in a row; "
            "set the environment variable PERMENV_CACHE to a folder on a sound disk"
        )
    return found


def cache_folder() -> Path:
    """Where the entries lie. The folder need not exist yet."""
    chosen = os.environ.get("PERMENV_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("permenv")


# ---------------------------------------------------------------------------------------------------- reading


class _BrokenError(Exception):
    """The entry is not as it was made; the message says why."""


def _open_intact(entry: Path, row: tuple[int, ...]) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Open an entry; None if there is none, or it was broken and has been thrown away."""
    try:
        return _open(entry, row) if entry.exists() else None
    except (_BrokenError, OSError) as fault:
        log.warning("cache entry %s is broken and will be made again: %s", entry, fault)
        _discard(entry)
        return None


def _open(entry: Path, row: tuple[int, ...]) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        index = json.loads((entry / INDEX).read_bytes())
    except ValueError as fault:
        raise _BrokenError(f"{INDEX} is not JSON") from fault
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise _BrokenError(f"{INDEX} is not of format {FORMAT}")
    bytes_there = (entry / ARRAY).stat().st_size
    if bytes_there != index.get("bytes"):  # the checksum would tell as well, but later and less clearly
        raise _BrokenError(f"{ARRAY} has {bytes_there} bytes instead of {index.get('bytes')}")
    found = index.pop("checksum", None)
    if found != _checksum(_hash_file(entry / ARRAY), index):
        raise _BrokenError(f"the checksum of {ARRAY} and {INDEX} does not match")
    if index["key"] != entry.name or tuple(index["shape"][1:]) != row:
        raise _BrokenError(f"it holds rows {index['shape'][1:]} of key {index['key']}")
    rows = np.memmap(entry / ARRAY, dtype=np.uint8, mode="r", shape=tuple(index["shape"]))
    return rows, index["metadata"]


def _hash_file(path: Path) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest


def _checksum(array: hashlib.blake2b, index: dict[str, Any]) -> str:
    """One checksum for the array's bytes and what the index says of them (without the checksum itself)."""
    both = array.copy()
    both.update(json.dumps(index, sort_keys=True).encode())
    return both.hexdigest()


# ---------------------------------------------------------------------------------------------------- writing


def _make(entry: Path, shape: tuple[int, ...], build: Build) -> None:
    """Build an entry under a temporary name, then give it its own, unless another process has by then."""
    cache = entry.parent
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        _require_room(cache, math.prod(shape))
        temporary = _temporary(cache)
        temporary.mkdir()
    try:
        _fill(temporary, entry.name, shape[1:], build)
        with _writing(cache):
            _rename_unless_there(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there is none any more if all went well


def _fill(folder: Path, key: str, row: tuple[int, ...], build: Build) -> None:
    """Write the array's rows as `build` appends them, then the index."""
    with _writing(folder.parent):
        file = (folder / ARRAY).open("wb")
    rows = _Rows(file, row, folder.parent)
    try:
        metadata = build(rows.append)
    finally:
        with _writing(folder.parent):
            file.close()
    if not rows.count:
        raise DataError(f"there is nothing to keep in the cache under {key}: no rows were made")
    index = {
        "format": FORMAT,
        "key": key,
        "shape": [rows.count, *row],
        "dtype": "uint8",
        "bytes": rows.count * math.prod(row),
        "metadata": json.loads(json.dumps(metadata)),
    }
    index["checksum"] = _checksum(rows.digest, index)
    with _writing(folder.parent):
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


class _Rows:
    """Appends rows to a file; counts and hashes them on the way."""

    def __init__(self, file: BinaryIO, row: tuple[int, ...], cache: Path) -> None:
        self.count = 0
        self.digest = hashlib.blake2b(digest_size=32)
        self._file, self._row, self._cache = file, row, cache

    def append(self, rows: np.ndarray) -> None:
        """Write (n, *row) uint8 rows.

        Raises:
            DataError: If the disk takes no more.
            TypeError: If the rows are of another shape or type: the caller's mistake.
        """
        if rows.dtype != np.uint8 or rows.shape[1:] != self._row:
            raise TypeError(f"rows must be uint8 (n, *{self._row}), not {rows.dtype} {rows.shape}")
        content = np.ascontiguousarray(rows)
        with _writing(self._cache):
            self._file.write(content.data)
            self._file.flush()  # a full disk shows here, not at the end
        self.digest.update(content.data)
        self.count += len(rows)


def _rename_unless_there(temporary: Path, entry: Path) -> None:
    try:
        temporary.rename(entry)
    except OSError as fault:
        if fault.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        log.info("cache entry %s was finished by another process first", entry)


def _discard(entry: Path) -> None:
    """Delete an entry; it loses its name at once, so nobody meets it half deleted."""
    doomed = _temporary(entry.parent)
    with _writing(entry.parent), suppress(FileNotFoundError):  # another process has discarded it already
        entry.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _require_room(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free")


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the remedy."""
    try:
        yield
    except OSError as fault:
        raise DataError(
            f"the cache folder {cache} cannot be written: {fault.strerror}; make room there, or set the "
            "environment variable PERMENV_CACHE to a folder that has room and that you may write to"
        ) from fault


# ------------------------------------------------------------------------------------------ temporary folders


def _temporary(cache: Path) -> Path:
    """A new name beside the entries that tells who is at work there."""
    return cache / f"temporary-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}"


def _remove_abandoned(cache: Path) -> None:
    """Delete what killed processes left, under whatever key: they may have been about to fill the disk."""
    for folder in cache.glob("temporary-*"):
        with suppress(OSError, ValueError):  # gone meanwhile, or not of our making
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody works there: the process is dead or, on whatever machine, silent for a day."""
    last_write = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    if time.time() - last_write > ABANDONED_SECONDS:
        return True
    machine, process, _ = folder.name.removeprefix("temporary-").rsplit("-", 2)
    return machine == platform.node() and not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # there, signal 0 would end the process instead of asking for it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
