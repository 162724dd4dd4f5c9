"""Files that are written whole or not at all, and whose folder is made; what is written, as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from permenv import ConfigurationError
from permenv.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_ENDINGS = (".json", ".csv", ".md", ".png", ".npy")


def require_writable(folder: Path, option: str) -> None:
    """Check that files can be written into a folder, which may have to be made first.

    Args:
        folder: The folder.
        option: What named it, for the error.

    Raises:
        ConfigurationError: If not; nothing has been written.
    """
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigurationError(f"{option} {folder}: {existing} is not a folder; name another place with {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{option} {folder}: {existing} cannot be written to; name another place with {option}"
        )


def with_ending(out: Path, ending: str) -> Path:
    """Name one of the files that a script writes together.

    Args:
        out: Their common name, with the ending of any of them or with none. Dots in it are kept: "rate-0.1".
        ending: Such as ".csv".
    """
    return out.with_name((out.stem if out.suffix in _ENDINGS else out.name) + ending)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, atomically.

    Dataclasses become objects, numbers that are not finite become null, as JSON has none, and what else it does not
    know becomes text.
    """
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, atomically. Bytes of a file name that are not valid text are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_picture(path: Path, figure: Figure) -> None:
    """Save a figure in the format that the name says, atomically."""
    write_with(path, lambda file: figure.savefig(file, format=path.suffix.removeprefix(".")))


def write_with(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Write what a function saves to an open file, atomically."""
    content = io.BytesIO()
    save(content)
    write_bytes(path, content.getvalue())


def as_json(content: Any) -> Any:
    """Return what `write_json` would write, as it would be read back."""
    return json.loads(json.dumps(_finite(content), allow_nan=False, default=str))


def as_csv(rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
    """Write rows of the same columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, whose keys are the paths: {"env": {"seed": 0}} becomes {"env.seed": 0}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _finite(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
