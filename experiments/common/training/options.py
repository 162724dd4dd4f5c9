"""The options of every training job, whichever algorithm trains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

import permenv
from experiments.common.options import EnvOptions, require_at_least
from experiments.common.training.loggers import LOGGERS
from experiments.common.training.run_folder import RunFolder

if TYPE_CHECKING:
    LoggerName = str
else:
    LoggerName = tyro.extras.literal_type_from_choices(LOGGERS)


@dataclass(frozen=True, kw_only=True)
class JobOptions(EnvOptions):
    """The options of every training job."""

    may_change: ClassVar[tuple[str, ...]] = (
        *("updates", "device", "out", "resume", "log"),
        *("images", "videos", "eval_images"),  # the places: a run has fingerprints of the content
    )
    """Options that may differ when a run is resumed; of --env.*, the environment says which."""

    eval_images: Path | None = None
    """Labelled images that query the nearest-neighbour search; by default the folder `val` or `test` beside an
    `images` folder called `train`, else the validation set (fresh scenes for the embedded data). Clips are queried by
    the test list of their split, else by the validation set (fresh clips for the embedded data)."""
    trunk_from: Path | None = None
    """Checkpoint of a run of any task whose trunk to begin with: the paper's S&T is a spatial run, then a temporal run
    with its trunk."""
    seed: int = 0
    """Decides the run."""
    deterministic: bool = False
    """Use torch's deterministic algorithms, so that a run on a GPU repeats bit for bit; it is slower."""
    out: Path | None = None
    """Run folder; by default runs/TASK-ALGORITHM-seedSEED."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""
    log: tuple[LoggerName, ...] = ("tensorboard",)
    """Where metrics and pictures go besides the run folder: "tensorboard"; "wandb", Weights & Biases; "mlflow"."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the seed and the options that concern the data.

        Raises:
            ConfigurationError: If an option is unknown or out of range, or the run has no such data.
        """
        super().__post_init__()
        require_at_least(self, seed=0)
        if self.eval_images is not None and self.task == "temporal":
            raise permenv.ConfigurationError(
                f"--eval-images {self.eval_images}: task 'temporal' shuffles frames, and clips query; leave it out"
            )
        if self.env.split is not None and self.videos is None:
            raise permenv.ConfigurationError(
                f"--env.split {self.env.split}: the embedded data has no official splits; name a folder with --videos"
            )

    @property
    def algorithm_name(self) -> str:
        """The algorithm, as the name of the folder has it."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The title of the run's pictures."""
        return f"{self.algorithm_name}, {self.preset} preset, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.task}-{self.algorithm_name}-seed{self.seed}"

    @property
    def saved(self) -> str | None:
        """What the job has saved so far."""
        return f"{self.folder} holds the run up to its last update" if RunFolder.holds_run(self.folder) else None

    @property
    def reset_options(self) -> dict[str, Any]:
        """The options of the first `reset`."""
        return {} if self.trunk_from is None else {"trunk": self.trunk_from}

    @property
    def settings(self) -> dict[str, Any]:
        """All options but --env.*, which the environment's own configuration records."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "env"}
