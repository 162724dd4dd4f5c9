"""Official lists of training and test clips, in the formats of UCF-101 and HMDB-51."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from permenv.data.files import stem
from permenv.data.source import DataError

UCF_FILE = re.compile(r"(?P<part>train|test)list(?P<split>\d+)\.txt")
UCF_LINE = re.compile(r"(?P<clip>\S.*?/.*?\S)(\s+\d+)?")  # Class/v_Class_g01_c01.avi 1
HMDB_FILE = re.compile(r"(?P<label>.+)_test_split(?P<split>\d+)\.txt")
HMDB_LINE = re.compile(r"(?P<clip>\S.*?)\s+(?P<code>[012])")  # clip.avi 1
HMDB_CODES = {"0": "unused", "1": "train", "2": "test"}


@dataclass(frozen=True)
class Split:
    """One split of a set of clips.

    Args:
        number: Its number, from 1 on.
        folder: Folder of its lists.
        train: The training clips, relative paths as listed: `Class/clip.avi`.
        test: The test clips.
    """

    number: int
    folder: Path
    train: frozenset[str]
    test: frozenset[str]


def official_split(root: Path, number: int, clips: Collection[str]) -> Split | None:
    """Find the official split of a folder's clips.

    Lists are searched in the folder itself, its parent, the folders in it and those in its parent, in this order.
    Lists that name none of the clips belong to another set and are ignored.
    A clip is identified by its path without the extension, so lists are also valid for converted clips.

    Args:
        root: The folder of clips.
        number: The split, from 1 on.
        clips: Relative paths of the clips in the folder.

    Returns:
        The split, or None if there are no lists.

    Raises:
        DataError: If there are lists but none of this split, a line is malformed, a list cannot be read, or a clip
            is both in training and in test.
    """
    there = {stem(clip) for clip in clips}
    for place in _places(root):
        for splits in _lists(place).values():
            listed = {stem(clip) for parts in splits.values() for part in parts.values() for clip in part}
            if there.isdisjoint(listed):
                continue
            if number not in splits:
                raise DataError(f"there is no split {number} in {place}; choose one of {sorted(splits)}")
            parts = splits[number]
            both = {stem(clip) for clip in parts["train"]} & {stem(clip) for clip in parts["test"]}
            if both:
                raise DataError(
                    f"split {number} in {place} has {len(both)} clips both in training and in test, for example "
                    f"{min(both)}; correct the lists"
                )
            return Split(number, place, frozenset(parts["train"]), frozenset(parts["test"]))
    return None


def _places(root: Path) -> list[Path]:
    """Folders that may contain lists, in the order of the search."""
    root = root.resolve()
    others = (folder for folder in _folders(root.parent) if folder != root)
    return [root, root.parent, *_folders(root), *others]


def _folders(place: Path) -> list[Path]:
    return [path for path in _entries(place) if path.is_dir() and not path.name.startswith(".")]


def _entries(place: Path) -> list[Path]:
    """The sorted content of a folder; empty if it cannot be listed."""
    with suppress(OSError):
        return sorted(place.iterdir())
    return []


Parts = dict[str, set[str]]
"""The clips of each part of a split."""


def _lists(place: Path) -> dict[str, dict[int, Parts]]:
    """All lists in a folder: form, number of the split, part, clips."""
    found: dict[str, dict[int, Parts]] = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
    for path in _entries(place):
        if file := UCF_FILE.fullmatch(path.name):
            for line in _lines(path, UCF_LINE, "Class/clip.avi 1"):
                found["UCF-101"][int(file["split"])][file["part"]].add(line["clip"])
        elif file := HMDB_FILE.fullmatch(path.name):
            for line in _lines(path, HMDB_LINE, "clip.avi 1, with the code 0, 1 or 2"):
                part = HMDB_CODES[line["code"]]
                found["HMDB-51"][int(file["split"])][part].add(f"{file['label']}/{line['clip']}")
    return found


def _lines(path: Path, form: re.Pattern[str], expected: str) -> Iterator[re.Match[str]]:
    """Match the non-blank lines of a list.

    Raises:
        DataError: If a line is malformed, or the list cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")  # like file names
    except OSError as fault:
        raise DataError(f"the split list {path} cannot be read: {fault.strerror}; repair or remove it") from fault
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            match = form.fullmatch(line.strip())
            if match is None:
                raise DataError(f"{path}, line {number}: {line.strip()!r} is not of the form {expected}; correct it")
            yield match
