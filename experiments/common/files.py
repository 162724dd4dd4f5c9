"""Files that are written whole or not at all, and whose folder is made."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permenv import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what `replacing` and `permenv.checkpoint` write to, and safetensors on its own account
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp(\.\w+)?|\.tmp[0-9A-Za-z]{6}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    Args:
        path: The file; its folder is made if need be, a file of that name is replaced.

    Yields:
        A name in the same folder to write to. It is renamed when the block ends, and removed if the block raises.

    Raises:
        OSError: If the file cannot be written; a file of that name is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed; no other process may be writing into the folder."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def require_writable(folder: Path, option: str) -> None:
    """Check that files can be written into a folder, which may have to be made first.

    Args:
        folder: The folder.
        option: What named it, for the error.

    Raises:
        ConfigurationError: If not; nothing has been written.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigurationError(f"{option} {folder}: {place} is not a folder; name another place with {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{option} {folder}: {place} cannot be written to; name another place with {option}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, atomically; dataclasses become objects, and what JSON does not know becomes text."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=_jsonable) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_picture(path: Path, figure: Figure) -> None:
    """Save a figure in the format that the name says, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary)


def as_json(content: Any) -> Any:
    """Return what `write_json` would write, as it would be read back."""
    return json.loads(json.dumps(content, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
