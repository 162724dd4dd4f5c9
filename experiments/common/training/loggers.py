"""Where the metrics of a run go besides its folder: TensorBoard, Weights & Biases, MLflow, or a logger of your own.

    python experiments/reinforce.py --log tensorboard wandb

A logger of your own subclasses `Logger` and defines the methods that it needs. A function that is called with each row
of metrics is a logger by `Callback`:

```python
from experiments import reinforce
from experiments.common.training.loggers import Callback

config = reinforce.Config(preset="nano", updates=2)
reinforce.main(config, loggers=(Callback(lambda row: print(row["iteration"], row["error"])),))
```
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from experiments.common.files import write_text
from permenv import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's files in the run folder."""

Row = Mapping[str, float]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told when a run begins or continues.

    Attributes:
        name: The last two names of the run folder's path, such as "runs/spatial-reinforce-seed0".
        folder: The run folder, which exists.
        settings: The options of the run, JSON-able and without nested mappings. Those of the environment are called as
            on the command line: "env.learning_rate".
        rows: Of a run that is resumed, the rows up to its checkpoint, that of the untrained network included. They are
            not logged again. Empty if the run begins.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Row]


class Logger(Protocol):
    """Receives the metrics and pictures of a run. A subclass defines the methods that it needs.

    The order of the calls is `start`, `log` once for the untrained network and once an update, `picture` for each
    picture of a finished run, `close`. Of several ranks, only rank 0 logs.

    A row is logged as soon as its update is in the checkpoint. So no row is logged twice, even if the run is killed and
    resumed. If it is killed between the two, the row is in `RunInfo.rows` of the resumed run only.

    What `start` raises stops the run before it is trained. What another method raises does not: it is reported as a
    warning, and the logger is not called again.

    ```python
    class Best(Logger):
        def start(self, run):
            self.lowest = min((row["error"] for row in run.rows), default=1.0)

        def log(self, row):
            self.lowest = min(self.lowest, row["error"])

        def close(self, summary):
            print(f"lowest error: {self.lowest:.3f}")
    ```
    """

    def start(self, run: RunInfo) -> None:
        """Begin or continue a run.

        Args:
            run: Its name, folder, settings, and earlier rows.
        """

    def log(self, row: Row) -> None:
        """Log the metrics of one update.

        Args:
            row: By name, the columns of metrics.csv, see `experiments/common/training/run_folder.py`. The row of the
                untrained network has "update" and "iteration", which are 0, "error" and each "TASK/error" only.
        """

    def picture(self, name: str, figure: Figure, update: int) -> None:
        """Log a picture.

        Args:
            name: Its file name in the run folder, without suffix, such as "dashboard". "error" is the name of a
                picture and of a metric.
            figure: The picture. It has no window, and must not be changed.
            update: The number of updates when it was drawn.
        """

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """End the log.

        Args:
            summary: The content of summary.json; None if the run was stopped before its end.
        """


class Callback(Logger):
    """Calls a function with each row of metrics: that of the untrained network, and one an update.

    Args:
        function: The function. See `Logger.log` for its argument.
    """

    def __init__(self, function: Callable[[Row], object]):
        self._function = function

    def log(self, row: Row) -> None:
        """Call the function."""
        self._function(row)


class TensorBoardLogger(Logger):
    """Writes TensorBoard's event files into the folder `tensorboard` of the run folder.

    The step is the update. A resumed run writes all of its rows again, into a new file.
    """

    def start(self, run: RunInfo) -> None:
        """Replace the event files by one with the settings, as hyperparameters, and the earlier rows."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import
        from torch.utils.tensorboard.summary import hparams

        folder = run.folder / TENSORBOARD
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        # a signal that interrupts its queue makes the writer wait once for as long as it does between two flushes
        self._writer = SummaryWriter(str(folder), flush_secs=1)
        # SummaryWriter.add_hparams would write them into a folder of their own, which TensorBoard shows as another run
        settings = {name: value if _is_number(value) else str(value) for name, value in run.settings.items()}
        experiment, session, self._end = hparams(settings, {"error": None})
        for each in (experiment, session):
            self._writer._get_file_writer().add_summary(each)
        for row in run.rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """Write a scalar for each metric."""
        for name, value in row.items():
            if name != "update":
                self._writer.add_scalar(name, value, global_step=int(row["update"]))

    def picture(self, name: str, figure: Figure, update: int) -> None:
        """Write an image."""
        from permenv.render import to_array  # slow to import

        self._writer.add_image(f"pictures/{name}", to_array(figure), global_step=update, dataformats="HWC")

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Flush and close the file; a run that has ended is marked as such."""
        if summary is not None:
            self._writer._get_file_writer().add_summary(self._end)
        self._writer.close()


