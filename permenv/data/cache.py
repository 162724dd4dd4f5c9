"""Arrays that were expensive to make, kept on disk between runs: rendered scenes.

An entry is a folder `<cache>/<key>/`: `array.bin`, the raw uint8 rows, and `index.json`, which describes
them, with a checksum of each row and one of itself. It is built under a temporary name, renamed when it is complete,
and then read back in full. Later starts read the index, and verify a row when it is read for the first time, see
`permenv.data.rows`. Whatever happens to an entry (a kill, a full disk, a flipped bit, an edit), it is either used as it
was made or made again. Only where reading it fails, which may pass, it is left as it is and an error says so. Any entry
may be deleted at any time.

The file `<cache>/<key>.lock` is locked by the process that builds the entry; others wait for it. The operating
system releases the lock of a process that ends, also of one that is killed.

The cache is the user's cache folder, or the folder named by the environment variable PERMENV_CACHE.

What is trusted: whoever may write to the cache decides which pixels are trained on. The checksums (CRC-32) find
damage, not forgery. So the user's cache folder is used only if it belongs to this user and not everybody may write to
it; a folder named by PERMENV_CACHE is trusted because it was named. Nothing in a cache is executed or unpickled: rows
are bytes, the index is JSON, and only regular files are opened.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from permenv import locks
from permenv.data.files import UnusableFileError, open_regular, read_regular
from permenv.data.messages import DataError, log
from permenv.data.rows import CachedRows, Opened

FORMAT = 4  # of an entry's two files; entries of another format are made again
ARRAY, INDEX = "array.bin", "index.json"
CHECKSUM = np.dtype("<u4")  # of a row
MAX_INDEX_BYTES = 2**30  # also of the index of a shard
LOCK = "lock"  # in a temporary folder
ABANDONED_SECONDS = 24 * 3600  # without a lock, a build that has written nothing for this long has ended
ATTEMPTS = 3  # one is enough unless other processes break or delete the entry meanwhile

Append = Callable[[np.ndarray], None]
Build = Callable[[Append], None]


class CacheError(DataError):
    """The cache cannot be used. The message names the folder and the remedy."""


def cached_rows(key: str, shape: tuple[int, ...], build: Build) -> CachedRows:
    """Open the entry of this key; make it first if there is none, or none that is intact.

    If several processes need the same entry at the same time, one builds it and the others wait.

    Args:
        key: Name of the entry, a valid folder name. It must change whenever what `build` makes changes.
        shape: (rows, *shape of a row). The free disk space is checked before the work starts.
        build: Makes the rows. It receives `append`, which writes (n, *row) uint8 arrays. It is called again if a row
            turns out to be damaged later.

    Returns:
        (rows, *row) uint8, read from a memory map. Each row is verified when it is read.

    Raises:
        CacheError: If the cache cannot be read or written, is full, or is not to be trusted.
        DataError: If `build` appended nothing.
    """
    cache = cache_folder()
    require_trust(cache)
    entry = cache / key

    def again() -> Opened:
        return _open_or_make(entry, shape, build, verify=True)

    opened = _open_or_make(entry, shape, build, verify=False)
    return CachedRows(str(entry), opened, again, (_open_again, (entry, shape[1:])))


def _open_or_make(entry: Path, shape: tuple[int, ...], build: Build, verify: bool) -> Opened:
    found = _open_intact(entry, shape[1:], verify, is_ours=False)
    for _ in range(ATTEMPTS):
        if found is None:
            with locked(entry):
                # another process may have built it meanwhile
                found = _open_intact(entry, shape[1:], verify, is_ours=True)
                if found is None:
                    _make(entry, shape, build)
                    found = _open_intact(entry, shape[1:], verify=True, is_ours=True)
    if found is None:
        raise CacheError(
            f"cache entry {entry} was written {ATTEMPTS} times and each time read back differently or not at all; "
            "set the environment variable PERMENV_CACHE to a folder on a reliable disk"
        )
    return found


def cached_or_in_memory(key: str, shape: tuple[int, ...], build: Build) -> CachedRows | np.ndarray:
    """Like `cached_rows`, but make the rows in memory, with a warning, if the cache cannot be used.

    For rows that are quick to make and fit into memory.

    Args:
        key: See `cached_rows`.
        shape: See `cached_rows`.
        build: See `cached_rows`.

    Returns:
        (rows, *row) uint8, read-only: as `cached_rows` returns it, or an array in memory.
    """
    try:
        return cached_rows(key, shape, build)
    except CacheError as fault:
        log.warning("%s is made in memory, in every process again: %s", key, fault)
    pieces: list[np.ndarray] = []
    build(pieces.append)
    rows = np.concatenate(pieces)
    rows.flags.writeable = False
    return rows


def cache_folder() -> Path:
    """Return the folder of the entries. It need not exist yet.

    Raises:
        CacheError: If the environment variable PERMENV_CACHE names the home of an unknown user.
    """
    import platformdirs

    chosen = os.environ.get("PERMENV_CACHE")
    try:
        return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("permenv")
    except RuntimeError as fault:
        raise CacheError(f"PERMENV_CACHE={chosen}: {fault}; set it to the path of a folder") from fault


def require_trust(cache: Path) -> None:
    """Refuse the user's cache folder if others may have filled it. One that was named is trusted.

    Raises:
        CacheError: If it is refused or cannot be reached.
    """
    if os.environ.get("PERMENV_CACHE") or os.name != "posix":
        return
    with writing(cache):
        try:
            status = cache.stat()
        except FileNotFoundError:
            return
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
        what = "can be written by every user" if status.st_uid == os.geteuid() else "belongs to another user"
        raise CacheError(
            f"the cache folder {cache} {what}, who would decide which pixels are trained on; correct that, or set the "
            "environment variable PERMENV_CACHE to a folder that you trust, which may be this one"
        )


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock of an entry; wait for the process that holds it.

    On a file system without locks every process builds for itself. That costs time only: an entry is renamed
    into place as a whole.
    """
    lock = entry.with_name(f"{entry.name}.lock")
    with ExitStack() as stack:
        with writing(entry.parent):
            entry.parent.mkdir(0o775, parents=True, exist_ok=True)
            message = f"waiting for another process, which holds {lock}, to make the cache entry {entry.name}"
            held = stack.enter_context(locks.locked(lock, lambda: log.warning(message)))
        if not held:
            _warn_of_missing_locks(entry.parent)
        yield


