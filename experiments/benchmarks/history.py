"""How the numbers of `speed.py` have changed: a table with one line a measurement, and its picture.

    python experiments/benchmarks/speed.py
    python experiments/benchmarks/history.py experiments/results/benchmark-tiny-cpu.json

Appends one line for each report: today's date, the current commit, version, machine, preset, and the key numbers. A
report whose numbers are in the table is not added again. Without a report the picture is drawn anew. Writes
`experiments/results/benchmark-history.csv` and `.png`.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from experiments.common.files import as_csv, with_ending, write_picture, write_text
from experiments.common.machine import checkout
from experiments.common.reports.style import add_title, label_lines, styled
from experiments.common.script import run_script
from permenv import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

METRICS = {
    "spatial_validation_ratio": "exact spatial validation: times as fast as the naive one",
    "temporal_validation_ratio": "exact temporal validation: times as fast as the naive one",
    "spatial_validation_seconds": "exact spatial validation, seconds",
    "step_ratio": "training step: times as fast as a loop over tiles in float32",
    "images_per_second": "training step, images a second",
    "joint_ratio": "joint step: its time, of that of a step on each task",
    "env_overhead": "environment: the share that it adds to the time of an iteration",
}
"""By column, what it holds."""
_WHEN = ("date", "commit")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    reports: tyro.conf.Positional[tuple[Path, ...]] = ()
    """JSON files that `experiments/benchmarks/speed.py` has written."""
    out: Path = Path("experiments/results/benchmark-history")
    """Where to write the .csv and .png."""


def main(config: Config) -> None:
    """Append and draw.

    Raises:
        ConfigurationError: If a file is no report, or there is nothing to draw; nothing has been written.
    """
    table = with_ending(config.out, ".csv")
    rows = read(table)
    for path in config.reports:
        row = {"date": datetime.date.today().isoformat(), "commit": _commit(), **row_of(path)}
        if all(_what(row) != _what(other) for other in rows):
            rows.append(row)
    if not rows:
        raise ConfigurationError(f"{table} has no lines: name a report of experiments/benchmarks/speed.py")
    write_text(table, as_csv(rows))
    write_picture(with_ending(config.out, ".png"), _picture(rows))
    print(f"{len(rows)} lines in {table}")


def read(table: Path) -> list[dict[str, str]]:
    """Read the lines of the table, none if there is no such file."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row_of(path: Path) -> dict[str, str]:
    """Read the columns of a report; a number that it does not have is empty.

    Raises:
        ConfigurationError: If the file is no report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        machine = report["machine"]
        row = {
            "version": machine["versions"]["permenv"],
            "device": machine["device"],
            "processor": machine["processor"],
            "threads": machine["threads"],
            "preset": report["preset"],
            **metrics_of(report),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is no report of experiments/benchmarks/speed.py ({error!r}): name one"
        ) from error
    return {name: "" if value is None else str(value) for name, value in row.items()}


def metrics_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the columns of `METRICS`; None where something was not measured."""
    validation, step = report.get("validation", {}), report.get("step", {})
    env = report.get("env", {})
    default = env.get(f"samples_per_action={env.get('default_samples_per_action')}", {})
    found = {
        "spatial_validation_ratio": validation.get("spatial", {}).get("ratio"),
        "temporal_validation_ratio": validation.get("temporal", {}).get("ratio"),
        "spatial_validation_seconds": validation.get("spatial", {}).get("exact_seconds"),
        "step_ratio": step.get("ratio_auto_to_loop"),
        "images_per_second": step.get("images_per_second", {}).get(f"folded {step.get('auto')}"),
        "joint_ratio": report.get("joint", {}).get("ratio_joint_to_sum"),
        "env_overhead": default.get("overhead"),
    }
    return {name: None if value is None else float(f"{value:.4g}") for name, value in found.items()}


def _what(row: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in _WHEN}


def _commit() -> str:
    """Return the current commit, short; empty outside of a checkout."""
    found = checkout()
    return "" if found is None else found["commit"][:7]


@styled
def _picture(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Draw each metric over the measurements, a line a preset that is interrupted where the machine changes."""
    from matplotlib.figure import Figure  # slow to import

    from permenv.render import COLOURS

    moments = list(dict.fromkeys(_moment(row) for row in rows))
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    shown = [name for name in METRICS if any(row[name] for row in rows)]
    picture = Figure(figsize=(11, 2.2 * -(-len(shown) // 2) + 0.6), dpi=120, layout="constrained")
    add_title(picture, "medians of experiments/benchmarks/speed.py, over versions and machines")
    axes = picture.subplots(-(-len(shown) // 2), 2, squeeze=False).ravel()
    for axis, name in zip(axes, shown, strict=False):
        lines: list[Line2D] = []
        for preset, colour in zip(presets, itertools.cycle(COLOURS), strict=False):
            of_preset = [row for row in rows if row["preset"] == preset and row[name]]
            for _, group in itertools.groupby(of_preset, key=_machine):
                points = [(moments.index(_moment(row)), float(row[name])) for row in group]
                (line,) = axis.plot(
                    *zip(*points, strict=True), marker="o", color=colour, clip_on=False, label=f"{preset} preset"
                )
            lines += [line] if of_preset else []
        axis.set_title(METRICS[name], fontsize=9)
        axis.set_xticks(range(len(moments)), ["\n".join(moment) for moment in moments], fontsize=8)
        axis.set(xlim=(-0.2, len(moments) - 0.9), ylim=(0, None))
        label_lines(axis, lines)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    return picture


def _moment(row: Mapping[str, str]) -> tuple[str, str, str]:
    return f"{row['version']}, {row['commit']}", row["date"], _machine(row)


def _machine(row: Mapping[str, str]) -> str:
    """Name the device, a CPU by the words of its name that are no instruction sets."""
    if row["device"] != "cpu":
        return row["device"]
    name = row["processor"].replace("(R)", "").replace(" Processor", "").split(" avx")[0]
    return f"{name}, {row['threads']} threads"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
