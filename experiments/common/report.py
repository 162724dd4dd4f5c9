"""What the reports of studies begin and end with, as JSON and in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.files import with_ending, write_json, write_picture
from experiments.common.machine import machine
from experiments.common.options import SweepOptions
from permenv.device import resolve_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heading(config: SweepOptions) -> dict[str, Any]:
    """Return what every report begins with: the machine, the data, the number of seeds and the length of the runs."""
    return {
        "machine": machine(resolve_device(config.device), threads=1 if config.processes else None),  # of each process
        "preset": config.preset,
        "data": config.data,
        "seeds": config.seeds,
        "updates": config.env.total_updates,
        "iterations": config.env.total_iterations,
    }


def in_words(report: Mapping[str, Any]) -> str:
    """Return the heading of a report as the first line of its table."""
    return f"{report['data']}, {report['iterations']} iterations, {report['seeds']} seeds"


def with_sd(figure: Mapping[str, float], digits: int = 3) -> str:
    """Return what `mean_and_sd` returned, in words."""
    return f"{figure['mean']:.{digits}f} ± {figure['sd']:.{digits}f}"


def publish(report: Mapping[str, Any], table: str, out: Path, picture: Figure | None = None) -> None:
    """Write a report as JSON, its picture beside it, and print its table; `out` has an ending or none."""
    if picture is not None:
        write_picture(with_ending(out, ".png"), picture)
    file = with_ending(out, ".json")
    write_json(file, report)
    print(f"{table}\n\nwritten to {file}")
