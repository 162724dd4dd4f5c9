"""One shard of a store: images in one file, and an index of them in another.

`<name>-<checksum>.images` holds the images one after the other, each a JPEG or raw pixels. `<name>.safetensors`, the
index, describes the items that they were made of, and has a checksum of each image and one of itself. It is renamed
into place after the images are there, so a shard is either whole or not there. Nothing in it is executed, and only
regular files are opened.

The checksums (CRC-32) find damage, not forgery: see `permenv.data.cache` for what is trusted.
"""

from __future__ import annotations

import mmap
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from permenv.data.cache import MAX_INDEX_BYTES, BrokenError, writing
from permenv.data.files import DIGEST_BYTES, UnusableFileError, open_regular, read_regular
from permenv.data.messages import DataError

# not tracked, a map takes no file descriptor, of which a process has few
_UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Attributes:
        name: 16 bytes that identify its name.
        state: Size in bytes and time in nanoseconds, by which a change of its files is noticed.
        digest: 16 bytes that identify its content, or the reason why there is none.
        images: What is kept of it; none if it cannot be used.
        checksums: CRC-32 of each image.
        remark: Why it cannot be used, or what is amiss although it is; else empty.
    """

    name: bytes
    state: tuple[int, int]
    digest: bytes
    images: Sequence[bytes | memoryview]
    checksums: Sequence[int]
    remark: str


@dataclass(frozen=True, eq=False)
class Index:
    """The index of a shard of n items and m images.

    Attributes:
        names: (n, 16) uint8, see `Outcome`.
        states: (n, 2) int64.
        digests: (n, 16) uint8.
        counts: (n,) int64, how many images each item has.
        remarks: n texts.
        ends: (m,) int64, where each image ends.
        checksums: (m,) uint32.
    """

    names: np.ndarray
    states: np.ndarray
    digests: np.ndarray
    counts: np.ndarray
    remarks: tuple[str, ...]
    ends: np.ndarray
    checksums: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """(n,) int64, the number of each item's first image in the shard."""
        return np.cumsum(self.counts) - self.counts


class Shard:
    """A shard that is open for reading.

    Args:
        folder: Of the store.
        name: Of the shard.

    Raises:
        BrokenError: If it is not as it was written.
        OSError: If it cannot be read, which may pass.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.index = _read_index(folder / f"{name}.safetensors")
        self._content = self._map()

    @property
    def content(self) -> np.ndarray:
        """(bytes,) uint8, all images one after the other, not in memory."""
        return np.frombuffer(self._content, np.uint8)

    @property
    def path(self) -> Path:
        """The file of the images."""
        return self.folder / images_name(self.name, self.index.checksums)

    def image(self, row: int) -> memoryview:
        """The bytes of an image."""
        start = int(self.index.ends[row - 1]) if row else 0
        return self._content[start : int(self.index.ends[row])]

    def is_intact(self, row: int) -> bool:
        """Whether an image is as it was written."""
        return zlib.crc32(self.image(row)) == self.index.checksums[row]

    def images_of(self, item: int) -> range:
        """The numbers of an item's images in the shard."""
        start = int(self.index.starts[item])
        return range(start, start + int(self.index.counts[item]))

    def outcome(self, item: int, state: tuple[int, int]) -> Outcome:
        """What is kept of an item of the shard, under another state."""
        index, rows = self.index, self.images_of(item)
        return Outcome(
            index.names[item].tobytes(),
            state,
            index.digests[item].tobytes(),
            [self.image(row) for row in rows],
            index.checksums[rows.start : rows.stop].tolist(),
            index.remarks[item],
        )

    def _map(self) -> memoryview:
        size = int(self.index.ends[-1]) if len(self.index.ends) else 0
        if not size:  # an empty file cannot be mapped
            return memoryview(b"")
        with open_regular(self.path) as file:
            if os.fstat(file.fileno()).st_size != size:
                raise BrokenError(f"{self.path.name} has not {size} bytes")
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, **_UNTRACKED))

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.folder, self.name, self.path)