class WandbLogger(Logger):
    """Logs to Weights & Biases: `pip install wandb`, then `wandb login`.

    The step is the update. W&B's own environment variables apply: WANDB_PROJECT, "permenv" by default, WANDB_ENTITY,
    and WANDB_MODE=offline, which writes into the run folder only. A resumed run continues the same W&B run, whose id is
    in wandb-id.txt in the run folder. Offline, each process writes a folder of its own; the last one has all rows.

    Raises:
        ConfigurationError: If the package is not installed.
    """

    def __init__(self) -> None:
        self._wandb = _import("wandb", "wandb")

    def start(self, run: RunInfo) -> None:
        """Begin or continue the W&B run.

        Raises:
            ConfigurationError: If W&B refuses it.
        """
        known = run.folder / "wandb-id.txt"
        with _naming("wandb", "log in with `wandb login`, set WANDB_MODE=offline, or leave wandb out"):
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "permenv"),
                name=run.name,
                id=_read(known),
                resume="allow",
                dir=str(run.folder),
                config=dict(run.settings),
            )
            write_text(known, self._run.id)
            for row in run.rows:
                self.log(row)

    def log(self, row: Row) -> None:
        """Log the metrics of an update that W&B does not have yet."""
        update = int(row["update"])
        if update >= self._run.step:
            self._run.log(dict(row), step=update)

    def picture(self, name: str, figure: Figure, update: int) -> None:
        """Log an image."""
        from permenv.render import to_array  # slow to import

        self._run.log({f"pictures/{name}": self._wandb.Image(to_array(figure))}, commit=False)  # with the last row

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Add the summary, and wait until all is sent."""
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(summary is None))


class MlflowLogger(Logger):
    """Logs to MLflow: `pip install mlflow`, or `pip install mlflow-skinny` to log to a server.

    The step is the update. MLflow's own environment variables apply: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. A
    resumed run continues the same MLflow run, whose id is in mlflow-id.txt in the run folder.

    Raises:
        ConfigurationError: If the package is not installed.
    """

    def __init__(self) -> None:
        self._mlflow = _import("mlflow", "mlflow")

    def start(self, run: RunInfo) -> None:
        """Begin or continue the MLflow run. Its parameters are the settings with which it began.

        Raises:
            ConfigurationError: If MLflow refuses it.
        """
        known = run.folder / "mlflow-id.txt"
        with _naming("mlflow", "name a server in MLFLOW_TRACKING_URI, `pip install mlflow`, or leave mlflow out"):
            run_id = _read(known)
            active = self._mlflow.start_run(run_id=run_id, run_name=None if run_id else run.name)
            if run_id is None:
                write_text(known, active.info.run_id)
                self._mlflow.log_params(dict(run.settings))
            self._last = active.data.metrics.get("update", -1)
            for row in run.rows:
                self.log(row)

    def log(self, row: Row) -> None:
        """Log the metrics of an update that MLflow does not have yet."""
        if row["update"] > self._last:
            self._mlflow.log_metrics(dict(row), step=int(row["update"]))

    def picture(self, name: str, figure: Figure, update: int) -> None:
        """Save a picture as an artifact."""
        self._mlflow.log_figure(figure, f"pictures/{name}.png")

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Save the summary as an artifact, and end the run."""
        if summary is not None:
            self._mlflow.log_dict(dict(summary), "summary.json")
        self._mlflow.end_run("FINISHED" if summary is not None else "KILLED")


LOGGERS: dict[str, Callable[[], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
"""The loggers of `--log`, by name."""


def make_loggers(names: Sequence[str]) -> list[Logger]:
    """Make the loggers of `--log`.

    Raises:
        ConfigurationError: If the package of one is not installed.
    """
    return [LOGGERS[name]() for name in dict.fromkeys(names)]


class Loggers(Logger):
    """Several loggers as one. One that fails after `start` is reported and left out, so that the run goes on.

    Args:
        loggers: The loggers.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self._given = tuple(loggers)
        self._started: list[Logger] = []

    def start(self, run: RunInfo) -> None:
        """Start all; what one raises is not caught."""
        for logger in self._given:
            logger.start(run)
            self._started.append(logger)

    def log(self, row: Row) -> None:
        """Log to all."""
        self._call("log", dict(row))  # the row itself goes into the next checkpoint

    def picture(self, name: str, figure: Figure, update: int) -> None:
        """Log to all."""
        self._call("picture", name, figure, update)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Close those that were started, once."""
        self._call("close", summary)
        self._started.clear()

    def _call(self, method: str, *arguments: Any) -> None:
        for logger in tuple(self._started):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                self._started.remove(logger)
                name = type(logger).__name__
                _log.warning(
                    *("%s.%s failed, and the run goes on without this logger: %s: %s", name, method),
                    *(type(error).__name__, error),
                    exc_info=_log.isEnabledFor(logging.DEBUG),
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def _import(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"--log {name}: the package cannot be imported ({error}): pip install {package}, or leave {name} out"
        ) from error


@contextmanager
def _naming(name: str, remedy: str) -> Iterator[None]:
    """Raise the errors of a service as a ConfigurationError that names it."""
    try:
        yield
    except Exception as error:
        raise ConfigurationError(f"--log {name}: {type(error).__name__}: {str(error).rstrip('.')}; {remedy}") from error
