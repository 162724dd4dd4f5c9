"""Official lists of training and test clips, in the formats of UCF-101 and HMDB-51."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from permenv.data.files import is_folder, listing, read_regular, stem
from permenv.data.messages import DataError, log

UCF_FILE = re.compile(r"(?P<part>train|test)list(?P<split>\d+)\.txt")
HMDB_FILE = re.compile(r"(?P<label>.+)_test_split(?P<split>\d+)\.txt")
HMDB_CODES = {"0": "unused", "1": "train", "2": "test"}
MAX_BYTES = 2**26  # of one list
SHOWN = 80  # characters of a malformed line


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
    Lists that name none of the clips belong to another set and are ignored; a warning names them if they are malformed.
    A clip is identified by its path without the extension, so lists are also valid for converted clips.

    Args:
        root: The folder of clips.
        number: The split, from 1 on.
        clips: Relative paths of the clips in the folder.

    Returns:
        The split, or None if there are no lists.

    Raises:
        DataError: If there are lists but none of this split, or a clip is both in training and in test. If a line is
            malformed or a list cannot be read, and these lists name clips of the folder or are inside of it.
    """
    root = root.resolve()
    there = {stem(clip) for clip in clips}
    for folder in _places(root):
        chosen: Splits | None = None
        for splits, fault in _lists(folder):
            listed = {stem(clip) for parts in splits.values() for part in parts.values() for clip in part}
            belong = not there.isdisjoint(listed)
            if fault and (belong or root in (folder, folder.parent)):
                raise DataError(f"{fault}; correct or remove the list")
            if fault:
                log.warning("the lists in %s name no clip of %s and are ignored: %s", folder, root, fault)
            if belong and chosen is None:
                chosen = splits
        if chosen is not None:
            return _choose(number, chosen, folder)
    return None


def list_files(root: Path) -> list[Path]:
    """Find the files that `official_split` may read, by their names alone."""
    return [
        folder / name
        for folder in _places(root.resolve())
        for name in _names(folder)
        if any(form.fullmatch(name) for form, _, _ in FORMS)
    ]


Splits = dict[int, dict[str, set[str]]]
"""By split and by part, the clips."""


def _choose(number: int, splits: Splits, folder: Path) -> Split:
    if number not in splits:
        raise DataError(f"there is no split {number} in {folder}; choose one of {sorted(splits)}")
    parts = splits[number]
    both = {stem(clip) for clip in parts["train"]} & {stem(clip) for clip in parts["test"]}
    if both:
        raise DataError(
            f"split {number} in {folder} has {len(both)} clips both in training and in test, for example "
            f"{min(both)}; correct the lists"
        )
    return Split(number, folder, frozenset(parts["train"]), frozenset(parts["test"]))


def _places(root: Path) -> list[Path]:
    """Folders that may contain lists, in the order of the search."""
    others = (folder for folder in _folders(root.parent) if folder != root)
    return [root, root.parent, *_folders(root), *others]


def _folders(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [folder / entry.name for entry in listing(folder) if is_folder(entry)]
    return []


def _names(folder: Path) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in listing(folder)]
    return []


def _ucf(file: re.Match[str], line: str) -> tuple[str, str] | None:
    """Part and clip of a line such as `Class/v_Class_g01_c01.avi 1`; the number is optional."""
    words = line.rsplit(maxsplit=1)
    clip = words[0] if len(words) == 2 and words[1].isdecimal() else line
    return (file["part"], clip) if "/" in clip[1:-1] else None


def _hmdb(file: re.Match[str], line: str) -> tuple[str, str] | None:
    """Part and clip of a line such as `clip.avi 1`."""
    words = line.rsplit(maxsplit=1)
    if len(words) < 2 or words[1] not in HMDB_CODES:
        return None
    return HMDB_CODES[words[1]], f"{file['label']}/{words[0]}"


FORMS = (
    (UCF_FILE, _ucf, "Class/clip.avi 1"),
    (HMDB_FILE, _hmdb, "clip.avi 1, with the code 0, 1 or 2"),
)


def _lists(folder: Path) -> Iterator[tuple[Splits, str]]:
    """Read the lists in a folder.

    Yields:
        For each form, the clips, and the first fault of a list or "".
    """
    names = _names(folder)
    for form, parse, expected in FORMS:
        splits: Splits = defaultdict(lambda: defaultdict(set))
        faults = []
        for file in filter(None, map(form.fullmatch, names)):
            path = folder / file.string
            try:
                text = read_regular(path, MAX_BYTES).decode("utf-8", "surrogateescape")  # like file names
            except OSError as fault:
                faults.append(f"the split list {path} cannot be read: {fault.strerror}")
                continue
            lines = [line.strip() for line in text.splitlines()]
            parsed = [parse(file, line) for line in lines]
            for found in filter(None, parsed):
                splits[int(file["split"])][found[0]].add(found[1])
            wrong = [number for number, line in enumerate(lines) if line and parsed[number] is None]
            if wrong:
                line = lines[wrong[0]][:SHOWN]
                faults.append(f"{path}, line {wrong[0] + 1}: {line!r} is not of the form {expected}")
        yield splits, faults[0] if faults else ""
