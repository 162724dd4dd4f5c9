"""Running a script: its errors are one line, and so is what a stop by Ctrl-C or a signal leaves behind.

A script ends with

```python
if __name__ == "__main__":
    run_script(main, Config, __doc__)
```
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import permenv
from experiments.common.files import require_writable
from experiments.common.options import parse
from experiments.common.processes import end_processes
from experiments.common.run_folder import RunFolderError
from experiments.common.sweep import JobError

T = TypeVar("T")

ERRORS = (permenv.ConfigurationError, permenv.DataError, permenv.CheckpointError, RunFolderError)
"""Errors that a script shows as one line: each names the value, the place and the remedy."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # those that this system has


def run_script(main: Callable[[T], Any], kind: type[T], description: str | None) -> None:
    """Parse the command line and run a script.

    An error that names its remedy is shown in one line, and the exit code is 1. Ctrl-C, SIGTERM and SIGHUP stop the
    script where it is; one line says what is saved and how to continue, and the exit code is 130, 143 or 129.

    Args:
        main: The script.
        kind: The dataclass of its options. If one is called `out`, the folder that it is in must be writable. If it has
            a property `saved`, that says what a script that is stopped leaves behind, or is None.
        description: What --help says first.
    """
    config: Any = None
    received: list[signal.Signals] = []
    try:
        with _signals_raise(received):
            config = parse(kind, description)
            out = getattr(config, "out", None)
            if isinstance(out, Path):
                require_writable(out.parent, "--out")
            main(config)
    except BaseException as error:
        if received:  # whatever it has become: where a library calls back, an exception may turn into another
            end_processes()
            _leave(f"stopped by {received[0].name}: {_how_to_continue(config)}", 128 + received[0])
        if isinstance(error, ERRORS):
            _leave(f"error: {error}", 1)
        cause = error.__cause__ if isinstance(error, JobError) else error
        if isinstance(cause, (*ERRORS, OSError)):  # a full disk, say
            _leave(f"error: {error}; {_how_to_continue(config)}", 1)
        raise


@contextmanager
def _signals_raise(received: list[signal.Signals]) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at each of the signals but those that are to be ignored, as SIGHUP is under nohup.

    Args:
        received: Each is added to it.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _how_to_continue(config: Any) -> str:
    """Return what is saved, and the command line that continues."""
    saved, command = getattr(config, "saved", None), list(sys.orig_argv)
    if saved is None:
        return f"nothing is saved yet; start again with: {shlex.join(command)}"
    if not getattr(config, "resume", True):
        command.append("--resume")
    return f"{saved}; continue with: {shlex.join(command)}"


def _leave(line: str, code: int) -> NoReturn:
    print(" ".join(line.splitlines()), file=sys.stderr)
    sys.exit(code)
