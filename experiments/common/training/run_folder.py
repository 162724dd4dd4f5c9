"""The run folder: all files of one training run, whichever algorithm trained.

config.json, permutations-TASK.npy, metrics.csv (one row an update; columns of a single task are called TASK/...),
checkpoint.safetensors, summary.json and the pictures, and what the loggers write, such as tensorboard/. The checkpoint
holds the environment, the agent and the rows so far, so that this file alone is enough to continue; the others are
written again from it.

The first file is .permenv.lock. It says that the folder is a run's, and it is locked by the process that trains: the
operating system releases the lock of a process that ends, also of one that is killed.
"""

from __future__ import annotations

import csv
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from experiments.common.files import as_csv, flat, require_writable, write_json, write_picture, write_text, write_with
from experiments.common.training.loggers import TENSORBOARD, Logger, Loggers, RunInfo
from permenv import checkpoint, distributed, locks
from permenv.checkpoint import CheckpointError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINT = "checkpoint.safetensors"
LOCK = ".permenv.lock"
_METRICS = "metrics.csv"
_SUFFIXES = (".csv", ".json", ".npy", ".png", ".safetensors")  # of the run's files

log = logging.getLogger(__name__)


class RunFolderError(RuntimeError):
    """A run folder that would be overwritten, or that does not fit the options; the message names the remedy."""


class RunFolder:
    """The folder of one run. It is locked from here on if a run was begun in it, else from `start` on, until `close`.

    Args:
        path: Where it is, or is to be.
        resume: Whether to continue the run that is there. A run without a checkpoint is begun again, with or without.
        loggers: Where rows and pictures go as well.

    Attributes:
        path: Where it is.
        rows: The rows of metrics.csv.

    Raises:
        ConfigurationError: If no such folder can be made.
        RunFolderError: If there is a run and `resume` is not set, or there is none and it is; if the folder holds other
            files, or one of its files is a folder; or if another process uses it.
    """

    def __init__(self, path: Path, resume: bool, loggers: Sequence[Logger] = ()):
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._resume = resume
        self._loggers = Loggers(loggers)
        self._unlogged: list[dict[str, float]] = []  # not in the checkpoint yet
        self._held: ExitStack | None = None  # the lock
        require_writable(path, "--out")
        if self._is_begun:
            self._lock()
        else:  # no lock file is written into somebody else's folder
            self._check()

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Return whether there is a run in this folder that can be continued."""
        return (path / CHECKPOINT).is_file()

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's path."""
        return self.path / CHECKPOINT

    def read(self, *names: str) -> dict[str, Any] | None:
        """Read the checkpoint.

        Args:
            *names: What the job has saved besides the rows and the settings.

        Returns:
            The tree that `save` wrote, with "agent" and "job" in it; None if the run has no checkpoint yet.

        Raises:
            CheckpointError: If the checkpoint is damaged or not of such a run.
        """
        if not self.holds_run(self.path):
            return None
        saved = checkpoint.read(self.checkpoint)
        agent, job = saved.get("agent"), saved.get("job")
        if not (isinstance(agent, dict) and isinstance(job, dict) and {"rows", "settings", *names} <= job.keys()):
            raise CheckpointError(f"{self.checkpoint} is not of such a run: name the folder of one with --out")
        if not _are_rows(job["rows"]):
            raise CheckpointError(f"the rows of metrics in {self.checkpoint} are damaged: use an earlier checkpoint")
        return saved

    def start(
        self,
        rows: Sequence[Mapping[str, float]],
        settings: Mapping[str, Any] | None = None,
        first: Mapping[str, float] | None = None,
    ) -> None:
        """Make the folder, or set it back to `rows`, and start the loggers.

        Args:
            rows: Those of the updates that the checkpoint includes.
            settings: The options of the run, for the loggers.
            first: The metrics before the first update, which go to the loggers only.

        Raises:
            RunFolderError: If another process has begun a run here in the meantime.
            ConfigurationError: If a logger cannot be started.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        resumed = self.holds_run(self.path)
        if not resumed:  # what a process has left that was killed before its first checkpoint
            for array in self.path.glob("permutations-*.npy"):
                array.unlink()
        self.rows = [dict(row) for row in rows]
        if self.rows:
            write_text(self.path / _METRICS, as_csv(self.rows))
        else:
            (self.path / _METRICS).unlink(missing_ok=True)
        before = [] if first is None else [dict(first)]
        name = "/".join(self.path.absolute().parts[-2:])
        logged = [dict(row) for row in (*before, *self.rows)] if resumed else []
        self._loggers.start(RunInfo(name, self.path, flat(settings or {}), logged))
        self._unlogged = [] if resumed else before

    def append(self, row: dict[str, float]) -> None:
        """Add the row of one update to metrics.csv, and to what the loggers are to be given."""
        self.rows.append(row)
        self._unlogged.append(row)
        first = len(self.rows) == 1
        with (self.path / _METRICS).open("w" if first else "a", encoding="utf-8") as file:
            file.write(as_csv([row], header=first))

    def save(self, environment: Mapping[str, Any], agent: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Write the checkpoint: states of environment and agent, rows, and whatever else the job needs to continue.

        Then log the rows that the checkpoint before did not have.
        """
        checkpoint.write(self.checkpoint, {**environment, "agent": agent, "job": {"rows": self.rows, **job}})
        while self._unlogged:
            self._loggers.log(self._unlogged.pop(0))

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `name`.json, atomically."""
        write_json(self.path / f"{name}.json", content)

    def array(self, name: str, values: np.ndarray) -> None:
        """Write `name`.npy, atomically."""
        write_with(self.path / f"{name}.npy", lambda file: np.save(file, values))

    def picture(self, name: str, figure: Figure) -> None:
        """Write `name`.png, atomically, and log it."""
        write_picture(self.path / f"{name}.png", figure)
        self._loggers.picture(name, figure, len(self.rows))

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Close the loggers and release the lock.

        Args:
            summary: Of a run that has ended, what summary.json holds.
        """
        self._loggers.close(summary)
        if self._held is not None:
            self._held.close()
            self._held = None

    def _lock(self) -> None:
        if self._held is not None:
            return
        with ExitStack() as stack:
            stack.enter_context(locked(self.path, "--out"))
            self._check()  # now that no other process changes the folder
            self._held = stack.pop_all()

    @property
    def _is_begun(self) -> bool:
        return (self.path / LOCK).is_file() or self.holds_run(self.path)

    def _check(self) -> None:
        path = self.path
        files = list(path.iterdir()) if path.is_dir() else []
        wrong = [
            each
            for each in files
            if not (each.is_dir() if each.name == TENSORBOARD else each.suffix not in _SUFFIXES or each.is_file())
        ]
        if wrong:
            kind = "a folder" if wrong[0].is_dir() else "not a folder" if wrong[0].name == TENSORBOARD else "no file"
            raise RunFolderError(f"{wrong[0]} is {kind}: move it away, or name another folder with --out")
        if self.holds_run(path):
            if not self._resume:
                raise RunFolderError(
                    f"{path} holds a run: continue it with --resume, or name another folder with --out"
                )
        elif files and (not self._is_begun or (path / _METRICS).exists()):  # the checkpoint is older than any row
            raise RunFolderError(f"{path} is not empty and holds no run: name a new folder with --out")
        elif self._resume and not files:
            raise RunFolderError(
                f"--resume: there is no {CHECKPOINT} in {path}; check --out, or start without --resume"
            )


