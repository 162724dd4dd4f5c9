"""A folder of videos as clips of square frames, decoded once and kept in the cache.

A clip is a video file or a folder of image files. As with a folder of images, every start reads and hashes all
files, and decodes only what the cache does not hold yet.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from permenv.data.cache import Append, cached_rows
from permenv.data.files import (
    UNREADABLE,
    VIDEO_EXTENSIONS,
    fingerprint,
    in_parallel,
    labels_by_folder,
    require_folder,
    stem,
    summary,
    walk,
)
from permenv.data.folder import EXTENSIONS as IMAGE_EXTENSIONS
from permenv.data.folder import MAX_PIXELS, centre_square, digest, load, read
from permenv.data.source import DataError, StillImages, VideoClips
from permenv.data.splits import Split, official_split

RECIPE = 1  # raise it when the same files would give other frames: their cache entries are made again
IN_FLIGHT = 32  # clips handed to the threads before the first one's frames are written
READ_BYTES = 2**20  # a video is hashed in pieces of this size
FEWER_AT_LEAST, FEWER_SHARE = 2, 0.05  # a header may promise that many frames too many without a remark

log = logging.getLogger("permenv")


def video_folder(
    root: str | Path,
    size: int,
    max_frames: int,
    *,
    min_frames: int = 1,
    split: int | None = None,
    part: Literal["train", "test"] = "train",
    progress: bool = True,
) -> VideoClips:
    """Read a folder of videos, at any depth, as clips of square frames of one size.

    A clip is a video file, or a folder that directly holds image files and no video files: its frames, in the
    natural order of their names (2 before 10). Where images lie in `root` itself, they are one clip, called ".",
    only if there is no other; otherwise they are passed over. Clips are in the order of their relative paths.
    The first folder below `root` is a clip's class; clips that lie in `root` itself are unlabelled, so a folder
    of frames directly below `root` is as well. Linked folders are followed, hidden files and folders not read.

    Frames become squares as the images of `image_folder` do, turned as the video's rotation says. Of a clip of
    more than `max_frames` frames, that many are kept, evenly spread from the first to the last.

    Official train and test lists as those of UCF-101 (`trainlist01.txt`) and HMDB-51 (`<class>_test_split1.txt`)
    are used if they lie in `root`, in its parent, or in a folder directly in either: clips of the other part, and
    clips in no list, are left out.

    Clips that cannot be read or have too few frames are skipped, listed in `.frames.skipped` and named in a
    warning; so are clips that are used although frames are missing, in `.irregular`. What FFmpeg and OpenCV write
    to stderr about broken files is theirs: OPENCV_FFMPEG_LOGLEVEL=-8 and OPENCV_LOG_LEVEL=ERROR in the environment
    of the process silence them.

    Args:
        root: The folder.
        size: Side of the squares in pixels, at least 1.
        max_frames: Frames kept of a clip at most, at least `min_frames`.
        min_frames: Frames that a clip needs in order to be used, at least 1.
        split: Number of the official split, from 1 on; None is split 1 if there are lists, else all clips;
            0 is all clips whether there are lists or not.
        part: Which part of the split.
        progress: Show progress bars where stderr is a terminal.

    Returns:
        The clips, memory-mapped from the cache. Their `frames.name` says which part of which split they are; the
        fingerprint is a digest of paths, files, `size`, `max_frames` and `min_frames`. A class has the same
        number in all parts of all splits.

    Raises:
        DataError: If a number is out of range, `root` is no folder or holds no clip that can be used, the split
            that was asked for is not there or its lists are malformed, a file changes while it is read, or the
            cache cannot be written.
    """
    _check(size, max_frames, min_frames, split, part)
    folder = Path(root).expanduser()
    found = _find(folder)
    lists = _choose_lists(folder, found, split, part)
    clips, missing = (found, []) if lists is None else _listed(folder, found, lists, part)
    digests = list(in_parallel(lambda clip: clip.identify(), clips, "reading", progress, "clip", IN_FLIGHT))
    recipe = f"permenv video folder, recipe {RECIPE}, size {size}, {min_frames} to {max_frames} frames"
    key = fingerprint(recipe, [clip.name for clip in clips], digests)

    def build(append: Append) -> dict[str, Any]:
        results = in_parallel(
            lambda clip: _load(clip, size, max_frames, min_frames), clips, "decoding", progress, "clip", IN_FLIGHT
        )
        lengths, skipped, irregular = [], [], []
        for clip, result in zip(clips, results, strict=True):
            if isinstance(result, str):
                skipped.append((clip.name, result))
                continue
            squares, remark = result
            append(squares)
            lengths.append(len(squares))
            if remark:
                irregular.append((clip.name, remark))
        if not lengths:
            raise DataError(f"{folder} holds no clip that can be used: {summary(skipped)}; {_expected()}")
        return {"folder": str(folder.resolve()), "lengths": lengths, "skipped": skipped, "irregular": irregular}

    pixels, metadata = cached_rows(key, (len(clips) * max_frames, size, size, 3), build)
    unusable = [(name, reason) for name, reason in metadata["skipped"]]
    irregular = [(name, remark) for name, remark in metadata["irregular"]]
    skipped = sorted(unusable + missing)
    if skipped:
        of = len(clips) + len(missing)
        log.warning("%s: %d of %d clips skipped: %s", folder, len(skipped), of, summary(skipped))
    if irregular:
        log.warning("%s: %d of %d clips lack frames: %s", folder, len(irregular), len(clips), summary(irregular))

    used = {clip.name for clip in clips} - {name for name, _ in unusable}
    all_names = [clip.name for clip in found]  # so that a class has the same number in all parts
    labels, classes = labels_by_folder(all_names, set(all_names) - used)
    frames = StillImages(
        pixels=pixels,
        labels=None if labels is None else np.repeat(labels, metadata["lengths"]),
        classes=classes,
        name=folder.resolve().name + ("" if lists is None else f", {part} split {lists.number}"),
        fingerprint=key,
        skipped=tuple(skipped),
    )
    starts = np.cumsum([0, *metadata["lengths"]], dtype=np.int64)
    return VideoClips(frames, starts, tuple(name for name in all_names if name in used), tuple(irregular))


def _check(size: int, max_frames: int, min_frames: int, split: int | None, part: str) -> None:
    if size < 1:
        raise DataError(f"frames of size {size} were asked for; the size is a number of pixels from 1 on")
    if not 1 <= min_frames <= max_frames:
        raise DataError(
            f"min_frames is {min_frames} and max_frames {max_frames}; min_frames is at least 1 and max_frames no less"
        )
    if split is not None and split < 0:
        raise DataError(f"split {split} was asked for; splits count from 1 on, 0 is all clips")
    if part not in ("train", "test"):
        raise DataError(f"the part {part!r} was asked for; it is 'train' or 'test'")


# ---------------------------------------------------------------------------------------------- what is there


def _find(root: Path) -> list[_Clip]:
    """All clips below a folder, in the order of their names.

    Raises:
        DataError: If there are none, or `root` is missing, a file or not allowed.
    """
    require_folder(root, "video", _expected())
    clips: list[_Clip] = []
    in_root: list[str] = []
    for prefix, names in walk(root):
        folder = prefix.removesuffix("/")
        videos = [name for name in names or () if name.lower().endswith(VIDEO_EXTENSIONS)]
        images = sorted((name for name in names or () if name.lower().endswith(IMAGE_EXTENSIONS)), key=_natural)
        if videos:
            clips += [_VideoFile(root, prefix + name) for name in videos]
        elif images and folder:
            clips.append(_FrameFolder(root, folder, images))
        elif images:
            in_root = images
        elif names is None or folder.lower().endswith(VIDEO_EXTENSIONS):
            clips.append(_VideoFile(root, folder))  # to be named as skipped
    if not clips and in_root:
        return [_FrameFolder(root, ".", in_root)]
    if not clips:
        raise DataError(f"there are no videos in {root}; {_expected()}")
    return sorted(clips, key=lambda clip: clip.name)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key by which 2 comes before 10. The pieces are words and numbers in turn; equal numbers, by name."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)], name


def _choose_lists(root: Path, found: Sequence[_Clip], split: int | None, part: str) -> Split | None:
    """Find the split that was asked for, None if all clips are to be used."""
    names = [clip.name for clip in found]
    lists = None if split == 0 else official_split(root, 1 if split is None else split, names)
    if lists is None and (split or part == "test"):
        asked = f"split {split}" if split else "the part 'test'"
        place = root.resolve()
        looked = f"no lists that name its clips are in {place}, in {place.parent} or in a folder directly in either"
        if split == 0:
            looked = "split 0 is all clips, in no parts"
        raise DataError(
            f"{asked} of {root} was asked for, but {looked}; put trainlist01.txt and testlist01.txt, or "
            "<class>_test_split1.txt, beside the folder, or take all clips as part 'train' of split 0"
        )
    if lists is None:
        log.info("%s: all %d clips, by no official split", root, len(found))
    return lists


def _listed(root: Path, found: Sequence[_Clip], lists: Split, part: str) -> tuple[list[_Clip], list[tuple[str, str]]]:
    """Choose the clips of one part of a split.

    Returns:
        The clips, and (name, reason) of those in the list that are not there.

    Raises:
        DataError: If none are there.
    """
    wanted = {stem(name): name for name in (lists.train if part == "train" else lists.test)}
    listed = {stem(name) for name in lists.train | lists.test}
    there = {stem(clip.name) for clip in found}
    clips = [clip for clip in found if stem(clip.name) in wanted]
    if not clips:
        raise DataError(
            f"none of the {len(wanted)} {part} clips of split {lists.number} in {lists.folder} is in {root}; "
            "add the clips, or choose another part or split"
        )
    log.info(
        "%s: %d clips, %s split %d by the lists in %s; %d clips are in neither part and left out",
        root,
        len(clips),
        part,
        lists.number,
        lists.folder,
        sum(stem(clip.name) not in listed for clip in found),
    )
    return clips, [(name, f"in the {part} list, but not there") for key, name in wanted.items() if key not in there]


# ------------------------------------------------------- one clip: the result or, as a str, why there is none


class _VideoFile:
    """A clip that is a video file."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self._path = root.resolve() / name  # absolute, so that FFmpeg takes no name for that of a protocol
        self._flaw: str | None = None
        self._stamp: tuple[int, int] | None = None

    def identify(self) -> bytes:
        """Digest of the content, or of the reason why there is none; comes before `squares`."""
        self._stamp = self._stamp_now()
        content = hashlib.blake2b(digest_size=16)
        try:
            self._flaw = self._why_not()
            if self._flaw is None:
                with self._path.open("rb") as file:
                    while piece := file.read(READ_BYTES):
                        content.update(piece)
        except OSError as fault:
            self._flaw = str(fault.strerror)
        return content.digest() if self._flaw is None else digest(self._flaw)

    def _why_not(self) -> str | None:
        """Say why OpenCV must not see the file, None if it may."""
        if not self._path.is_file():  # nor wait for a pipe
            return UNREADABLE
        if not self._path.stat().st_size:
            return "empty file"
        try:
            str(self._path).encode()
        except UnicodeEncodeError:  # OpenCV would crash
            return "the path is not UTF-8; rename it"
        return None

    def squares(self, size: int, max_frames: int) -> tuple[list[np.ndarray], str] | str:
        """Decode at most so many frames, evenly spread.

        Returns:
            (size, size, 3) uint8 each, and a remark if the file promised more frames than it has, else "".

        Raises:
            DataError: If the file is no longer the one that was identified: the frames would be kept under a
                wrong key.
        """
        result = self._flaw or self._decode(size, max_frames)
        if self._stamp_now() != self._stamp:
            raise DataError(
                f"{self._path} changed while it was read; start again when the folder is complete and still"
            )
        return result

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _decode(self, size: int, max_frames: int) -> tuple[list[np.ndarray], str] | str:
        """Take the frames where they should lie by the header, and again where it turns out to be wrong."""
        capture = self._open()
        if not capture.isOpened():
            return "OpenCV cannot open it"
        pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if pixels > MAX_PIXELS:
            return f"{pixels:.0f} pixels of a frame are more than the {MAX_PIXELS} allowed"
        promised = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        try:
            kept, count = _grab(capture, _spread(max(promised, max_frames), max_frames), size)
            if list(kept) != _spread(count, max_frames):
                kept, count = _grab(self._open(), _spread(count, max_frames), size)
        except cv2.error:
            return "OpenCV cannot decode it"
        ends_early = promised - count > max(FEWER_AT_LEAST, FEWER_SHARE * promised)
        return list(kept.values()), f"{count} of {promised} promised frames" if ends_early else ""

    def _open(self) -> cv2.VideoCapture:
        """By FFmpeg, to which "%d" in a name is no pattern, and in one thread: the clips are decoded side by side."""
        return cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


