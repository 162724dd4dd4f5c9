"""Clips as they lie on disk, video files and folders of frames, as the source of a store.

A video file is opened here and FFmpeg is given the descriptor, so what is decoded is what was opened. FFmpeg chooses
the format by the content, and some formats, such as playlists, name other files or addresses to be opened. So only
files that begin as one of a few containers are passed to it, see `permenv.data.containers`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from permenv.data.containers import HEAD_BYTES, is_container
from permenv.data.decode import MAX_PIXELS, decoding, load, read, rgb_square
from permenv.data.files import DIGEST_BYTES, content_digest, fingerprint, list_some, open_regular, state_of
from permenv.data.messages import DataError
from permenv.data.store import Content, Squares, unusable

if TYPE_CHECKING:
    import cv2

RECIPE = 3  # increase it when the same files give other frames, so that they are decoded again
READ_BYTES = 2**20  # a video is hashed in pieces of this size
FEWER_AT_LEAST, FEWER_SHARE = 2, 0.05  # missing frames, in number or as a share, that are not worth a remark


@dataclass(frozen=True)
class ClipFiles:
    """Clips as the source of a store, see `permenv.data.store.Source`.

    Args:
        root: Absolute path of the folder.
        clips: The clips.
        chosen: Which of the clips in the folder these are, in words.
        size: Side of the squares in pixels.
        min_frames: Frames that a clip needs in order to be used, at least 1.
        most: Largest number of frames kept of a clip.
    """

    root: str
    clips: Sequence[Clip] = field(repr=False)
    chosen: str
    size: int
    min_frames: int
    most: int

    unit = "clip"
    lossless = True

    @property
    def name(self) -> str:
        """The folder, which of its clips, and how they are decoded."""
        return f"clips, recipe {RECIPE}, {self.min_frames} to {self.most} frames, {self.chosen}, {self.root}"

    @cached_property
    def items(self) -> list[str]:
        """Relative POSIX paths of the clips."""
        return [clip.name for clip in self.clips]

    def path(self, item: int) -> str:
        """Where a clip is."""
        return f"{self.root}/{self.clips[item].name}"

    def state(self, item: int) -> tuple[int, int]:
        """Size and time of a video, or what stands for those of all frames of a folder."""
        return self.clips[item].state()

    def read(self, item: int) -> Content:
        """Read a clip, of which up to `most` frames are decoded to (size, size, 3) uint8 RGB."""
        content = self.clips[item].read(self.size, self.most)

        def squares() -> Squares | str:
            made = content.squares()
            if isinstance(made, str) or len(made[0]) >= self.min_frames:
                return made
            frames, remark = made
            return f"fewer than {self.min_frames} frames: {len(frames)}" + (f"; {remark}" if remark else "")

        return replace(content, squares=squares)


class VideoFile:
    """A clip that is a video file.

    Args:
        root: Absolute path of the folder that all clips are in.
        name: Path of the file below it.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self._path = root / name

    def state(self) -> tuple[int, int]:
        """Size and time by which a change is noticed."""
        return state_of(self._path)

    def read(self, size: int, max_frames: int) -> Content:
        """Read it for its digest, and decode it later.

        Args:
            size: Side of the squares in pixels.
            max_frames: How many frames are decoded, evenly spread.

        Returns:
            Its remark says so if the file has fewer frames than its header says.
        """
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        try:
            with open_regular(self._path) as file:
                stamp = _stamp(file)
                flaw = _why_not(file.read(HEAD_BYTES))
                file.seek(0)
                while flaw is None and (piece := file.read(READ_BYTES)):
                    digest.update(piece)
        except OSError as fault:
            return unusable(str(fault.strerror), readable=False)
        if flaw is not None:
            return unusable(flaw, readable=True)
        return Content(digest.digest(), True, lambda: self._squares(stamp, size, max_frames))

    def _squares(self, stamp: tuple[int, ...], size: int, max_frames: int) -> Squares | str:
        """Decode the file if it is as it was when it was read."""
        try:
            with open_regular(self._path) as file:
                if _stamp(file) == stamp:
                    result = self._decode(file, size, max_frames)
                    if _stamp(file) == stamp:
                        return result
        except OSError as fault:
            raise _changed(self._path, f": {fault.strerror}") from fault
        raise _changed(self._path)

    def _decode(self, file: BinaryIO, size: int, max_frames: int) -> Squares | str:
        """Decode the frames at the positions that follow from the header, and again if the header is wrong."""
        import cv2

        capture = self._open(file)
        if not capture.isOpened():
            return "OpenCV cannot open it"
        pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if pixels > MAX_PIXELS:
            return f"{pixels:.0f} pixels of a frame are more than the {MAX_PIXELS} allowed"
        promised = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        try:
            with decoding.using(int(pixels)):
                kept, count = _grab(capture, evenly_spaced(max(promised, max_frames), max_frames), size)
                if list(kept) != evenly_spaced(count, max_frames):
                    kept, count = _grab(self._open(file), evenly_spaced(count, max_frames), size)
        except cv2.error:
            return "OpenCV cannot decode it"
        ends_early = promised - count > max(FEWER_AT_LEAST, FEWER_SHARE * promised)
        return list(kept.values()), f"{count} of {promised} promised frames" if ends_early else ""

    def _open(self, file: BinaryIO) -> cv2.VideoCapture:
        """Open the file with FFmpeg, in one thread: clips run in parallel."""
        import cv2

        opened = Path("/dev/fd") / str(file.fileno())
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # on macOS, this name shares the descriptor's position
        name = str(opened if opened.exists() else self._path)  # Windows has no such names
        return cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _changed(path: Path, reason: str = "") -> DataError:
    return DataError(f"{path} changed while it was read{reason}; start again when no process writes to the folder")


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    """What changes when an open file is written to."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _why_not(head: bytes) -> str | None:
    """Say why OpenCV must not open a file that begins like this, None if it may."""
    if not head:
        return "empty file"
    return None if is_container(head) else "not an AVI, MP4, QuickTime, Matroska, WebM, MPEG or GIF file"


class FrameFolder:
    """A clip that is a folder of image files.

    Args:
        root: Absolute path of the folder that all clips are in.
        name: Path of the clip below it.
        files: Names of its frames, in order.
    """

    def __init__(self, root: Path, name: str, files: Sequence[str]) -> None:
        self.name = name
        self._folder, self._files = root / name, files

    def state(self) -> tuple[int, int]:
        """A number for the names, sizes and times of all frames, and the latest time."""
        states = [state_of(self._folder / file) for file in self._files]
        described = [f"{file}/{size}/{when}" for file, (size, when) in zip(self._files, states, strict=True)]
        number = int.from_bytes(content_digest("\0".join(described))[:8], "little", signed=True)
        return number, max(when for _, when in states)

    def read(self, size: int, max_frames: int) -> Content:
        """Read all frames for their digest, and decode some later.

        Args:
            size: Side of the squares in pixels.
            max_frames: How many frames are decoded, evenly spread; broken ones are left out.

        Returns:
            Its remark says so if there are broken frames.
        """
        digests, readable = [], True
        for file in self._files:
            content = read(self._folder / file)
            digests.append(content_digest(content))
            readable &= isinstance(content, bytes)
        digest = bytes.fromhex(fingerprint("frames", self._files, digests))
        return Content(digest, readable, lambda: self._squares(digests, size, max_frames))

    def _squares(self, digests: Sequence[bytes], size: int, max_frames: int) -> Squares:
        """Decode frames that have these digests."""
        chosen = evenly_spaced(len(self._files), max_frames)
        names = [self._files[index] for index in chosen]
        loaded = [load(self._folder / self._files[index], digests[index], size) for index in chosen]
        broken = [(name, square) for name, square in zip(names, loaded, strict=True) if isinstance(square, str)]
        squares = [square for square in loaded if not isinstance(square, str)]
        remark = f"{len(broken)} of {len(chosen)} frames broken, the first: {list_some(broken[:1])}" if broken else ""
        return squares, remark


Clip = VideoFile | FrameFolder


def evenly_spaced(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers 0 to count - 1, ascending, evenly spaced, with the first and the last."""
    number = min(count, most)
    return [index * (count - 1) // max(1, number - 1) for index in range(number)]


def _grab(capture: cv2.VideoCapture, positions: Sequence[int], size: int) -> tuple[dict[int, np.ndarray], int]:
    """Step through a video to its end, whatever its header says.

    Only the wanted frames are converted and kept, so a long video needs no more memory than they do.

    Returns:
        The squares at the positions that exist, in order, and the number of frames.
    """
    wanted, kept, count = set(positions), {}, 0
    while capture.grab():
        if count in wanted:
            there, image = capture.retrieve()
            if not there:  # the clip ends where its frames do
                break
            kept[count] = rgb_square(image, size)
        count += 1
    return kept, count
