"""The main job's runs of the README: the summaries and pictures in `experiments/results`.

    python experiments/studies/main_runs.py --only scenes temporal-scenes compare-seed0
    python experiments/studies/main_runs.py --data-folder path/to/data

`RUNS` is the table. Each run is trained in a folder of its own, or continued there; one that has ended is only
evaluated again. Then its summary, without what is particular to this machine's folders, and its pictures are copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import reinforce
from experiments.common.files import write_json
from experiments.common.options import DATA_FOLDER, parse, require_known
from experiments.common.reports.report import command_line
from experiments.common.script import run_script
from experiments.common.training.run_folder import RunFolder, RunFolderError
from permenv import DataError
from permenv.atomic import write_bytes


@dataclass(frozen=True)
class Run:
    """One row of the table.

    Attributes:
        arguments: Of `experiments/reinforce.py`; {data} is the folder of real data.
        summary: What its summary is called in the results.
        pictures: Which of its pictures are copied, and what they are called there.
    """

    arguments: str
    summary: str
    pictures: Mapping[str, str] = field(default_factory=dict)


RUNS = {
    "scenes": Run("", "scenes.json", {"dashboard.png": "dashboard.png", "shuffles-spatial.png": "shuffles.png"}),
    "imagenette": Run("--images {data}/imagenette/train", "imagenette.json"),
    "temporal-scenes": Run(
        "--task temporal", "temporal-scenes.json", {"shuffles-temporal.png": "shuffles-temporal.png"}
    ),
    "temporal-cctv": Run("--task temporal --videos {data}/cctv/videos", "temporal-cctv.json"),
    "joint": Run("--task spatiotemporal --images {data}/imagenette/train --videos {data}/actions/videos", "joint.json"),
    "compare-seed0": Run(
        "--compare-random --seed 0",
        "compare-seed0.json",
        {"error.png": "error.png", "choices-spatial.png": "choices.png"},
    ),
    "compare-seed1": Run("--compare-random --seed 1", "compare-seed1.json"),
    "compare-seed2": Run("--compare-random --seed 2", "compare-seed2.json"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    only: tuple[str, ...] = tuple(RUNS)
    """Which runs of the table."""
    data_folder: Path = DATA_FOLDER
    """Folder of the real data: imagenette, cctv, actions."""
    runs: Path = Path("runs/main")
    """Where the run folders are."""
    out: Path = Path("experiments/results")
    """Where to write."""

    @property
    def saved(self) -> str | None:
        """What was saved so far."""
        return f"{self.runs} holds the runs up to their last updates" if self.runs.is_dir() else None


def main(config: Config) -> None:
    """Train what is missing, and copy summaries and pictures.

    Raises:
        ConfigurationError: If there is no such run.
        DataError: If there is no such folder of data; nothing has been trained.
        CheckpointError, RunFolderError: If a folder holds a run of other options, or a longer one.
    """
    require_known("--only", config.only, RUNS)
    if any("{data}" in RUNS[name].arguments for name in config.only) and not config.data_folder.is_dir():
        raise DataError(f"there is no folder {config.data_folder}: name that of the real data with --data-folder")
    for name in config.only:
        folder = config.runs / name
        print(f"{name}: python experiments/reinforce.py {RUNS[name].arguments}".rstrip(), flush=True)
        _train(RUNS[name], folder, config)
        copy(RUNS[name], folder, config)


def _train(run: Run, folder: Path, config: Config) -> None:
    words = [word.format(data=config.data_folder) for word in run.arguments.split()]
    words += ["--out", str(folder)]
    if RunFolder.holds_run(folder):
        words.append("--resume")
    options = parse(reinforce.Config, arguments=words)
    updates = reinforce.main(options)["updates"]
    if updates > options.env.total_updates:
        raise RunFolderError(
            f"the run in {folder} has {updates} updates, not {options.env.total_updates}: name another folder with "
            f"--runs, or remove it"
        )


def copy(run: Run, folder: Path, config: Config) -> None:
    """Copy a run's summary and pictures to the results.

    Args:
        run: Its row of the table.
        folder: Its run folder.
        config: The options. The folder of real data is left out of paths.
    """
    words = run.arguments.format(data="data").split()
    summary: dict[str, Any] = {
        "command": command_line([reinforce.__file__, *words]),
        **json.loads((folder / "summary.json").read_text(encoding="utf-8")),
    }
    del summary["folder"]
    for task_summary in summary["tasks"].values():
        task_summary["queries"] = task_summary["queries"].removeprefix(f"{config.data_folder}/")
    write_json(config.out / run.summary, summary)
    for name, name_there in run.pictures.items():
        write_bytes(config.out / name_there, (folder / name).read_bytes())


if __name__ == "__main__":
    run_script(main, Config, __doc__)
