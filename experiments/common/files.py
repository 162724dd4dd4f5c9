"""Files that are written whole or not at all, and whose folder is made."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, atomically; dataclasses become objects, and what JSON does not know becomes text."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=_jsonable) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_picture(path: Path, figure: Figure) -> None:
    """Save a figure in the format that the name says, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    figure.savefig(temporary)
    temporary.replace(path)


def as_json(content: Any) -> Any:
    """Return what `write_json` would write, as it would be read back."""
    return json.loads(json.dumps(content, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
