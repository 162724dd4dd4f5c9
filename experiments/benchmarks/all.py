"""Everything that is to be measured on a new machine, in one command: a GPU's needs at most 15 minutes.

    python experiments/benchmarks/all.py --device cuda
    python experiments/benchmarks/all.py --device cuda --images path/to/train --videos path/to/videos

All is left in one folder, each file with the name of the device:

- speed.json, speed-tiny.json: `speed.py` with the options given, by default the paper's preset on the joint task, and
  in the tiny preset. The environment is measured in the tiny preset alone; starts, several ranks and compiled trunks
  are not measured there.
- dry-run.json, dry-run-tiny.json: what `dry_run.py` predicts of the same.
- training/: the run folder of `experiments/reinforce.py` with the options given, stopped when its time is over.
- summary.json: commands, seconds and exit codes; predicted and measured seconds of an iteration; how the run went.
- NAME.log: what each of them printed.

Without folders of data a small number of embedded scenes and clips is rendered first. So that updates end in minutes,
fewer free iterations lie between them than in the paper. What fails or takes too long does not keep the training from
being run, and what has no time left is not begun; then the exit code is 1.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, get_args

from experiments.benchmarks.speed import Measured
from experiments.common.commands import WELL, run_command
from experiments.common.files import write_json
from experiments.common.machine import machine
from experiments.common.options import EnvOptions, Preset, TaskName, require_at_least
from experiments.common.reports.report import command_line, origin
from experiments.common.script import run_script
from experiments.common.training.run_folder import read_rows
from permenv import ConfigurationError
from permenv.device import resolve_device

_SCRIPTS = Path(__file__).parents[1]
_TRAINING = "training"
_LEAST_SECONDS = 15.0  # in which a script can begin to measure
_ONLY_ONCE = ("start", "scaling", "compiled")  # in the larger of two presets


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options."""

    changes: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"free_iterations": 400, "num_scenes": 1000, "num_clips": 100}
    )

    preset: Preset = "paper"
    """See `EnvOptions`; what is measured besides the tiny preset."""
    task: TaskName = "spatiotemporal"
    """See `EnvOptions`."""
    only: tuple[Measured, ...] = get_args(Measured)
    """What `speed.py` measures."""
    minutes: float = 14.0
    """Of all together, the training included."""
    training_minutes: float = 8.0
    """Of the training."""
    out: Path = Path("runs/benchmarks")
    """Folder for the files."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the minutes.

        Raises:
            ConfigurationError: If an option is unknown or out of range.
        """
        super().__post_init__()
        require_at_least(self, training_minutes=0)
        if self.minutes < self.training_minutes:
            raise ConfigurationError(
                f"--minutes {self.minutes}: must be at least --training-minutes {self.training_minutes}"
            )

    @property
    def saved(self) -> str | None:
        """What has been written so far."""
        return f"{self.out} holds what has been measured" if self.out.exists() else None


def main(config: Config) -> dict[str, Any]:
    """Run all scripts one after the other, and sum up.

    Returns:
        What summary.json holds.

    Raises:
        ConfigurationError: If the folder is not empty.
        SystemExit: With code 1, if one of them has failed.
    """
    if config.out.exists() and any(config.out.iterdir()):
        raise ConfigurationError(f"--out {config.out}: is not empty; name a new folder")
    config.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * (config.minutes - config.training_minutes)
    done: dict[str, dict[str, Any]] = {}
    for name, command in _commands(config).items():
        seconds = 60 * config.training_minutes if name == _TRAINING else end - time.monotonic()
        if name != _TRAINING and seconds < _LEAST_SECONDS:
            done[name] = {"command": command_line(command), "seconds": 0.0, "code": None, "ended": "no time was left"}
        else:
            done[name] = run_command(command, config.out / f"{name}.log", seconds=seconds)
        print(f"{name}: {done[name]['seconds']:.0f} s, {done[name]['ended']}", flush=True)
    summary = {
        **origin(config),
        "machine": machine(resolve_device(config.device)),
        "done": done,
        "iteration": _predicted_and_measured(config.out),
        "training": _progress(config.out / _TRAINING),
    }
    write_json(config.out / "summary.json", summary)
    print(json.dumps({name: summary[name] for name in ("iteration", "training")}, indent=2))
    print(f"written to {config.out}")
    failed = [name for name, run in done.items() if run["ended"] != WELL and name != _TRAINING]
    failed += [_TRAINING] if summary["training"] is None else []
    if failed:
        print(f"failed: {', '.join(failed)}; see their .log in {config.out}", file=sys.stderr)
        raise SystemExit(1)
    return summary


def _commands(config: Config) -> dict[str, list[str]]:
    """Return the commands by name, in the order in which they are to run."""
    speed, dry_run = _SCRIPTS / "benchmarks" / "speed.py", _SCRIPTS / "benchmarks" / "dry_run.py"
    given = config.environment.arguments
    few = ["--env.num-scenes", str(config.env.num_scenes), "--env.num-clips", str(config.env.num_clips)]
    tiny = ["--preset", "tiny", "--task", config.task, "--device", config.device, *few]
    alone = config.preset == "tiny"
    measured = {"": (given, [name for name in config.only if alone or name != "env"])}  # what matters most first
    if not alone:
        measured["-tiny"] = (tiny, [name for name in config.only if name not in _ONLY_ONCE])
    commands = {}
    for size, (words, only) in measured.items():
        out = {name: ["--out", str(config.out / f"{name}{size}.json")] for name in ("speed", "dry-run")}
        if only:
            commands[f"speed{size}"] = [str(speed), *words, "--only", *only, "--blocks", "8", *out["speed"]]
        commands[f"dry-run{size}"] = [str(dry_run), *words, *out["dry-run"]]
    job = [str(_SCRIPTS / "reinforce.py"), *given, "--out", str(config.out / _TRAINING)]
    return {**commands, _TRAINING: job}


def _predicted_and_measured(out: Path) -> dict[str, dict[str, float]]:
    """Compare the seconds of an iteration in the files that are there."""
    found = {}
    for size in ("-tiny", ""):
        files = [out / f"{name}{size}.json" for name in ("dry-run", "speed")]
        if all(file.is_file() for file in files):
            predicted, measured = (json.loads(file.read_text(encoding="utf-8")) for file in files)
            if "parts" in measured:
                seconds = predicted["iteration_seconds"], measured["parts"]["seconds"]
                found[f"speed{size}"] = {
                    **{"predicted": seconds[0], "measured": seconds[1], "ratio": seconds[0] / seconds[1]},
                    "share_of_the_roofline": measured["parts"]["roofline"]["share"],
                }
    return found


def _progress(folder: Path) -> dict[str, float] | None:
    """Say how far the run came; None if no update has ended."""
    rows = read_rows(folder) if (folder / "metrics.csv").is_file() else []
    if not rows:
        return None
    first, last = rows[0], rows[-1]
    return {
        "updates": len(rows),
        "iterations": last["iteration"],
        "seconds": last["seconds"],
        "iterations_per_second": last["iteration"] / last["seconds"],
        "error_after_the_first_update": first["error"],
        "error_after_the_last_update": last["error"],
    }


if __name__ == "__main__":
    run_script(main, Config, __doc__)