@functools.cache
def _warn_of_missing_locks(cache: Path) -> None:
    """Warn once of each folder."""
    log.warning("the cache folder %s has no file locks: processes that start together all make the same entries", cache)


class BrokenError(Exception):
    """What is kept is not as it was written; the message says why."""


def _open_intact(entry: Path, row: tuple[int, ...], verify: bool, *, is_ours: bool) -> Opened | None:
    """Open an entry; None if there is none, or it is broken.

    Args:
        entry: Its folder.
        row: Shape of a row.
        verify: Whether to read all rows.
        is_ours: Whether this process has locked it. Then an entry that is broken is deleted. Without the lock, what
            looks broken may be one that another process is replacing.

    Raises:
        CacheError: If reading fails, which says nothing about the entry: a disk or a network may work again.
    """
    try:
        return _open(entry, row, verify) if os.path.lexists(entry) else None
    except (BrokenError, UnusableFileError, RecursionError) as fault:  # recursion: an index that is nested deeply
        if is_ours:
            log.warning("cache entry %s cannot be used and will be made again: %s", entry, fault)
            _discard(entry)
        return None
    except OSError as fault:
        raise CacheError(
            f"cache entry {entry} cannot be read: {fault.strerror or fault}; start again, and delete it if that does "
            "not help"
        ) from fault


def _open(entry: Path, row: tuple[int, ...], verify: bool) -> Opened:
    """Open an entry and check its index, and also all of its rows if they are to be verified."""
    try:
        index = json.loads(read_regular(entry / INDEX, MAX_INDEX_BYTES))
    except ValueError as fault:
        raise BrokenError(f"{INDEX} is not JSON") from fault
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise BrokenError(f"{INDEX} is not of format {FORMAT}")
    if index.pop("checksum", None) != _checksum(index):
        raise BrokenError(f"the checksum of {INDEX} does not match")
    try:
        checksums = np.frombuffer(bytes.fromhex(index.get("checksums", "")), CHECKSUM)
    except (TypeError, ValueError) as fault:
        raise BrokenError(f"the checksums in {INDEX} are not hexadecimal") from fault
    shape = (len(checksums), *row)
    if not len(checksums) or index != _index(entry.name, shape, checksums):
        raise BrokenError(f"it holds rows of shape {index.get('shape')} under the key {index.get('key')}")
    with open_regular(entry / ARRAY) as file:
        size = os.fstat(file.fileno()).st_size
        if size != math.prod(shape):
            raise BrokenError(f"{ARRAY} has {size} bytes instead of {math.prod(shape)}")
        rows = np.asarray(np.memmap(file, dtype=np.uint8, mode="r", shape=shape))
    if verify:
        for number, checksum in enumerate(checksums.tolist()):
            if zlib.crc32(rows[number].data) != checksum:
                raise BrokenError(f"the checksum of row {number} of {ARRAY} does not match")
    return rows, checksums


def _open_again(entry: Path, row: tuple[int, ...]) -> CachedRows:
    """Open the entry that another process has open."""

    def opened(verify: bool) -> Opened:
        found = _open_intact(entry, row, verify, is_ours=False)
        if found is None:
            raise CacheError(f"cache entry {entry}, which another process uses, is damaged or gone: start again")
        return found

    return CachedRows(str(entry), opened(verify=False), lambda: opened(verify=True), (_open_again, (entry, row)))


