"""Every table and figure of the paper, one after the other.

    python experiments/paper/all.py
    python experiments/paper/all.py --only table_f1 figure_c1

The commands are those of the page, `experiments/paper/README.md`, with the real data in `../shared/data`. Each keeps
what is done in `runs`, so this one can be stopped and started again: what is complete takes seconds then. On two CPU
cores the features of Tables 1 to 4 take one and a half hours, Table 5 with figure 5 three, and the others together one
and a half; the whole has not been run in one go. A command that fails does not keep the others from running; then the
exit code is 1. What each of them printed is in the folder `out`.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common.commands import WELL, run_command
from experiments.common.files import write_json
from experiments.common.options import DATA_FOLDER, require_known
from experiments.common.script import run_script

_POLICY = "experiments/results/pool-policy.safetensors"
_NETWORKS = "runs/main/imagenette"
COMMANDS = {
    "features": "experiments/studies/features.py",
    "table_5_figure_5": "experiments/paper/table_5_figure_5.py",
    "table_f1": "experiments/paper/table_f1.py",
    "table_f1_learned": f"experiments/paper/table_f1.py --policy {_POLICY} --runs runs/table-f1-learned "
    "--out experiments/results/table-f1-learned.json",
    "main_job": "experiments/studies/main_runs.py --only scenes",
    "imagenette": "experiments/studies/main_runs.py --only imagenette",
    "figure_3": f"experiments/paper/figure_3.py {_NETWORKS} random --voc {DATA_FOLDER}/davis_voc",
    "figure_4": f"experiments/paper/figure_4.py --policy {_POLICY}",
    "figure_6": "experiments/paper/figure_6.py",
    "figure_c1": "experiments/paper/figure_c1.py",
    "figure_d1": "experiments/paper/figure_d1.py",
    "figure_e1": "experiments/studies/main_runs.py --only compare-seed0",
    "figures_g1_g2": "experiments/paper/figures_g1_g2.py",
    "figure_h1": "experiments/paper/figure_h1.py",
    "figure_i1": f"experiments/paper/figures_i1_i2.py {_NETWORKS} "
    f"--images {DATA_FOLDER}/imagenette/val {DATA_FOLDER}/davis_voc/VOCdevkit/VOC2007/JPEGImages",
    "figure_i2": f"experiments/paper/figures_i1_i2.py {_NETWORKS} "
    f"--images {DATA_FOLDER}/imagenette/val {DATA_FOLDER}/davis_voc/VOCdevkit/VOC2007/JPEGImages --units 3 "
    "--out runs/figure-i2.png",
    "figure_i3": f"experiments/paper/figure_i3.py {_NETWORKS} random --voc {DATA_FOLDER}/davis_voc",
}
"""By name, in the order in which they need each other."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    only: tuple[str, ...] = tuple(COMMANDS)
    """Which commands."""
    out: Path = Path("runs/paper")
    """Folder for what they print, and for summary.json with their seconds."""

    @property
    def saved(self) -> str | None:
        """What was saved so far."""
        return "what is done is kept in the folder runs" if self.out.is_dir() else None


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Run the commands.

    Returns:
        By name, how it ended, see `run_command`; summary.json holds the same.

    Raises:
        ConfigurationError: If there is no such command.
        SystemExit: With code 1, if one has failed.
    """
    require_known("--only", config.only, COMMANDS)
    config.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, Any]] = {}
    for name in (each for each in COMMANDS if each in config.only):
        print(f"{name}: python {COMMANDS[name]}", flush=True)
        done[name] = run_command(shlex.split(COMMANDS[name]), config.out / f"{name}.log")
        print(f"  {done[name]['seconds']:.0f} s, {done[name]['ended']}", flush=True)
        write_json(config.out / "summary.json", done)
    failed = [name for name, run in done.items() if run["ended"] != WELL]
    if failed:
        print(f"failed: see {', '.join(str(config.out / f'{name}.log') for name in failed)}", file=sys.stderr)
        raise SystemExit(1)
    return done


if __name__ == "__main__":
    run_script(main, Config, __doc__)
