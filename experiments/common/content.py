"""What is in the folders and files that options name, and in the sources: a result says of which content it is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from permenv import CheckpointError, DataError
from permenv.data.files import read_regular, walk
from permenv.data.splits import MAX_BYTES, list_files
from permenv.data.voc import find_release

_PACKAGES = ("permenv", "agents", "experiments")
_TEXT = (".txt", ".xml")  # lists of clips and images, annotations of VOC


def contents_of(options: Any, digest: Callable[[Path, bool], str] | None = None) -> dict[str, str]:
    """Return a digest of every folder among options: it changes when a file is added, removed, renamed or edited.

    Times do not count, so data that are copied to another disk or machine stay the same data.

    Args:
        options: Nested dataclasses, mappings and sequences. A folder is a `Path`. To one that is called `videos` the
            lists of official splits belong that lie beside it; of one that is called `voc` the release counts, which
            may be a folder within it.
        digest: `digest_of_folder`, perhaps with a memory.

    Returns:
        By the dotted name of the option, the digest.
    """
    found = {}
    for name, given in _paths(options):
        kind, path = name.rpartition(".")[2], Path(os.path.expanduser(given))  # noqa: PTH111 - raises nothing
        if path.is_dir():
            if kind.startswith("voc"):
                with contextlib.suppress(DataError):  # whoever reads it says what is wrong
                    path = find_release(path)
            found[name] = (digest or digest_of_folder)(path, kind == "videos")
    return found


def digest_of_folder(folder: Path, with_lists: bool, without: Path | None = None) -> str:
    """Return a digest of the path and size of each file, and of the text of lists and annotations.

    Images and videos, of which there may be a million, are not read: an edit that keeps the size of a compressed file
    to the byte goes unnoticed. Lists are read, because there an edit of the same size (1 for 0) is likely and they are
    short.

    Args:
        folder: The folder.
        with_lists: Whether lists of official splits beside the folder belong to it.
        without: A folder that does not count, should it lie in this one.
    """
    root, digest = folder.resolve(), hashlib.blake2b(digest_size=16)
    outside = None if without is None else without.resolve()
    names = {
        f"{prefix}{name}"
        for prefix, files in walk(root)
        if outside is None or not (root / prefix).is_relative_to(outside)
        for name in files or ()
    }
    names |= {os.path.relpath(path, root) for path in list_files(root)} if with_lists else set()
    for name in sorted(names):
        try:
            if name.endswith(_TEXT):
                state = _digest(read_regular(root / name, MAX_BYTES))
            else:
                state = str((root / name).stat().st_size)
        except OSError:  # a link to nowhere, or nothing that its reader would take
            state = ""
        digest.update(os.fsencode(name) + b"\0" + state.encode() + b"\0")
    return digest.hexdigest()


@functools.cache
def digest_of_code() -> str:
    """Return a digest of the sources of permenv, agents and experiments, where this process imports them from."""
    digest = hashlib.blake2b(digest_size=16)
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec and spec.submodule_search_locations) or ()):
            for path in sorted(root.rglob("*.py")):
                name = f"{package}/{path.relative_to(root).as_posix()}"
                digest.update(os.fsencode(name) + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """Return a digest of a file's content."""
    return _digest(path.read_bytes())


def require_content(path: Path, digest: str) -> None:
    """Check, after a file was read, that it was read as it was when its digest was taken.

    Raises:
        CheckpointError: If it has changed.
    """
    if digest_of_file(path) != digest:
        raise CheckpointError(
            f"{path} has changed meanwhile, as the checkpoint of a run that trains does: copy it, and name the copy"
        )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _paths(options: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    if isinstance(options, Path):
        yield name, options
        return
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        parts = [(field.name, getattr(options, field.name)) for field in dataclasses.fields(options)]
    elif isinstance(options, Mapping):
        parts = [(str(key), value) for key, value in options.items()]
    elif isinstance(options, list | tuple):
        parts = [(str(index), value) for index, value in enumerate(options)]
    else:
        return
    for key, value in parts:
        yield from _paths(value, f"{name}.{key}" if name else key)