class _FrameFolder:
    """A clip that is a folder of image files, its frames in order."""

    def __init__(self, root: Path, name: str, files: Sequence[str]) -> None:
        self.name = name
        self._paths = [root / name / file for file in files]
        self._digests: list[bytes] = []

    def identify(self) -> bytes:
        """Digest of the frames' names and contents; comes before `squares`."""
        self._digests = [digest(read(path)) for path in self._paths]
        return bytes.fromhex(fingerprint("frames", [path.name for path in self._paths], self._digests))

    def squares(self, size: int, max_frames: int) -> tuple[list[np.ndarray], str] | str:
        """Decode at most so many frames, evenly spread; broken ones among them are left out.

        Returns:
            (size, size, 3) uint8 each, and a remark if there were broken ones, else "".

        Raises:
            DataError: If a frame is no longer the one that was identified.
        """
        places = _spread(len(self._paths), max_frames)
        loaded = [(self._paths[place].name, load(self._paths[place], self._digests[place], size)) for place in places]
        broken = [(name, square) for name, square in loaded if isinstance(square, str)]
        squares = [square for _, square in loaded if not isinstance(square, str)]
        remark = f"{len(broken)} of {len(places)} frames broken, the first: {summary(broken[:1])}" if broken else ""
        return squares, remark


