"""Scripts that are run one after the other, each in a process of its own with a log."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.reports.report import command_line

WELL = "well"
_GRACE = 60.0  # seconds in which a script that is stopped writes what it has


def run_command(words: Sequence[str], log: Path, seconds: float | None = None) -> dict[str, Any]:
    """Run a script to its end.

    Args:
        words: The script and its arguments.
        log: File for what it prints; what was in it is lost.
        seconds: After which it is stopped; None for never.

    Returns:
        "command", see `command_line`; "seconds" it took; "code", its exit code; and how it "ended", `WELL` or in words.
    """
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
            ended = WELL if code == 0 else f"with code {code}"
        except subprocess.TimeoutExpired:
            ended = "stopped when its time was over"
            code = _stop(process)
        finally:  # whatever ends this process ends the other
            if process.poll() is None:
                _stop(process)
    return {"command": command_line(words), "seconds": time.monotonic() - begin, "code": code, "ended": ended}


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Ask a process to end, and kill it if it does not."""
    process.terminate()
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
