"""From a folder of videos with official lists, such as UCF-101 and HMDB-51, to what action recognition takes.

Every clip is read once for all splits: the cache holds its frames once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from permenv.data import DataError, VideoClips, video_folder
from permenv.data.files import list_some, stem
from permenv.data.messages import log
from permenv.data.splits import Split, official_split
from permenv.data.videos import clip_names
from permenv.transfer.action_recognition import ActionSplit

_FRAMES = 25  # of a clip, as Wang et al. test


def read_actions(
    root: str | Path,
    input_size: int,
    numbers: Sequence[int] = (1, 2, 3),
    *,
    frames: int = _FRAMES,
    progress: bool = True,
) -> tuple[VideoClips, list[ActionSplit]]:
    """Read the lists of a folder's official splits, then all of its clips, which takes long.

    Args:
        root: Folder of videos; see `permenv.video_folder` for its layout and that of the lists.
        input_size: Side of the images that the trunk takes, in pixels. Frames are larger by 256 / 224, so that a test
            crop is cut without being resized.
        numbers: Numbers of the splits.
        frames: Largest number of frames kept of a clip, evenly spread.
        progress: Show progress bars, see `permenv.progress`.

    Returns:
        The clips, those of no list among them, and the splits.

    Raises:
        DataError: If the clips or the lists cannot be read, there are no lists, or a split lacks a part.
    """
    names, folder = clip_names(root), Path(root).expanduser()
    lists = [_official_lists(folder, names, number) for number in numbers]
    clips = video_folder(root, round(input_size * 256 / 224), frames, split=0, progress=progress)
    return clips, [_action_split(folder, clips, each) for each in lists]


def official_action_split(root: str | Path, clips: VideoClips, number: int) -> ActionSplit:
    """Find the clips of one official split.

    A warning names listed clips that are not among the clips, because they are missing or could not be used, and
    classes of test clips that have no training clip and thus cannot be recognised.

    Args:
        root: The folder.
        clips: Its clips, in both parts.
        number: Of the split, from 1 on.

    Raises:
        DataError: If there are no lists or no such split, the lists are malformed, or no clip of a part is there.
    """
    folder = Path(root).expanduser()
    return _action_split(folder, clips, _official_lists(folder, clips.names, number))


def _official_lists(folder: Path, names: Collection[str], number: int) -> Split:
    lists = official_split(folder, number, names)
    if lists is None:
        where = folder.resolve()
        raise DataError(
            f"no lists of the clips of {where} are in it, in {where.parent} or in a folder directly in either; put "
            "trainlist01.txt and testlist01.txt, or <class>_test_split1.txt, next to the folder"
        )
    return lists


def _action_split(folder: Path, clips: VideoClips, lists: Split) -> ActionSplit:
    numbers = {stem(name): clip for clip, name in enumerate(clips.names)}
    found, absent = {}, []
    for part, listed in (("train", lists.train), ("test", lists.test)):
        keys = {stem(name): name for name in listed}
        found[part] = np.array(sorted(numbers[key] for key in keys.keys() & numbers.keys()), dtype=np.int64)
        absent += [(name, f"in the {part} list, but not usable") for key, name in keys.items() if key not in numbers]
        if not len(found[part]):
            raise DataError(
                f"none of the {len(listed)} {part} clips of split {lists.number} in {lists.folder} is in {folder}; add "
                "the clips, or choose another split"
            )
    split = ActionSplit(lists.number, found["train"], found["test"])
    _report(folder, clips, split, lists, sorted(absent))
    return split


def _report(folder: Path, clips: VideoClips, split: ActionSplit, lists: Split, absent: list[tuple[str, str]]) -> None:
    if absent:
        of = len(lists.train) + len(lists.test)
        log.warning(
            "%s, split %d: %d of %d clips left out: %s", folder, split.number, len(absent), of, list_some(absent)
        )
    labels = clips.frames.labels
    if labels is None:
        return
    trained, tested = (set(labels[clips.starts[part]].tolist()) for part in (split.train, split.test))
    unknown = [(clips.frames.classes[label], "no training clip") for label in sorted(tested - trained)]
    if unknown:
        log.warning(
            "%s, split %d: %d of %d classes cannot be recognised: %s",
            folder,
            split.number,
            len(unknown),
            len(clips.frames.classes),
            list_some(unknown),
        )