class ReadOnlyRunFolder(RunFolder):
    """The run folder of another rank than the first: it reads the checkpoint, and rank 0 writes all files and logs."""

    def __init__(self, path: Path, resume: bool):
        self.path = path
        self.rows = []

    def start(
        self,
        rows: Sequence[Mapping[str, float]],
        settings: Mapping[str, Any] | None = None,
        first: Mapping[str, float] | None = None,
    ) -> None:
        """Take over the rows that the checkpoint includes."""
        self.rows = [dict(row) for row in rows]

    def append(self, row: dict[str, float]) -> None:
        """Add a row."""
        self.rows.append(row)

    def save(self, environment: Mapping[str, Any], agent: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Write nothing."""

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write nothing."""

    def array(self, name: str, values: np.ndarray) -> None:
        """Write nothing."""

    def picture(self, name: str, figure: Figure) -> None:
        """Write nothing."""

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Do nothing: nothing is open."""


def open_folder(path: Path, resume: bool, loggers: Sequence[Logger] = ()) -> RunFolder:
    """Open a run folder, as the rank that this process is; rank 0 first, which refuses a folder for all.

    Raises:
        ConfigurationError, RunFolderError: See `RunFolder`.
    """
    ranks = distributed.current()
    folder = RunFolder(path, resume, loggers) if ranks.is_first else ReadOnlyRunFolder(path, resume)
    ranks.barrier()
    return folder


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Keep other processes out of a folder; this process may lock it several times.

    On a file system without locks nothing is locked; a warning says so once.

    Args:
        folder: The folder, which exists.
        option: What names another one, for the error.

    Raises:
        RunFolderError: If another process has locked it.
    """

    def refuse() -> NoReturn:
        raise RunFolderError(
            f"{folder} is in use by another process: wait until it ends, or name another folder with {option}"
        )

    with locks.locked(folder / LOCK, refuse, again=True) as held:
        if not held:
            _warn(folder)
        yield


@functools.cache
def _warn(folder: Path) -> None:
    """Warn once of a folder that cannot be locked."""
    log.warning("the file system of %s has no locks: make sure that no two processes use the folder at once", folder)


def check_same_job(
    settings: Mapping[str, Any], may_change: tuple[str, ...], saved: Mapping[str, Any], folder: Path
) -> None:
    """Refuse to continue a run with other options than it was started with.

    Args:
        settings: The options, as JSON has them.
        may_change: The names of those that may differ.
        saved: The options of the run.
        folder: Where it is.

    Raises:
        CheckpointError: If one differs, or the run has one that is unknown.
    """
    unknown = [name for name in saved if name not in settings and name not in may_change]
    if unknown:
        raise CheckpointError(
            f"the run in {folder} was started with {unknown[0]}={saved[unknown[0]]!r}, which is no option of this "
            f"version: end it with the version that began it, or start another run with --out"
        )
    for name, value in settings.items():
        if name not in may_change and value != saved.get(name):
            raise CheckpointError(
                f"the run in {folder} was started with {name}={saved.get(name)!r}, not {value!r}: "
                f"resume it with that value, or start another run with --out"
            )


def _are_rows(rows: Any) -> bool:
    """Return whether these are numbers of the same columns, of one update after the other."""
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and row.keys() == rows[0].keys()
        and row.get("update") == number + 1
        and all(isinstance(value, int | float) for value in row.values())
        for number, row in enumerate(rows)
    )


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read the metrics.csv of the run folder `path`."""
    with (path / _METRICS).open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
