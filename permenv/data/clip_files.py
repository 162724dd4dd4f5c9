"""A clip as it lies on disk, a video file or a folder of frames: its digest, and its frames as squares.

A video file is opened here and FFmpeg is given the descriptor, so what is decoded is what was opened. FFmpeg chooses
the format by the content, and some formats, such as playlists, name other files or addresses to be opened. So only
files that begin as one of a few containers are passed to it, see `permenv.data.containers`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from permenv.data.containers import HEAD_BYTES, is_container
from permenv.data.files import content_digest, fingerprint, open_regular, summary
from permenv.data.folder import MAX_PIXELS, centre_square, decoding, load, read
from permenv.data.source import DataError

if TYPE_CHECKING:
    import cv2

READ_BYTES = 2**20  # a video is hashed in pieces of this size
FEWER_AT_LEAST, FEWER_SHARE = 2, 0.05  # missing frames, in number or as a share, that are not worth a remark


class VideoFile:
    """A clip that is a video file.

    Attributes:
        name: Its path below the root.
        paths: Its files.
        digest: Of its content, or of the reason why there is none; None before `identify`.
        was_readable: Whether `identify` could read it, even if what it read is no video.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.paths: Sequence[Path] = (root.resolve() / name,)
        self.digest: bytes | None = None
        self.was_readable = True
        self._path = self.paths[0]
        self._flaw: str | None = None
        self._stamp: tuple[int, ...] = ()

    def identify(self) -> bytes:
        """Read it and return its digest."""
        content = hashlib.blake2b(digest_size=16)
        self._flaw, self.was_readable = None, True
        try:
            with open_regular(self._path) as file:
                self._stamp = _stamp(file)
                self._flaw = _why_not(file.read(HEAD_BYTES))
                file.seek(0)
                while self._flaw is None and (piece := file.read(READ_BYTES)):
                    content.update(piece)
        except OSError as fault:
            self._flaw, self.was_readable = str(fault.strerror), False
        self.digest = content.digest() if self._flaw is None else content_digest(self._flaw)
        return self.digest

    def squares(self, size: int, max_frames: int) -> tuple[list[np.ndarray], str] | str:
        """Decode up to `max_frames` frames, evenly spread; called after `identify`.

        Returns:
            (size, size, 3) uint8 each, and a remark if the file has fewer frames than its header says, else "".
            Or a str that says why the file cannot be used.

        Raises:
            DataError: If the file has changed since it was identified: the frames would be stored under a wrong key.
        """
        if self._flaw is not None:
            return self._flaw
        try:
            with open_regular(self._path) as file:
                if _stamp(file) == self._stamp:
                    result = self._decode(file, size, max_frames)
                    if _stamp(file) == self._stamp:
                        return result
        except OSError as fault:
            raise _changed(self._path, f": {fault.strerror}") from fault
        raise _changed(self._path)

    def _decode(self, file: BinaryIO, size: int, max_frames: int) -> tuple[list[np.ndarray], str] | str:
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
                kept, count = _grab(capture, spread(max(promised, max_frames), max_frames), size)
                if list(kept) != spread(count, max_frames):
                    kept, count = _grab(self._open(file), spread(count, max_frames), size)
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
    """A clip that is a folder of image files, its frames in order; see `VideoFile`."""

    def __init__(self, root: Path, name: str, files: Sequence[str]) -> None:
        self.name = name
        self.digest: bytes | None = None
        self.was_readable = True
        self._folder, self._files = root / name, files
        self._digests: list[bytes] = []

    @property
    def paths(self) -> Sequence[Path]:
        """Its files. They are not kept: of a million frames they take more memory than their names."""
        return [self._folder / file for file in self._files]

    def identify(self) -> bytes:
        """Read its frames and return the digest of their names and contents."""
        self._digests, self.was_readable = [], True
        for path in self.paths:
            content = read(path)
            self._digests.append(content_digest(content))
            self.was_readable &= isinstance(content, bytes)
        self.digest = bytes.fromhex(fingerprint("frames", self._files, self._digests))
        return self.digest

    def squares(self, size: int, max_frames: int) -> tuple[list[np.ndarray], str] | str:
        """Decode up to `max_frames` frames, evenly spread, and leave out broken ones; called after `identify`.

        Returns:
            (size, size, 3) uint8 each, and a remark if there were broken ones, else "".

        Raises:
            DataError: If a frame has changed since it was identified.
        """
        paths = self.paths
        chosen = spread(len(paths), max_frames)
        loaded = [(paths[index].name, load(paths[index], self._digests[index], size)) for index in chosen]
        broken = [(name, square) for name, square in loaded if isinstance(square, str)]
        squares = [square for _, square in loaded if not isinstance(square, str)]
        remark = f"{len(broken)} of {len(chosen)} frames broken, the first: {summary(broken[:1])}" if broken else ""
        return squares, remark


Clip = VideoFile | FrameFolder


def load_clip(clip: Clip, digest: bytes, size: int, max_frames: int, min_frames: int) -> tuple[np.ndarray, str] | str:
    """Read a clip: (F, size, size, 3) uint8, and a remark or ""; or a str that says why it cannot be used.

    Raises:
        DataError: If it has changed since its digest was taken.
    """
    if clip.digest is None and clip.identify() != digest:  # which an earlier start had taken
        raise DataError(
            f"the clip {clip.name} has changed under the same size and time; read the folder once with "
            "permenv.video_folder(..., verify=True)"
        )
    result = clip.squares(size, max_frames)
    if isinstance(result, str):
        return result
    squares, remark = result
    if len(squares) < min_frames:
        return f"fewer than {min_frames} frames: {len(squares)}" + (f"; {remark}" if remark else "")
    return np.stack(squares), remark


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers 0 to count - 1, ascending, evenly spread, with the first and the last."""
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


def rgb_square(image: np.ndarray, size: int) -> np.ndarray:
    """Turn a frame as OpenCV decodes it, (H, W, 3) BGR, into its centre square, (size, size, 3) RGB."""
    import cv2

    return cv2.cvtColor(centre_square(image, size), cv2.COLOR_BGR2RGB)