_Clip = _VideoFile | _FrameFolder


def _load(clip: _Clip, size: int, max_frames: int, min_frames: int) -> tuple[np.ndarray, str] | str:
    """Read a clip: (F, size, size, 3) uint8, and a remark or ""."""
    result = clip.squares(size, max_frames)
    if isinstance(result, str):
        return result
    squares, remark = result
    if len(squares) < min_frames:
        return f"fewer than {min_frames} frames: {len(squares)}" + (f"; {remark}" if remark else "")
    return np.stack(squares), remark


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the places 0 to count - 1, ascending, evenly spread, with the first and the last."""
    number = min(count, most)
    return [place * (count - 1) // max(1, number - 1) for place in range(number)]


def _grab(capture: cv2.VideoCapture, places: Sequence[int], size: int) -> tuple[dict[int, np.ndarray], int]:
    """Step through a video to its end, whatever its header says of it.

    Only the wanted frames are converted and kept, so a long video takes no more memory than they do.

    Returns:
        The squares at the places that exist, in this order, and the number of frames.
    """
    wanted, kept, count = set(places), {}, 0
    while capture.grab():
        if count in wanted:
            there, image = capture.retrieve()
            if not there:  # the clip ends where its frames do
                break
            kept[count] = centre_square(image, size)
        count += 1
    return kept, count


# ---------------------------------------------------------------------------------------------------- wording


def _expected() -> str:
    return (
        f"give a folder of {', '.join(VIDEO_EXTENSIONS)} files, or of folders of {', '.join(IMAGE_EXTENSIONS)} frames, "
        "at any depth; the first folder below it is read as the class: folder/<class>/.../clip.avi"
    )
