"""The images of a folder of files, read and decoded once and kept in shards.

A store is a folder `<cache>/images-<key>/`, one for each folder of files and each way to decode them. An item is an
image file, which gives one image, or a clip, which gives its frames. A shard holds the images of some thousand
consecutive files, or of as many clips as have some thousand frames, see `permenv.data.shards`. One process builds a
store, under a lock, and others wait for it; a process that is killed loses the shard that it was at.

A start reads the indices of the shards, but neither files nor images. It compares size and time of every file. The
content of an item that has another size or time is read and compared, and if it has changed, it is decoded again and
its shard is written again. Which items share a shard depends on their names alone, in such a way that a new or missing
item concerns its own shard and its neighbours; these are written again from what they held.

A set of at most `RAW_BYTES` of pixels is kept as it is. A larger one is kept as JPEG, for photos about a ninth of the
size; from then on the data are what these decode to. Frames of clips are always kept as they are.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from permenv.data.cache import (
    BrokenError,
    CacheError,
    cache_folder,
    locked,
    require_room,
    require_trust,
    temporary_folder,
    writing,
)
from permenv.data.files import (
    DIGEST_BYTES,
    UNKNOWN_TIME,
    UNSETTLED,
    UnusableFileError,
    content_digest,
    encoded,
    faults_of,
)
from permenv.data.messages import DataError, log
from permenv.data.parallel import in_parallel
from permenv.data.shards import Outcome, Shard, write_index, write_shard

FORMAT = 2  # of a store; increase it when the same images would be kept otherwise
RAW_BYTES = 2**32  # of pixels: a set that the memory of any machine that trains holds
QUALITY, SUBSAMPLING = 95, "420"  # 45 dB of signal to noise on photos of 255 pixels, in a ninth of the bytes
LARGEST_RATIO = 20  # of the bytes of pixels and of their JPEG, on disk space that is required beforehand
IMAGES = 4096  # of a shard, on average, if its items have as many as they may; it has at most twice as many
IN_FLIGHT = 128  # images whose items are submitted to the threads before the result of the first is written
FEWEST = 32  # items of a shard, on average, and in flight, however many images they have

Squares = tuple[Sequence[np.ndarray], str]
"""The images of an item, (S, S, 3) uint8 each, at least one; and what is amiss with it, or ""."""


@dataclass(frozen=True)
class Content:
    """What was read of an item.

    Attributes:
        digest: 16 bytes that identify it, or the reason why it cannot be read.
        readable: Whether it could be read, even if it cannot be used.
        squares: Makes the images; a str says why that is impossible. It raises a DataError if the files have changed
            since they were read.
    """

    digest: bytes
    readable: bool
    squares: Callable[[], Squares | str]


def unusable(reason: str, *, readable: bool) -> Content:
    """The content of an item that cannot be read, or that could be and cannot be used."""
    return Content(content_digest(reason), readable, lambda: reason)


class Source(Protocol):
    """Where the images of a store come from: items, by their numbers. It can be pickled."""

    @property
    def name(self) -> str:
        """What identifies the folder, and everything else that the images of an item depend on."""

    @property
    def items(self) -> Sequence[str]:
        """Names of the items, in order."""

    @property
    def unit(self) -> str:
        """What an item is, in a word, for the progress bar."""

    @property
    def size(self) -> int:
        """S, side of the images in pixels."""

    @property
    def most(self) -> int:
        """The largest number of images of an item."""

    @property
    def lossless(self) -> bool:
        """Whether the images are kept as they are, however many they are."""

    def path(self, item: int) -> str:
        """Where an item is."""

    def state(self, item: int) -> tuple[int, int]:
        """Size and time by which a change of an item is noticed, see `permenv.data.files.state_of`."""

    def read(self, item: int) -> Content:
        """Read an item."""


@dataclass(frozen=True)
class _Part:
    """The items of a shard: its name, and where they are in the list of all items."""

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
        shards: In the order of the items; empty before `open`.

    Raises:
        CacheError: If the cache is not to be trusted.
    """

    def __init__(self, source: Source):
        self.source = source
        self.jpeg = not source.lossless and len(source.items) * source.size**2 * 3 > RAW_BYTES
        cache = cache_folder()
        require_trust(cache)
        key = f"permenv store {FORMAT}, {self.encoding}, size {source.size}, {source.name}"
        self.folder = cache / f"images-{content_digest(os.fsencode(key)).hex()}"
        self.shards: list[Shard] = []
        self._parts = _parts(source.items, max(FEWEST, IMAGES // source.most))

    @property
    def encoding(self) -> str:
        """How images are kept, in words."""
        return f"JPEG of quality {QUALITY}, {SUBSAMPLING}" if self.jpeg else "raw"

    @property
    def digests(self) -> list[bytes]:
        """Of the items' contents, 16 bytes each, or of the reasons why there are none."""
        content = b"".join([shard.index.digests.tobytes() for shard in self.shards])
        return [content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES)]

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64, how many images each item has."""
        return np.concatenate([shard.index.counts for shard in self.shards])

    @property
    def remarks(self) -> list[str]:
        """Why each item cannot be used, or what is amiss although it is; else empty."""
        return [remark for shard in self.shards for remark in shard.index.remarks]

    @property
    def faults(self) -> list[str]:
        """Why each item is not used; else empty. Of identical ones the first is used."""
        reasons = ["" if count else remark for count, remark in zip(self.counts, self.remarks, strict=True)]
        return faults_of(self.source.items, self.digests, reasons)

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
        known = np.full_like(states, UNKNOWN_TIME - 1) if verify else states  # no item has such a time
        self.shards = []
        for part in self._parts:
            shard = self._try_to_open(part.name)
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

    def _try_to_open(self, name: str, warn: bool = False) -> Shard | None:
        """Open a shard; None if there is none, or it is broken, of which a warning can be given."""
        if not os.path.lexists(self.folder / f"{name}.safetensors"):
            return None
        try:
            return Shard(self.folder, name)
        except (BrokenError, UnusableFileError) as fault:
            if warn:
                log.warning("shard %s of %s cannot be used and is made again: %s", name, self.folder, fault)
            return None
        except OSError as fault:
            raise CacheError(
                f"shard {name} of {self.folder} cannot be read: {fault.strerror or fault}; start again, allow "
                "more open files (ulimit -n) if they are too many, and delete the folder if that does not help"
            ) from fault

    def _open(self, part: _Part) -> Shard:
        shard = self._try_to_open(part.name)
        if shard is None:
            raise CacheError(
                f"shard {part.name} of {self.folder} reads back otherwise than it was written; set the environment "
                "variable PERMENV_CACHE to a folder on a reliable disk"
            )
        return shard

    def _find_items(self, parts: Sequence[_Part]) -> dict[bytes, tuple[Shard, int]]:
        """Find items in the shards that are of none of these parts, by the digests of their names."""
        others = {path.stem for path in self.folder.glob("*.safetensors")} - {part.name for part in parts}
        shards = [shard for shard in map(self._try_to_open, sorted(others)) if shard is not None]
        return {name.tobytes(): (shard, row) for shard in shards for row, name in enumerate(shard.index.names)}

    # Building

    def _build(self, states: np.ndarray, known: np.ndarray, since: int, verify: bool, progress: bool) -> list[Shard]:
        """Open all shards, and write those that are not of items in the known states, in order. The lock is held."""
        old = {part.name: self._try_to_open(part.name, warn=True) for part in self._parts}
        shards = {name: shard for name, shard in old.items() if shard is not None}
        missing = [
            part for part in self._parts if part.name not in shards or not _is_of(shards[part.name], part, known)
        ]
        self._require_room([part for part in missing if old[part.name] is None])
        elsewhere = self._find_items(self._parts)

        def work(place: tuple[_Part, int]) -> tuple[Outcome, bool]:
            part, row = place
            item, shard = part.start + row, old[part.name]
            before = elsewhere.get(self._digest_of_name(item)) if shard is None else (shard, row)
            size, when = states[item]
            return self._outcome(item, (int(size), int(when)), before, since, verify)

        todo = [(part, row) for part in missing for row in range(part.stop - part.start)]
        unit = self.source.unit
        in_flight = max(FEWEST, IN_FLIGHT // self.source.most)
        with closing(in_parallel(work, todo, f"{unit}s", progress, unit, in_flight)) as results:
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
        self, item: int, state: tuple[int, int], before: tuple[Shard, int] | None, since: int, verify: bool
    ) -> tuple[Outcome, bool]:
        """Read an item where need be.

        Args:
            item: Its number.
            state: Its state.
            before: A shard that holds it, and where.
            since: Time in nanoseconds; an item that has changed since then may still change under the same state.
            verify: Read it in any case.

        Returns:
            What is to be kept of it, and whether that is what the shard holds.
        """
        if before is not None and not verify and state == tuple(before[0].index.states[before[1]]):
            return before[0].outcome(before[1], state), True
        content = self.source.read(item)
        # an item that cannot be read may be readable the next time
        recorded = state if content.readable and state[1] < since else (state[0], UNKNOWN_TIME)
        if before is not None and _holds(*before, content, verify):
            result = before[0].outcome(before[1], recorded), True
        else:
            result = self._made(item, content, recorded), False
        if content.readable and self.source.state(item) != state:
            raise DataError(
                f"{self.source.path(item)} changed while it was read; start again when no process writes to the folder"
            )
        return result

    def _made(self, item: int, content: Content, state: tuple[int, int]) -> Outcome:
        """Decode a content, or take the reason why there is none."""
        made = content.squares()
        squares, remark = ([], made) if isinstance(made, str) else made
        images = [self._encode(square) for square in squares]
        checksums = [zlib.crc32(image) for image in images]
        name = self._digest_of_name(item)
        return Outcome(name, state, content.digest, images, checksums, remark.replace("\0", " "))

    def _digest_of_name(self, item: int) -> bytes:
        return content_digest(self.source.items[item])

    def _encode(self, image: np.ndarray) -> bytes:
        if not self.jpeg:
            return image.tobytes()
        import simplejpeg

        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), QUALITY, "RGB", SUBSAMPLING)

    def _again(self, old: Shard, part: _Part, row: int) -> Outcome:
        """What an open shard holds of an item; made again if it is damaged."""
        size, when = old.index.states[row]
        state = int(size), int(when)
        if all(map(old.is_intact, old.images_of(row))):
            return old.outcome(row, state)
        item = part.start + row
        content = self.source.read(item)
        if content.digest != old.index.digests[row].tobytes():
            raise DataError(
                f"what is kept of {self.source.path(item)} in {old.path} is damaged, and the file has changed since; "
                "start again"
            )
        return self._made(item, content, state)

    def _write(self, part: _Part, outcomes: Iterable[Outcome]) -> None:
        with self._temporary() as temporary:
            write_shard(temporary, self.folder, part.name, outcomes)

    def _update(self, part: _Part, old: Shard, results: Sequence[tuple[Outcome, bool]]) -> None:
        """Write what has changed of a shard: all, or only the states of its items, or nothing."""
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
        raw = sum(part.stop - part.start for part in parts) * self.source.most * self.source.size**2 * 3
        with writing(self.folder.parent):
            require_room(self.folder.parent, raw // LARGEST_RATIO if self.jpeg else raw)

    def _remove_all_but(self, shards: Sequence[Shard]) -> None:
        """Delete the shards of items that are gone, and images that have been replaced."""
        kept = {name for shard in shards for name in (f"{shard.name}.safetensors", shard.path.name)}
        for path in self.folder.iterdir():
            if path.name not in kept:
                with suppress(OSError):  # another process has removed it, or has it open on Windows
                    path.unlink()


def _parts(items: Sequence[str], average: int) -> list[_Part]:
    """Divide items into shards: a shard ends where a name says so, or when it is full."""
    parts, start = [], 0
    names = encoded(items)
    for stop, name in enumerate(names, start=1):
        if zlib.crc32(name) % average == 0 or stop - start == 2 * average or stop == len(names):
            parts.append(_Part(content_digest(b"\0".join(names[start:stop])).hex(), start, stop))
            start = stop
    return parts


def _is_of(shard: Shard, part: _Part, states: np.ndarray) -> bool:
    """Whether a shard was made of items in these states, (N, 2) of all items."""
    return np.array_equal(shard.index.states, states[part.start : part.stop])


def _holds(shard: Shard, row: int, content: Content, verify: bool) -> bool:
    """Whether a shard holds what is made of a content in this row; if verified, without damage."""
    is_of = shard.index.digests[row].tobytes() == content.digest
    return is_of and (not verify or all(map(shard.is_intact, shard.images_of(row))))


def _states(source: Source) -> np.ndarray:
    """(N, 2) int64, see `Source.state`."""
    numbers: list[int] = []
    for item in range(len(source.items)):
        numbers += source.state(item)
    return np.array(numbers, np.int64).reshape(-1, 2)
