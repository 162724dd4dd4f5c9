"""A folder of videos as clips of square frames, read and decoded once and kept in a store, see `permenv.data.store`.

A clip is a video file or a folder of image files. Each part of a split has a store of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from permenv.data.clip_files import RECIPE, Clip, ClipFiles, FrameFolder, VideoFile
from permenv.data.files import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    data_folder,
    fingerprint,
    labels_by_folder,
    list_some,
    stem,
    walk,
)
from permenv.data.messages import DataError, log
from permenv.data.sets import StillImages, VideoClips
from permenv.data.splits import Split, official_split
from permenv.data.store import Store
from permenv.data.stored import StoredImages


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
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        The clips, read from the store when they are needed. Their `frames.name` contains the part and the number of the
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
    name = folder.resolve().name + ("" if lists is None else f", {part} split {lists.number}")
    chosen = "all" if lists is None else f"{part} split {lists.number}"
    store = Store(ClipFiles(str(folder.resolve()), clips, chosen, size, min_frames, max_frames))
    store.open(verify=verify, progress=progress)

    names, faults = [clip.name for clip in clips], store.faults
    unusable = [(clip, fault) for clip, fault in zip(names, faults, strict=True) if fault]
    if len(unusable) == len(clips):
        raise DataError(f"{folder} contains no usable clip: {list_some(unusable)}; {_expected()}")
    skipped = sorted(unusable + missing)
    if skipped:
        of = len(clips) + len(missing)
        log.warning("%s: %d of %d clips skipped: %s", folder, len(skipped), of, list_some(skipped))
    remarks = zip(names, store.remarks, faults, strict=True)
    irregular = [(clip, remark) for clip, remark, fault in remarks if remark and not fault]
    if irregular:
        log.warning("%s: %d of %d clips lack frames: %s", folder, len(irregular), len(clips), list_some(irregular))

    used = np.array([not fault for fault in faults])
    lengths = store.counts[used]
    names_of_used = [clip for clip, fault in zip(names, faults, strict=True) if not fault]
    all_names = [clip.name for clip in found]  # so that a class has the same number in all parts
    labels, classes = labels_by_folder(all_names, set(all_names) - set(names_of_used))
    recipe = f"permenv video folder, recipe {RECIPE}, size {size}, {min_frames} to {max_frames} frames"
    frames = StillImages(
        pixels=StoredImages(store, used),
        labels=None if labels is None else np.repeat(labels, lengths),
        classes=classes,
        name=name,
        fingerprint=fingerprint(recipe, names, store.digests),
        skipped=tuple(skipped),
    )
    return VideoClips(frames, np.cumsum([0, *lengths], dtype=np.int64), tuple(names_of_used), tuple(irregular))


def clip_names(root: str | Path) -> list[str]:
    """List the clips of a folder without reading them: their relative POSIX paths, sorted.

    Raises:
        DataError: If `root` is not a folder or contains no clip.
    """
    return [clip.name for clip in _find(data_folder(root, "video", _expected()))]


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
    real = root.resolve()
    for prefix, names in walk(root):
        folder = prefix.removesuffix("/")
        videos = [name for name in names or () if name.lower().endswith(VIDEO_EXTENSIONS)]
        images = sorted((name for name in names or () if name.lower().endswith(IMAGE_EXTENSIONS)), key=_natural)
        if videos:
            clips += [VideoFile(real, prefix + name) for name in videos]
        elif images and folder:
            clips.append(FrameFolder(real, folder, images))
        elif images:
            in_root = images
        elif names is None or folder.lower().endswith(VIDEO_EXTENSIONS):
            clips.append(VideoFile(real, folder))  # named as skipped later
    if not clips and in_root:
        return [FrameFolder(real, ".", in_root)]
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


def _expected() -> str:
    return (
        f"pass a folder of {', '.join(VIDEO_EXTENSIONS)} files, or of folders of {', '.join(IMAGE_EXTENSIONS)} frames, "
        "at any depth; the first folder below it is the class: folder/<class>/.../clip.avi"
    )