def _open_again(folder: Path, name: str, path: Path) -> Shard:
    """Open the shard that another process has open."""
    try:
        shard = Shard(folder, name)
    except (BrokenError, UnusableFileError) as fault:
        raise DataError(f"{path} cannot be opened again: {fault}; start again") from fault
    if shard.path != path:
        raise DataError(f"{path} has been replaced, because the images have changed; start again")
    return shard


def images_name(shard: str, checksums: np.ndarray) -> str:
    """Name of the file of a shard's images. Other images have another name."""
    return f"{shard}-{zlib.crc32(checksums.tobytes()):08x}.images"


def write_shard(temporary: Path, folder: Path, name: str, outcomes: Iterable[Outcome]) -> None:
    """Write a shard, images first.

    Args:
        temporary: An existing folder on the same disk.
        folder: Of the store.
        name: Of the shard.
        outcomes: What became of its items, in their order.

    Raises:
        CacheError: If it cannot be written; a shard of that name is as it was then.
    """
    described, ends, end = [], [], 0
    checksums: list[int] = []
    with writing(folder.parent):
        file = (temporary / "images").open("wb")
    try:
        for outcome in outcomes:
            described.append((outcome.name, outcome.state, outcome.digest, len(outcome.images), outcome.remark))
            checksums += outcome.checksums
            for image in outcome.images:
                end += len(image)
                ends.append(end)
                with writing(folder.parent):
                    file.write(image)
    finally:
        with writing(folder.parent):
            file.close()
    names, states, digests, counts, remarks = zip(*described, strict=True)
    index = Index(
        np.frombuffer(b"".join(names), np.uint8).reshape(-1, DIGEST_BYTES),
        np.array(states, np.int64),
        np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
        np.array(counts, np.int64),
        remarks,
        np.array(ends, np.int64),
        np.array(checksums, np.uint32),
    )
    with writing(folder.parent):
        (temporary / "images").replace(folder / images_name(name, index.checksums))
    write_index(temporary, folder, name, index)


def write_index(temporary: Path, folder: Path, name: str, index: Index) -> None:
    """Write the index of a shard whose images are there already, see `write_shard`."""
    tensors = {
        "names": index.names,
        "states": index.states,
        "digests": index.digests,
        "counts": index.counts,
        "remarks": np.frombuffer("\0".join(index.remarks).encode("utf-8", "surrogateescape"), np.uint8),
        "ends": index.ends,
        "checksums": index.checksums,
    }
    content = safetensors.numpy.save({**tensors, "checksum": _checksum(name, tensors)})
    with writing(folder.parent):
        (temporary / "index").write_bytes(content)
        (temporary / "index").replace(folder / f"{name}.safetensors")


def _checksum(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """(1,) uint32, CRC-32 of an index and of its name."""
    checksum = zlib.crc32(name.encode())
    for key in sorted(tensors):
        checksum = zlib.crc32(f"{key} {tensors[key].shape} {tensors[key].dtype}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(tensors[key]).tobytes(), checksum)
    return np.array([checksum], np.uint32)


def _read_index(path: Path) -> Index:
    try:
        tensors = safetensors.numpy.load(read_regular(path, MAX_INDEX_BYTES))
    except safetensors.SafetensorError as fault:
        raise BrokenError(f"its index is damaged: {fault}") from fault
    except KeyError as fault:
        raise BrokenError(f"its index has values of an unknown type: {fault}") from fault
    found = tensors.pop("checksum", None)
    if found is None or not np.array_equal(found, _checksum(path.stem, tensors)):
        raise BrokenError("the checksum of its index does not match")
    remarks = tensors.pop("remarks").tobytes().decode("utf-8", "surrogateescape").split("\0")
    return Index(remarks=tuple(remarks), **tensors)
