"""The run folder: all files of one training run, whichever algorithm trained.

config.json, permutations-TASK.npy, metrics.csv (one row an update; columns of a single task are called TASK/...),
tensorboard/, checkpoint.safetensors, summary.json and the pictures. The checkpoint holds the environment, the agent and
the rows so far, so that this file alone is enough to continue; the others are written again from it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common.files import write_json, write_picture, write_text
from permenv import checkpoint
from permenv.checkpoint import CheckpointError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT = "checkpoint.safetensors"


class RunFolderError(RuntimeError):
    """A run folder that would be overwritten, or that does not fit the options; the message names the remedy."""


class RunFolder:
    """The folder of one run.

    Args:
        path: Where it is, or is to be.
        resume: Whether to continue the run that is there.

    Attributes:
        path: Where it is.
        rows: The rows of metrics.csv.

    Raises:
        RunFolderError: If there is a run and `resume` is not set, or there is none and it is; or if the folder holds
            other files.
    """

    def __init__(self, path: Path, resume: bool):
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._writer: SummaryWriter | None = None
        exists = self.holds_run(path)
        if exists and not resume:
            raise RunFolderError(f"{path} holds a run: continue it with --resume, or name another folder with --out")
        if not exists and path.is_dir() and any(path.iterdir()):
            raise RunFolderError(f"{path} is not empty and holds no run: name a new folder with --out")
        if resume and not exists:
            raise RunFolderError(
                f"--resume: there is no {CHECKPOINT} in {path}; check --out, or start without --resume"
            )

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Return whether a run was begun in this folder."""
        return (path / CHECKPOINT).is_file()

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's path."""
        return self.path / CHECKPOINT

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Make the folder, or set it back to `rows`, those of the updates that the checkpoint includes."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.path.mkdir(parents=True, exist_ok=True)
        self.rows = [dict(row) for row in rows]
        if self.rows:
            write_text(self.path / "metrics.csv", as_csv(self.rows))
        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=len(self.rows) + 1)

    def append(self, row: dict[str, float]) -> None:
        """Add the row of one update to metrics.csv and TensorBoard."""
        assert self._writer is not None, "start() opens the folder"
        self.rows.append(row)
        first = len(self.rows) == 1
        with (self.path / "metrics.csv").open("w" if first else "a", encoding="utf-8") as file:
            file.write(as_csv([row], header=first))
        for name, value in row.items():
            if name != "update":
                self._writer.add_scalar(name, value, global_step=int(row["update"]))

    def save(self, environment: Mapping[str, Any], agent: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Write the checkpoint: states of environment and agent, rows, and whatever else the job needs to continue."""
        checkpoint.write(self.checkpoint, {**environment, "agent": agent, "job": {"rows": self.rows, **job}})

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `name`.json, atomically."""
        write_json(self.path / f"{name}.json", content)

    def array(self, name: str, values: np.ndarray) -> None:
        """Write `name`.npy, atomically."""
        temporary = self.path / f".{name}.tmp.npy"
        np.save(temporary, values)
        temporary.replace(self.path / f"{name}.npy")

    def picture(self, name: str, figure: Figure) -> None:
        """Write `name`.png, atomically."""
        write_picture(self.path / f"{name}.png", figure)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()


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
        CheckpointError: If one differs.
    """
    for name, value in settings.items():
        if name not in may_change and value != saved.get(name):
            raise CheckpointError(
                f"the run in {folder} was started with {name}={saved.get(name)!r}, not {value!r}: "
                f"resume it with that value, or start another run with --out"
            )


def as_csv(rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
    """Write rows of the same columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read the metrics.csv of the run folder `path`."""
    with (path / "metrics.csv").open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