def _index(key: str, shape: tuple[int, ...], checksums: np.ndarray) -> dict[str, Any]:
    """Describe an entry, without the checksum of the description."""
    return {
        "format": FORMAT,
        "key": key,
        "shape": list(shape),
        "dtype": "uint8",
        "checksums": checksums.tobytes().hex(),
    }


def _checksum(index: dict[str, Any]) -> int:
    """CRC-32 of the index. It finds damage, not forgery, and takes less than half the time of a cryptographic hash."""
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _make(entry: Path, shape: tuple[int, ...], build: Build) -> None:
    """Build an entry in a temporary folder, then move it to its place, unless another process was faster."""
    cache = entry.parent
    with temporary_folder(cache) as temporary:
        with writing(cache):
            require_room(cache, math.prod(shape))
            (temporary / entry.name).mkdir()
        _fill(temporary / entry.name, cache, shape[1:], build)
        with writing(cache):
            _rename_unless_there(temporary / entry.name, entry)


def _fill(entry: Path, cache: Path, row: tuple[int, ...], build: Build) -> None:
    """Write the array's rows as `build` appends them, then the index."""
    with writing(cache):
        file = (entry / ARRAY).open("wb")
    rows = _Rows(file, row, cache)
    try:
        build(rows.append)
    finally:
        with writing(cache):
            file.close()
    if not rows.checksums:
        raise DataError(f"cache entry {entry.name} would be empty: no rows were made")
    checksums = np.array(rows.checksums, CHECKSUM)
    index = _index(entry.name, (len(checksums), *row), checksums)
    index["checksum"] = _checksum(index)
    with writing(cache):
        (entry / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


class _Rows:
    """Appends rows to a file; keeps their checksums."""

    def __init__(self, file: BinaryIO, row: tuple[int, ...], cache: Path) -> None:
        self.checksums: list[int] = []
        self._file, self._row, self._cache = file, row, cache

    def append(self, rows: np.ndarray) -> None:
        """Write (n, *row) uint8 rows.

        Raises:
            CacheError: If the disk is full.
            TypeError: If the rows are of another shape or type.
        """
        if rows.dtype != np.uint8 or rows.shape[1:] != self._row:
            raise TypeError(f"rows must be uint8 (n, *{self._row}), not {rows.dtype} {rows.shape}")
        content = np.ascontiguousarray(rows)
        with writing(self._cache):
            self._file.write(content.data)
            self._file.flush()  # so that a full disk is noticed here, not at the end
        self.checksums += [zlib.crc32(row.data) for row in content]


def _rename_unless_there(temporary: Path, entry: Path) -> None:
    try:
        temporary.rename(entry)
    except OSError as fault:
        if fault.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        log.info("another process finished cache entry %s first", entry)


def _discard(entry: Path) -> None:
    """Delete an entry. It is moved away first, so that no other process opens it half deleted."""
    if os.path.lexists(entry):
        missing = suppress(FileNotFoundError)  # another process has deleted it already
        with temporary_folder(entry.parent) as temporary, writing(entry.parent), missing:
            entry.rename(temporary / entry.name)


def require_room(cache: Path, needed: int) -> None:
    """Raise an OSError if fewer bytes than needed are free."""
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free")


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the remedy."""
    try:
        yield
    except OSError as fault:
        raise CacheError(
            f"the cache folder {cache} cannot be written: {fault.strerror or fault}; make room there, or set the "
            "environment variable PERMENV_CACHE to a folder that has room and that you may write to"
        ) from fault


@contextmanager
def temporary_folder(cache: Path) -> Iterator[Path]:
    """Make a folder beside the entries for what is not whole yet, and delete it at the end with what is still in it.

    A file in it is locked meanwhile. So what a killed process left is told from what is being written, and is deleted,
    under any key: it may fill the disk.
    """
    folder = cache / f"temporary-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        with writing(cache):
            _remove_abandoned(cache)
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            # who looks for abandoned folders may hold it for an instant
            stack.enter_context(locks.locked(folder / LOCK, lambda: None))
        yield folder


def _refuse() -> NoReturn:
    raise BlockingIOError("its process has not ended")


def _remove_abandoned(cache: Path) -> None:
    """Delete temporary folders whose processes have ended."""
    for folder in cache.glob("temporary-*"):
        with suppress(OSError):  # it is in use, which is a BlockingIOError, or gone meanwhile
            files = list(folder.rglob("*"))
            last_write = max(path.stat().st_mtime for path in (folder, *files))
            lock = folder / LOCK
            with locks.locked(lock, _refuse) if lock in files else nullcontext(False) as held:
                # without more than the lock in it, its process may be about to take the lock
                if (held and len(files) > 1) or time.time() - last_write > ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
