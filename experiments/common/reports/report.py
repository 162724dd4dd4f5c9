"""What reports begin and end with, as JSON and in words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.files import with_ending, write_json, write_picture
from experiments.common.machine import ROOT, checkout, machine
from experiments.common.options import EnvOptions, SweepOptions
from permenv.device import resolve_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def origin(config: EnvOptions | None = None) -> dict[str, Any]:
    """Return what identifies the run of a script that a report is of.

    Args:
        config: Its options, if it has an environment.

    Returns:
        "command", see `command_line`; "checkout", see `machine.checkout`; and "overrides", the
        fields of `permenv.Config` that differ from the preset.
    """
    found: dict[str, Any] = {"command": command_line(sys.argv), "checkout": checkout()}
    if config is not None:
        values = config.env.as_dict()
        found["overrides"] = {name: values[name] for name in config.overrides}
    return found


def command_line(words: Sequence[str]) -> str:
    """Return a script and its arguments as a command line without places of this machine.

    The script is named relative to the checkout. Of an absolute path among the arguments, the last two names are left.
    """
    script = Path(words[0]).absolute()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", name, *map(_without_place, words[1:])])


def _without_place(word: str) -> str:
    option, equals, value = word.rpartition("=")
    path = Path(value)
    return f"{option}{equals}.../{'/'.join(path.parts[1:][-2:])}" if path.is_absolute() else word


def heading(config: SweepOptions) -> dict[str, Any]:
    """Return what the report of a sweep begins with: its origin, the machine, data, seeds and length of the runs."""
    return {
        **origin(config),
        "machine": machine(resolve_device(config.device), threads=1 if config.processes else None),  # of each process
        "preset": config.preset,
        "data": config.data,
        "seeds": config.seeds,
        "updates": config.env.total_updates,
        "iterations": config.env.total_iterations,
    }


def heading_in_words(report: Mapping[str, Any]) -> str:
    """Return the heading of a report as the first line of its table."""
    return f"{report['data']}, {report['iterations']} iterations, {report['seeds']} seeds"


def with_sd(found: Mapping[str, float], digits: int = 3) -> str:
    """Return what `mean_and_sd` returned, in words."""
    return f"{found['mean']:.{digits}f} ± {found['sd']:.{digits}f}"


def publish(report: Mapping[str, Any], table: str, out: Path, picture: Figure | None = None) -> None:
    """Write a report as JSON, its picture beside it, and print its table; `out` has an ending or none."""
    if picture is not None:
        write_picture(with_ending(out, ".png"), picture)
    file = with_ending(out, ".json")
    write_json(file, report)
    print(f"{table}\n\nwritten to {file}")
