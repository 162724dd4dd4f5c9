"""The run folder: everything that a training run leaves behind, whichever algorithm drove it.

config.json, permutations-TASK.npy, metrics.csv (one row an update; what is a task's own is called TASK/...),
tensorboard/, checkpoint.safetensors, summary.json and the pictures. The checkpoint holds the environment, the agent and
the rows so far, so that one file is enough to continue; the others are made again from it.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import functools
import io
import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from permenv import PermShuffleEnv, StillImages, checkpoint, render

CHECKPOINT = "checkpoint.safetensors"
_LIBRARIES = (
    "permenv",
    "torch",
    "gymnasium",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
    "stable-baselines3",
)
_EXAMPLE_IMAGES, _EXAMPLE_CLIPS = 6, 4


class RunFolderError(RuntimeError):
    """A run folder that would be overwritten, or that does not fit what is asked for; the message says what to do."""


def machine(device: torch.device) -> dict[str, Any]:
    """Describe where a number was measured: device, processor, threads, versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of the libraries that numbers depend on."""
    return {name: version(name) for name in _LIBRARIES}


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for this process; without glibc, do nothing.

    It gives large blocks back to the system at once, and every iteration on a CPU then pays for fresh pages, the more
    the larger its batch.
    """
    most_mapped_blocks, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or none that can be asked
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(most_mapped_blocks, 0)
        mallopt(trim_threshold, -1)  # never


def _processor() -> str:
    """The processor's name and the instruction sets that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return " ".join([fields.get("model name", platform.machine()), *wide])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON for people, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=_jsonable) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, atomically."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_picture(path: Path, figure: Figure) -> None:
    """Save a figure, atomically."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary)
    temporary.replace(path)


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


class RunFolder:
    """One run's folder.

    Args:
        path: Where it is, or is to be.
        resume: Whether a run that is there is to be continued.

    Raises:
        RunFolderError: If there is a run and it is not to be continued, or there is none and it is; or if a new run
            would mix with files that are no run's.
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
        """Whether a run was begun in this folder."""
        return (path / CHECKPOINT).is_file()

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's path."""
        return self.path / CHECKPOINT

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Make the folder, or bring it back to `rows`, those of the updates that count."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.rows = [dict(row) for row in rows]
        if self.rows:
            write_text(self.path / "metrics.csv", _csv(self.rows, header=True))
        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=len(self.rows) + 1)

    def append(self, row: dict[str, float]) -> None:
        """Add the row of one update to metrics.csv and TensorBoard."""
        assert self._writer is not None, "start() opens the folder"
        self.rows.append(row)
        with (self.path / "metrics.csv").open("w" if len(self.rows) == 1 else "a", encoding="utf-8") as file:
            file.write(_csv([row], header=len(self.rows) == 1))
        for name, value in row.items():
            if name != "update":
                self._writer.add_scalar(name, value, global_step=int(row["update"]))

    def save(self, env: PermShuffleEnv, agent: Mapping[str, Any], **job: Any) -> None:
        """Write the checkpoint: environment, the agent's state, rows, and whatever else the job must remember."""
        tree = {
            "environment": env.state_dict(),
            "agent": agent,
            "job": {"rows": self.rows, **job},
        }
        checkpoint.write(self.checkpoint, tree)

    def array(self, name: str, values: np.ndarray) -> None:
        """Save an array as `name`.npy."""
        temporary = self.path / f".{name}.tmp.npy"
        np.save(temporary, values)
        temporary.replace(self.path / f"{name}.npy")

    def picture(self, name: str, figure: Figure) -> None:
        """Save a figure as `name`.png."""
        write_picture(self.path / f"{name}.png", figure)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()


def _csv(rows: Sequence[Mapping[str, float]], header: bool) -> str:
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


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Sequence[float]]:
    """Turn rows into columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def curves(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Sequence[float]]]:
    """Find each task's error and reward over a run, as `render.error_figure` shows them."""
    table = columns(rows)
    tasks = [name.removesuffix("/error") for name in table if name.endswith("/error")]
    shown = ("error", "baseline_error", "reward")
    return {
        task: {"iteration": table["iteration"], **{name: table[f"{task}/{name}"] for name in shown}} for task in tasks
    }


def choice_figure(rows: Sequence[Mapping[str, float]], task: str) -> Figure:
    """The groups of a task chosen over a run (Fig. 4)."""

    def table(prefix: str) -> np.ndarray:  # [updates, groups]
        return np.array([[value for name, value in row.items() if name.startswith(prefix)] for row in rows])

    return render.choice_figure([row["update"] for row in rows], table(f"{task}/group_"), table(f"{task}/size_"))


def example_figure(env: PermShuffleEnv, task: str, seed: int) -> Figure:
    """Held-out images or clips, shuffled, with what the network makes of them."""
    stills = isinstance(env.tasks[task].data, StillImages)
    samples = env.validation_samples[task][: _EXAMPLE_IMAGES if stills else _EXAMPLE_CLIPS]
    labels = np.random.default_rng(seed).integers(env.config.num_permutations, size=len(samples))
    answers = render.ask(env.tasks[task], functools.partial(env.network, task), samples, labels)
    verdicts = [f"ψ {label}: {answers.verdict(index)}" for index, label in enumerate(labels)]
    if stills:
        return render.shuffle_figure(answers.originals, answers.pieces, verdicts)
    return render.frames_figure(answers.originals, answers.pieces, answers.orders, verdicts)
