"""The images of a folder of files, read and decoded once and kept in shards.

A store is a folder `<cache>/images-<key>/`, one for each folder of files and size of images. A shard holds the images
of some thousand consecutive files, see `permenv.data.shards`. One process builds a store, under a lock, and others
wait for it; a process that is killed loses the shard that it was at.

A start reads the indices of the shards, but neither files nor images. It compares size and time of every file. The
content of a file that has another size or time is read and compared, and if it has changed, its shard is written again.
Which files share a shard depends on their names alone, in such a way that a new or missing file concerns its own shard
and its neighbours.

A set of at most `RAW_BYTES` of pixels is kept as it is. A larger one is kept as JPEG, for photos about a ninth of the
size; from then on the data are what these decode to.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from permenv.data.cache import (
    CacheError,
    cache_folder,
    locked,
    require_room,
    require_trust,
    temporary_folder,
    writing,
)
from permenv.data.files import (
    UNKNOWN_TIME,
    UNSETTLED,
    UnusableFileError,
    content_digest,
    encoded,
    in_parallel,
    state_of,
)
from permenv.data.shards import BrokenError, Outcome, Shard, write_index, write_shard
from permenv.data.source import DataError, log

FORMAT = 1  # of a store; increase it when the same images would be kept otherwise
RAW_BYTES = 2**32  # of pixels: a set that the memory of any machine that trains holds
QUALITY, SUBSAMPLING = 95, "420"  # 45 dB of signal to noise on photos of 255 pixels, in a ninth of the bytes
LARGEST_RATIO = 20  # of the bytes of pixels and of their JPEG, on disk space that is required beforehand
FILES = 4096  # of a shard, on average; it has at most twice as many
IN_FLIGHT = 128  # files submitted to the threads before the result of the first is written


class Source(Protocol):
    """Where the images of a store come from. It can be pickled."""

    @property
    def name(self) -> str:
        """What identifies the files and everything else that their pixels depend on."""

    @property
    def files(self) -> Sequence[str]:
        """Names of the files, in order."""

    @property
    def size(self) -> int:
        """S, side of the images in pixels."""

    def path(self, file: str) -> str:
        """Where a file is."""

    def read(self, file: str) -> bytes | str:
        """Read a file; a str says why it cannot be read."""

    def square(self, content: bytes) -> np.ndarray | str:
        """Make the image, (S, S, 3) uint8; a str says why that is impossible."""


@dataclass(frozen=True)
class _Part:
    """The files of a shard: its name, and where they are in the list of all files."""

    name: str
    start: int
    stop: int


class Store:
    """The kept images of a source.

    Args:
        source: Where they come from.

    Attributes:
        source: Where they come from.
        jpeg: Whether they are kept as JPEG.
        shards: In the order of the files; empty before `open`.

    Raises:
        CacheError: If the cache is not to be trusted.
    """

    def __init__(self, source: Source):
        self.source = source
        self.jpeg = len(source.files) * source.size**2 * 3 > RAW_BYTES
        cache = cache_folder()
        require_trust(cache)
        key = f"permenv store {FORMAT}, {self.encoding}, size {source.size}, {source.name}"
        self.folder = cache / f"images-{content_digest(os.fsencode(key)).hex()}"
        self.shards: list[Shard] = []
        self._parts = _parts(source.files)

    @property
    def encoding(self) -> str:
        """How images are kept, in words."""
        return f"JPEG of quality {QUALITY}, {SUBSAMPLING}" if self.jpeg else "raw"

    def open(self, *, verify: bool = False, progress: bool = True) -> None:
        """Open all shards; make those that are missing, damaged or out of date.

        Args:
            verify: Read all files and all images again, and make again what is not as it was.
            progress: Show a progress bar, see `permenv.progress`.

        Raises:
            CacheError: If the cache cannot be read or written, or is full. What was built is kept.
            DataError: If a file changes while it is read, or the source refuses to decode.
        """
        since = time.time_ns() - UNSETTLED
        states = _states(self.source)
        known = np.full_like(states, UNKNOWN_TIME - 1) if verify else states  # no file has such a time
        self.shards = []
        for part in self._parts:
            shard = self._try_to_open(part)
            if shard is None or not _is_of(shard, part, known):
                with locked(self.folder):
                    self.shards = self._build(states, known, since, verify, progress)
                break
            self.shards.append(shard)

    def repair(self, shard: Shard) -> Shard:
        """Make the images of an open shard again that are not as they were written.

        Returns:
            The shard, with the images that it had.

        Raises:
            DataError: If the files have changed, or it cannot be read or written.
        """
        number = self.shards.index(shard)
        part = self._parts[number]
        log.warning("%s is damaged; its images are checked, and made again where need be", shard.path)
        with locked(self.folder):
            self._write(part, (self._again(shard, part, row) for row in range(part.stop - part.start)))
        repaired = self._open(part)
        if not np.array_equal(repaired.index.checksums, shard.index.checksums):
            raise DataError(f"{shard.path} was damaged, and its images cannot be made again as they were; start again")
        self.shards[number] = repaired
        return repaired

    # Finding

    def _try_to_open(self, part: _Part, warn: bool = False) -> Shard | None:
        """Open a shard; None if there is none, or it is broken, of which a warning can be given."""
        if not os.path.lexists(self.folder / f"{part.name}.safetensors"):
            return None
        try:
            return Shard(self.folder, part.name)
        except (BrokenError, UnusableFileError) as fault:
            if warn:
                log.warning("shard %s of %s cannot be used and is made again: %s", part.name, self.folder, fault)
            return None
        except OSError as fault:
            raise CacheError(
                f"shard {part.name} of {self.folder} cannot be read: {fault.strerror or fault}; start again, allow "
                "more open files (ulimit -n) if they are too many, and delete the folder if that does not help"
            ) from fault

    def _open(self, part: _Part) -> Shard:
        shard = self._try_to_open(part)
        if shard is None:
            raise CacheError(
                f"shard {part.name} of {self.folder} reads back otherwise than it was written; set the environment "
                "variable PERMENV_CACHE to a folder on a reliable disk"
            )
        return shard

    # Building

    def _build(self, states: np.ndarray, known: np.ndarray, since: int, verify: bool, progress: bool) -> list[Shard]:
        """Open all shards, and write those that are not of files in the known states, in order. The lock is held."""
        old = {part.name: self._try_to_open(part, warn=True) for part in self._parts}
        shards = {name: shard for name, shard in old.items() if shard is not None}
        missing = [
            part for part in self._parts if part.name not in shards or not _is_of(shards[part.name], part, known)
        ]
        self._require_room([part for part in missing if old[part.name] is None])

        def work(item: tuple[_Part, int]) -> tuple[Outcome, bool]:
            part, row = item
            size, when = states[part.start + row]
            return self._outcome(part, row, (int(size), int(when)), old[part.name], since, verify)

        todo = [(part, row) for part in missing for row in range(part.stop - part.start)]
        with closing(in_parallel(work, todo, "images", progress, "image", IN_FLIGHT)) as results:
            for part in missing:
                of_part = islice(results, part.stop - part.start)
                before = old[part.name]
                if before is None:
                    self._write(part, (outcome for outcome, _ in of_part))
                else:
                    self._update(part, before, list(of_part))
                shards[part.name] = self._open(part)
        in_order = [shards[part.name] for part in self._parts]
        self._remove_all_but(in_order)
        return in_order

    def _outcome(
        self, part: _Part, row: int, state: tuple[int, int], old: Shard | None, since: int, verify: bool
    ) -> tuple[Outcome, bool]:
        """Read a file where need be.

        Returns:
            What is to be kept of it, and whether that is what the old shard holds in this row.
        """
        if old is not None and not verify and state == tuple(old.index.states[row]):
            return old.outcome(row, state), True
        file = self.source.files[part.start + row]
        content = self.source.read(file)
        if isinstance(content, bytes) and state_of(self.source.path(file)) != state:
            raise DataError(
                f"{self.source.path(file)} changed while it was read; start again when no process writes to the folder"
            )
        # a file that cannot be read may be readable the next time
        settled = isinstance(content, bytes) and state[1] < since
        recorded = state if settled else (state[0], UNKNOWN_TIME)
        if old is not None and content_digest(content) == old.index.digests[row].tobytes():
            image = old.index.places[row]
            if image < 0 or not verify or old.is_intact(image):
                return old.outcome(row, recorded), True
        return self._made(content, recorded), False

    def _made(self, content: bytes | str, state: tuple[int, int]) -> Outcome:
        """Decode a content, or take the reason why there is none."""
        made = content if isinstance(content, str) else self.source.square(content)
        if isinstance(made, str):
            return Outcome(state, content_digest(content), b"", 0, made.replace("\0", " "))
        image = self._encode(made)
        return Outcome(state, content_digest(content), image, zlib.crc32(image), "")

    def _encode(self, image: np.ndarray) -> bytes:
        if not self.jpeg:
            return image.tobytes()
        import simplejpeg

        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), QUALITY, "RGB", SUBSAMPLING)

    def _again(self, old: Shard, part: _Part, row: int) -> Outcome:
        """What an open shard holds of a file; made again if it is damaged."""
        size, when = old.index.states[row]
        image = old.index.places[row]
        if image < 0 or old.is_intact(image):
            return old.outcome(row, (int(size), int(when)))
        file = self.source.files[part.start + row]
        content = self.source.read(file)
        if content_digest(content) != old.index.digests[row].tobytes():
            raise DataError(
                f"what is kept of {self.source.path(file)} in {old.path} is damaged, and the file has changed since; "
                "start again"
            )
        return self._made(content, (int(size), int(when)))

    def _write(self, part: _Part, outcomes: Iterable[Outcome]) -> None:
        with self._temporary() as temporary:
            write_shard(temporary, self.folder, part.name, outcomes)

    def _update(self, part: _Part, old: Shard, results: Sequence[tuple[Outcome, bool]]) -> None:
        """Write what has changed of a shard: all, or only the states of its files, or nothing."""
        states = np.array([outcome.state for outcome, _ in results], np.int64)
        if not all(same for _, same in results):
            self._write(part, (outcome for outcome, _ in results))
        elif not np.array_equal(states, old.index.states):
            with self._temporary() as temporary:
                write_index(temporary, self.folder, part.name, replace(old.index, states=states))

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Make a folder for files that are not whole yet, beside the store's own."""
        with temporary_folder(self.folder.parent) as temporary:
            with writing(self.folder.parent):
                self.folder.mkdir(exist_ok=True)
            yield temporary

    def _require_room(self, parts: Iterable[_Part]) -> None:
        """Check the free disk space before the work starts; of JPEG the smallest size that is likely."""
        raw = sum(part.stop - part.start for part in parts) * self.source.size**2 * 3
        with writing(self.folder.parent):
            require_room(self.folder.parent, raw // LARGEST_RATIO if self.jpeg else raw)

    def _remove_all_but(self, shards: Sequence[Shard]) -> None:
        """Delete the shards of files that are gone, and images that have been replaced."""
        kept = {name for shard in shards for name in (f"{shard.name}.safetensors", shard.path.name)}
        for path in self.folder.iterdir():
            if path.name not in kept:
                with suppress(OSError):  # another process has removed it, or has it open on Windows
                    path.unlink()


def _parts(files: Sequence[str]) -> list[_Part]:
    """Divide files into shards: a shard ends where a name says so, or when it is full."""
    parts, start = [], 0
    names = encoded(files)
    for stop, name in enumerate(names, start=1):
        if zlib.crc32(name) % FILES == 0 or stop - start == 2 * FILES or stop == len(names):
            parts.append(_Part(content_digest(b"\0".join(names[start:stop])).hex(), start, stop))
            start = stop
    return parts


def _is_of(shard: Shard, part: _Part, states: np.ndarray) -> bool:
    """Whether a shard was made of files in these states, (N, 2) of all files."""
    return np.array_equal(shard.index.states, states[part.start : part.stop])


def _states(source: Source) -> np.ndarray:
    """(N, 2) int64, see `state_of`."""
    numbers: list[int] = []
    for file in source.files:
        numbers += state_of(source.path(file))
    return np.array(numbers, np.int64).reshape(-1, 2)
