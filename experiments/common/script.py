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
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import permenv
from experiments.common.files import require_writable
from experiments.common.machine import checkout
from experiments.common.options import parse
from experiments.common.sweeps.processes import end_processes
from experiments.common.sweeps.sweep import JobError
from experiments.common.torchrun import Launch, refuse_ranks
from experiments.common.training.run_folder import RunFolderError
from permenv.device import resolve_device
from permenv.distributed import RankError

T = TypeVar("T")

ERRORS = (permenv.ConfigurationError, permenv.DataError, permenv.CheckpointError, RunFolderError)
"""Errors that a script shows as one line: each names the value, the place and the remedy."""

_UNTIL_A_DEATH_SHOWS = 5.0  # seconds: a connection breaks before torchrun has noticed that its process has ended
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # those that this system has


def run_script(
    main: Callable[[T], Any], kind: type[T], description: str | None, *, several_ranks: bool = False
) -> None:
    """Parse the command line and run a script.

    An error that names its remedy is shown in one line, and the exit code is 1. Ctrl-C, SIGTERM and SIGHUP stop the
    script where it is; one line says what is saved and how to continue, and the exit code is 130, 143 or 129.

    Started by torchrun, all ranks run the script. When one has ended the others end too, and whatever ends them, one of
    them says it.

    Args:
        main: The script.
        kind: The dataclass of its options. If one is called `out`, the folder that it is in must be writable. If it has
            a property `saved`, that says what a script that is stopped leaves behind, or is None.
        description: What --help says first.
        several_ranks: Whether torchrun may start it: its options have a `device`, and a run that it trains is divided.
    """
    config: Any = None
    received: list[signal.Signals] = []
    launch = Launch()
    try:
        with _signals_raise(received, launch.size > 1), launch.quietly():
            if several_ranks:
                launch.require_one_machine()
            else:
                refuse_ranks(launch.size)
            config = parse(kind, description)
            out = getattr(config, "out", None)
            if isinstance(out, Path):
                require_writable(out.parent, "--out")
            checkout()  # now: it may be another one when a report is written
            if launch.size == 1:
                main(config)
            else:
                with launch.joined(resolve_device(config.device), lambda: _how_to_continue(config, launch)):
                    main(config)
    except BaseException as error:
        if received:  # whatever it has become: where a library calls back, an exception may turn into another
            end_processes()
        words = _last_words(error, received, config, launch)
        if words is None:
            launch.let_the_first_speak()
            raise
        launch.leave(*words)


def _last_words(
    error: BaseException, received: list[signal.Signals], config: Any, launch: Launch
) -> tuple[str, int] | None:
    """Return the line that a script ends with, and its exit code; None where a traceback says more."""
    missing = launch.missing(_UNTIL_A_DEATH_SHOWS if isinstance(error, RankError) else 0)
    if missing is not None:
        return f"{missing}: {_how_to_continue(config, launch)}", 1
    if received:
        return f"stopped by {received[0].name}: {_how_to_continue(config, launch)}", 128 + received[0]
    if isinstance(error, ERRORS):
        return f"error: {error}", 1
    cause = error.__cause__ if isinstance(error, JobError) else error
    if isinstance(cause, BrokenExecutor):
        killed = "a worker process was killed, perhaps because memory ran out: run fewer of them with --processes"
        return f"error: {killed}; {_how_to_continue(config, launch)}", 1
    if isinstance(cause, (*ERRORS, OSError, RankError)):  # a full disk, say
        return f"error: {error}; {_how_to_continue(config, launch)}", 1
    return None


@contextmanager
def _signals_raise(received: list[signal.Signals], finally_ignored: bool) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at each of the signals but those that are to be ignored, as SIGHUP is under nohup.

    Args:
        received: Each is added to it.
        finally_ignored: Whether they are ignored afterwards, so that a rank can say why it ends.
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
            signal.signal(number, signal.SIG_IGN if finally_ignored else before[number])


def _how_to_continue(config: Any, launch: Launch) -> str:
    """Return what is saved, and the command line that continues."""
    saved, command = getattr(config, "saved", None), launch.command()
    if saved is None:
        return f"nothing is saved yet; start again with: {shlex.join(command)}"
    if not getattr(config, "resume", True):
        command.append("--resume")
    return f"{saved}; continue with: {shlex.join(command)}"
