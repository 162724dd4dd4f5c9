"""Runs the code of a page of the documentation, as its reader would, with training that is shorter.

    python -m tests.documentation docs/tutorials/forks.md

The blocks of a page are run one after the other in one namespace, those of a notebook as well. The presets are smaller
than the page says: nothing else differs.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from permenv import config
from tests.helpers import ROOT

SHORTER: dict[str, Any] = {
    "num_scenes": 60,
    "num_permutations": 30,
    "num_validation": 12,
    "batch_size": 8,
    "iterations_per_update": 2,
    "free_iterations": 0,
    "total_updates": 2,
    "fc6": 16,
    "fc7": 32,
    "temporal_fc6": 16,
    "lstm": 16,
    "num_clips": 16,
    "clip_frames": 10,
}
"""What is changed in the presets."""

_BLOCK = re.compile(r"^``` ?(?:\{\.)?(?P<language>\w+)\}?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_INCLUDED = re.compile(r"^--8<-- \"(?P<path>.+)\"$", re.MULTILINE)


def pages() -> list[str]:
    """All pages that have code, relative to the repository."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]
    return [str(path.relative_to(ROOT)) for path in found if blocks(path, "python")]


def blocks(path: Path, language: str) -> list[str]:
    """The code of a page in one language, included files in their places."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in cells] if language == "python" else []
    found = [block["code"] for block in _BLOCK.finditer(text) if block["language"] == language]
    return [_INCLUDED.sub(lambda match: (ROOT / match["path"]).read_text(encoding="utf-8"), code) for code in found]


def run(page: str) -> None:
    """Run the Python code of a page with smaller presets, in this process."""
    presets: Any = config.PRESETS
    for name in ("nano", "tiny"):
        presets[name] = dataclasses.replace(presets[name], **SHORTER)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(blocks(ROOT / page, "python"), 1):
        exec(compile(code, f"{page}, block {number}", "exec"), namespace)


if __name__ == "__main__":
    run(sys.argv[1])
