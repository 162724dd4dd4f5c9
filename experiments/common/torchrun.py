"""A script of several ranks: how they begin, how one that dies ends the others, and which of them speaks.

torchrun starts the ranks and ends the others when one has ended. It does not say which one, nor what is saved; and on
GPUs a rank that waits for a dead one cannot be interrupted. So every rank also watches the others' processes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from permenv import ConfigurationError, distributed

_LOOK = 0.2  # seconds between two looks at the other processes
_GRACE = 3.0  # seconds in which a rank may end by itself after another has died
_LAST_WORDS = "permenv/last words"


class Launch:
    """The processes that a script was started as; without torchrun this one alone, which does nothing here.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self) -> None:
        own = os.environ if "LOCAL_WORLD_SIZE" in os.environ else {}
        self.rank, self.size = int(own.get("RANK", 0)), int(own.get("WORLD_SIZE", 1))
        self._restarts = int(own.get("TORCHELASTIC_MAX_RESTARTS", 0))
        self._processes: list[int] = []
        self._parent = os.getppid()
        self._store: dist.TCPStore | None = None

    def require_one_machine(self) -> None:
        """Check that what this module does fits how the ranks were started.

        Raises:
            ConfigurationError: If they are on several machines, or torchrun is to start them again.
        """
        if self.size != int(os.environ.get("LOCAL_WORLD_SIZE", self.size)):
            raise ConfigurationError("torchrun --nnodes: ranks must be on one machine; use --nproc-per-node alone")
        if self._restarts:
            raise ConfigurationError(
                f"torchrun --max-restarts {self._restarts}: a run is continued with --resume; leave it out"
            )

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Discard what the ranks but the first write to the terminal: all write the same."""
        with ExitStack() as stack:
            if self.rank:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield

    @contextmanager
    def joined(self, device: torch.device, how_to_continue: Callable[[], str]) -> Iterator[None]:
        """Join the ranks for the duration of a `with` block, which all enter and leave together.

        Args:
            device: Where networks will live.
            how_to_continue: Returns what is said when another rank has ended.

        Raises:
            ConfigurationError, RankError: See `distributed.start`.
        """
        ranks = distributed.start(device)
        self._processes = ranks.gather(torch.tensor([os.getpid()])).tolist()
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done, how_to_continue), daemon=True).start()
        yield
        ranks.barrier()  # one that ends earlier would be missed
        done.set()
        ranks.barrier()
        distributed.stop()

    def missing(self, seconds: float = 0.0) -> str | None:
        """Say which process has ended; None if all are there.

        Args:
            seconds: How long to wait for one to end.
        """
        until = time.monotonic() + seconds
        while self.size > 1:
            gone = [rank for rank, process in enumerate(self._processes) if not _is_running(process)]
            if gone:
                names = ", ".join(map(str, gone))
                return f"rank{'s' * (len(gone) > 1)} {names} of {self.size} {'has' if len(gone) == 1 else 'have'} ended"
            if os.getppid() != self._parent:
                return "torchrun has ended"
            if time.monotonic() >= until:
                break
            time.sleep(_LOOK)
        return None

    def leave(self, line: str, code: int) -> NoReturn:
        """End this process; the first of the ranks that does prints its line, in one line."""
        if self._has_last_word():
            terminal = sys.stderr if self.size == 1 else sys.__stderr__  # the former may be discarded, see `quietly`
            print(" ".join(line.splitlines()), file=terminal, flush=True)
        if self.size > 1:
            os._exit(code)  # what a backend does at an orderly exit may wait for a rank that has ended
        sys.exit(code)

    def let_the_first_speak(self) -> None:
        """On a rank other than the first: wait, and exit silently if another rank has ended meanwhile."""
        if self.rank:
            time.sleep(_GRACE)
            if self.missing() is not None:
                os._exit(1)

    def _has_last_word(self) -> bool:
        """Whether this rank is the first to ask, so that one line is printed however many ranks end."""
        if self.size == 1:
            return True
        try:
            if self._store is None:
                address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                self._store = dist.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=_GRACE))
            return self._store.add(_LAST_WORDS, 1) == 1
        except (RuntimeError, KeyError, ValueError):  # its store is gone, as torchrun is
            return self.rank == 0

    def command(self) -> list[str]:
        """The command line that this script was started with."""
        if self.size == 1:
            return list(sys.orig_argv)
        return ["torchrun", "--nproc-per-node", str(self.size), *sys.argv]

    def _watch(self, done: threading.Event, how_to_continue: Callable[[], str]) -> None:
        while not done.wait(_LOOK):
            missing = self.missing()
            if missing is not None and not done.wait(_GRACE):  # it waits where no signal and no error reaches it
                self.leave(f"{missing}: {how_to_continue()}", 1)


def refuse_ranks(size: int) -> None:
    """Refuse several ranks for a script that trains in one process.

    Raises:
        ConfigurationError: If there are several.
    """
    if size > 1:
        raise ConfigurationError(
            f"torchrun --nproc-per-node {size}: this script does not divide a run; start it with: "
            f"{shlex.join(['python', *sys.argv])}"
        )


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
