"""A folder of videos as clips of square frames, decoded once and kept in the cache.

A clip is a video file or a folder of image files. The first start reads all files for their digests, and decodes them.
A later one reads only the clips whose files have another size or time. Where the cache does not hold the frames of
exactly these clips, because one has changed, was added or is gone, all of them are read and decoded again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from permenv.data.cache import Append, cache_folder, cached_rows, find_rows, locked, replace_rows
from permenv.data.clip_files import Clip, FrameFolder, VideoFile, load_clip
from permenv.data.files import (
    DIGEST_BYTES,
    UNSETTLED,
    VIDEO_EXTENSIONS,
    content_digest,
    data_folder,
    fingerprint,
    first_of_each,
    in_parallel,
    labels_by_folder,
    state_of,
    stem,
    summary,
    walk,
    with_copies,
)
from permenv.data.folder import EXTENSIONS as IMAGE_EXTENSIONS
from permenv.data.source import DataError, StillImages, VideoClips, log
from permenv.data.splits import Split, official_split

RECIPE = 3  # increase it when the same files give other frames, so that their cache entries are made again
UNREADABLE = bytes(DIGEST_BYTES)  # kept instead of the digest of a clip that could not be read
IN_FLIGHT = 32  # clips submitted to the threads before the frames of the first are written


def video_folder(
    root: str | Path,
    size: int,
    max_frames: int,
    *,
    min_frames: int = 1,
    split: int | None = None,
    part: Literal["train", "test"] = "train",
    verify: bool = False,
    progress: bool = True,
) -> VideoClips:
    """Read a folder of videos, at any depth, as clips of square frames of one size.

    A clip is a video file, or a folder with image files and no video files directly in it: its frames, in the
    natural order of their names (2 before 10). Images directly in `root` are a clip named "." if there is no
    other clip, and are ignored otherwise. Clips are in the order of their relative paths. The first folder below
    `root` is the class of a clip; clips directly in `root`, which includes folders of frames directly below it,
    are unlabelled. Links to folders are followed, each real folder is read once, hidden files and folders are ignored.

    Frames become squares like the images of `image_folder`, after the rotation that the video's header gives. Of a
    clip of more than `max_frames` frames, that many are kept, evenly spread from the first to the last.

    Official train and test lists like those of UCF-101 (`trainlist01.txt`) and HMDB-51 (`<class>_test_split1.txt`)
    are used if they are in `root`, in its parent, or in a folder directly in either: clips of the other part, and
    clips in no list, are left out.

    Clips that cannot be read or have too few frames, and copies of a clip that is used, are skipped, listed in
    `.frames.skipped` and named in a warning. Clips that are used although frames are missing are listed in `.irregular`
    and named in a warning. FFmpeg and OpenCV may write to stderr about broken files; the environment variables
    OPENCV_FFMPEG_LOGLEVEL=-8 and OPENCV_LOG_LEVEL=ERROR silence them.

    Args:
        root: The folder.
        size: Side of the squares in pixels, at least 1.
        max_frames: Largest number of frames kept of a clip, at least `min_frames`.
        min_frames: Frames that a clip needs in order to be used, at least 1.
        split: Number of the official split, from 1 on. None means split 1 if there are lists, otherwise all clips;
            0 means all clips in any case.
        part: Part of the split.
        verify: Read all files and all that is kept of them again. It finds what a start does not see: files changed
            under the same size and time.
        progress: Show progress bars, see `permenv.progress`.

    Returns:
        The clips, read from the cache when they are needed. Their `frames.name` contains the part and the number of the
        split. The fingerprint is a digest of paths, files, `size`, `max_frames` and `min_frames`. A class has the same
        number in all parts of all splits.

    Raises:
        DataError: If a number is out of range, `root` is not a folder or contains no usable clip, the split does not
            exist or its lists are malformed, a file changes while it is read, the cache cannot be written, or frames
            that are image files must be decoded while Pillow is set to accept damaged ones, see `image_folder`.
    """
    _check(size, max_frames, min_frames, split, part)
    folder = data_folder(root, "video", _expected())
    found = _find(folder)
    lists = _choose_lists(folder, found, split, part)
    clips, missing = (found, []) if lists is None else _listed(folder, found, lists, part)
    digests = _digests(folder, found, clips, verify, progress)
    recipe = f"permenv video folder, recipe {RECIPE}, size {size}, {min_frames} to {max_frames} frames"
    key = fingerprint(recipe, [clip.name for clip in clips], digests)

    def build(append: Append) -> dict[str, Any]:
        results = in_parallel(
            lambda index: load_clip(clips[index], digests[index], size, max_frames, min_frames),
            first_of_each(digests),
            "decoding",
            progress,
            "clip",
            IN_FLIGHT,
        )
        lengths, skipped, irregular = [], [], []
        for name, result in with_copies([clip.name for clip in clips], digests, results):
            if isinstance(result, str):
                skipped.append((name, result))
                continue
            squares, remark = result
            append(squares)
            lengths.append(len(squares))
            if remark:
                irregular.append((name, remark))
        if not lengths:
            raise DataError(f"{folder} contains no usable clip: {summary(skipped)}; {_expected()}")
        return {"folder": str(folder.resolve()), "lengths": lengths, "skipped": skipped, "irregular": irregular}

    pixels, metadata = cached_rows(key, (len(clips) * max_frames, size, size, 3), build, verify=verify)
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
        raise DataError(f"size {size} of frames: pass a number of pixels of at least 1")
    if not 1 <= min_frames <= max_frames:
        raise DataError(
            f"min_frames is {min_frames} and max_frames {max_frames}: pass at least 1, and min_frames <= max_frames"
        )
    if split is not None and split < 0:
        raise DataError(f"split {split}: pass the number of a split from 1 on, or 0 for all clips")
    if part not in ("train", "test"):
        raise DataError(f"part {part!r}: pass 'train' or 'test'")


def _find(root: Path) -> list[Clip]:
    """All clips below a folder, in the order of their names.

    Raises:
        DataError: If there are none.
    """
    clips: list[Clip] = []
    in_root: list[str] = []
    for prefix, names in walk(root):
        folder = prefix.removesuffix("/")
        videos = [name for name in names or () if name.lower().endswith(VIDEO_EXTENSIONS)]
        images = sorted((name for name in names or () if name.lower().endswith(IMAGE_EXTENSIONS)), key=_natural)
        if videos:
            clips += [VideoFile(root, prefix + name) for name in videos]
        elif images and folder:
            clips.append(FrameFolder(root, folder, images))
        elif images:
            in_root = images
        elif names is None or folder.lower().endswith(VIDEO_EXTENSIONS):
            clips.append(VideoFile(root, folder))  # named as skipped later
    if not clips and in_root:
        return [FrameFolder(root, ".", in_root)]
    if not clips:
        raise DataError(f"there are no videos in {root}; {_expected()}")
    return sorted(clips, key=lambda clip: clip.name)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key by which 2 comes before 10: text and numbers in turn, then the name itself."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)], name


def _choose_lists(root: Path, found: Sequence[Clip], split: int | None, part: str) -> Split | None:
    """Find the requested split, None if all clips are used."""
    names = [clip.name for clip in found]
    lists = None if split == 0 else official_split(root, 1 if split is None else split, names)
    if lists is None and (split or part == "test"):
        asked = f"split {split}" if split else "the part 'test'"
        where = root.resolve()
        looked = f"no lists of its clips are in {where}, in {where.parent} or in a folder directly in either"
        if split == 0:
            looked = "split 0 is all clips and has no parts"
        raise DataError(
            f"{asked} of {root} does not exist: {looked}; put trainlist01.txt and testlist01.txt, or "
            "<class>_test_split1.txt, next to the folder, or use all clips, part 'train' of split 0"
        )
    if lists is None:
        log.info("%s: all %d clips, no official split", root, len(found))
    return lists


def _listed(root: Path, found: Sequence[Clip], lists: Split, part: str) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Choose the clips of one part of a split.

    Returns:
        The clips, and (name, reason) of those in the list that are missing.

    Raises:
        DataError: If all are missing.
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
        "%s: %d clips, %s split %d by the lists in %s; %d clips are in neither part and are left out",
        root,
        len(clips),
        part,
        lists.number,
        lists.folder,
        sum(stem(clip.name) not in listed for clip in found),
    )
    return clips, [(name, f"in the {part} list, but missing") for key, name in wanted.items() if key not in there]


def _digests(root: Path, found: Sequence[Clip], clips: Sequence[Clip], verify: bool, progress: bool) -> list[bytes]:
    """Digests of clips. Those whose files have the sizes and times of an earlier start are not read again."""
    since = time.time_ns() - UNSETTLED
    files = [[(path.name, *state_of(path)) for path in clip.paths] for clip in clips]
    states = [content_digest("\0".join(f"{name}/{size}/{when}" for name, size, when in own)) for own in files]
    settled = [max(when for _, _, when in own) < since for own in files]  # a new file may still be written
    names = [content_digest(clip.name) for clip in clips]
    key = fingerprint(f"permenv known clips, recipe {RECIPE}, {root.resolve()}", [], [])

    def recorded(known: dict[bytes, tuple[bytes, bytes]], index: int) -> bytes | None:
        state, digest = known.get(names[index], (b"", b""))
        return digest if state == states[index] else None

    def new(known: dict[bytes, tuple[bytes, bytes]]) -> list[int]:
        return [index for index in range(len(clips)) if settled[index] and (verify or recorded(known, index) is None)]

    def identify(numbers: Sequence[int]) -> dict[int, bytes]:
        def digest(index: int) -> bytes:
            return clips[index].digest or clips[index].identify()

        read = in_parallel(digest, numbers, "reading", progress, "clip", IN_FLIGHT) if numbers else ()
        return dict(zip(numbers, read, strict=True))

    known = _known_clips(key)
    if new(known):
        with locked(cache_folder() / key):  # processes that start together read the clips once
            known = _known_clips(key)
            for index, digest in identify(new(known)).items():
                known[names[index]] = (states[index], digest if clips[index].was_readable else UNREADABLE)
            present = {content_digest(clip.name) for clip in found}
            rows = [name + state + digest for name, (state, digest) in known.items() if name in present]
            replace_rows(key, np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 3, DIGEST_BYTES))
    # a file that could not be read may be readable by now
    again = identify([index for index in range(len(clips)) if recorded(known, index) in (None, UNREADABLE)])
    return [again[index] if index in again else known[name][1] for index, name in enumerate(names)]


def _known_clips(key: str) -> dict[bytes, tuple[bytes, bytes]]:
    """What earlier starts have read: by the digest of a clip's name, that of its files' states, and its own."""
    rows = find_rows(key, (3, DIGEST_BYTES))
    return {} if rows is None else {name.tobytes(): (state.tobytes(), own.tobytes()) for name, state, own in rows}


def _expected() -> str:
    return (
        f"pass a folder of {', '.join(VIDEO_EXTENSIONS)} files, or of folders of {', '.join(IMAGE_EXTENSIONS)} frames, "
        "at any depth; the first folder below it is the class: folder/<class>/.../clip.avi"
    )
