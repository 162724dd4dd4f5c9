"""What a trained network's features are worth: the protocols of the paper's Tables 1 to 4, on a checkpoint.

    python experiments/evaluate.py runs/spatial-reinforce-seed0 random --images set/train --eval-images set/val
    python experiments/evaluate.py runs/spatial-reinforce-seed0 random --voc VOCdevkit/VOC2007
    python experiments/evaluate.py model.safetensors --protocols actions retrieval-videos --videos UCF-101/videos

A source is a run folder or checkpoint of any task, a state dict of torch or safetensors of such a trunk, "random" for
initial weights, or "timm/NAME". By default all protocols are run for which data are given. CaffeNet is evaluated as in
the paper, at 227 × 227 pixels and stride 4 of its first convolution, any other trunk as it was trained.

An untrained trunk's batch statistics are measured on training images of each protocol first: as they come, mean 0 and
variance 1, they would be a disadvantage of their own (`permenv.transfer.trunks.with_measured_statistics`).

Each evaluation is written to the folder `runs` when it ends and is not run again: the script can be killed and started
again at any time. One that diverges is marked, and the script ends with exit code 1 after the others. Writes
`runs/evaluation.json`, `.csv` and `.md`, a table for each protocol beside the paper's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.common.evaluation.evaluations import (
    as_table,
    columns_of,
    evaluate,
    exit_if_diverged,
    in_columns,
    value_of,
)
from experiments.common.evaluation.protocols import PROTOCOLS, Data, GivenSetting, resolve_setting
from experiments.common.evaluation.sources import find_sources
from experiments.common.files import as_csv, with_ending, write_json, write_text
from experiments.common.machine import machine
from experiments.common.options import require_at_least, require_known
from experiments.common.reports.report import origin
from experiments.common.reports.statistics import OF_MEANS, mean_of
from experiments.common.script import run_script
from experiments.common.sweeps.processes import make_executor
from experiments.common.sweeps.sweep import sweep
from permenv import ConfigurationError
from permenv.device import resolve_device


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What is evaluated: run folders, checkpoints, state dicts, "random", "timm/NAME"."""
    protocols: tuple[str, ...] = ()
    """Which protocols; by default those that the data allow. The choice: retrieval-images, retrieval-objects,
    retrieval-videos, linear, nonlinear, actions, classification, detection, segmentation."""
    data: tyro.conf.OmitArgPrefixes[Data] = field(default_factory=Data)
    """The folders of data."""
    setting: GivenSetting = "auto"
    """Sizes of the protocols: the paper's, or for two CPU cores; "auto" is the paper's for CaffeNet only."""
    backbone: str | None = None
    """Of "random", and of a state dict that does not say its own; by default that of the first file, or caffenet."""
    statistics: Literal["auto", "own", "measured"] = "auto"
    """Batch statistics: the source's own, or measured on training images; "auto" measures those of untrained trunks."""
    share: float = 1.0
    """Share of the training iterations of each protocol, in (0, 1]: to try it out."""
    seeds: int = 1
    """Repetitions of each protocol; of "random" also other weights."""
    first_seed: int = 0
    """The first of the seeds."""
    device: str = "auto"
    """auto, cpu or cuda."""
    processes: int = 0
    """Evaluations at once, a process of one thread each; 0 runs one after the other with all threads."""
    runs: Path = Path("runs/evaluations")
    """Folder with the result of each evaluation."""
    out: Path = Path("runs/evaluation")
    """Where to write the .json, .csv and .md."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigurationError: If one is out of range.
        """
        require_at_least(self, seeds=1, first_seed=0, processes=0)
        if not 0 < self.share <= 1:
            raise ConfigurationError(f"--share {self.share}: must be above 0 and at most 1")

    @property
    def saved(self) -> str | None:
        """What is saved so far."""
        return f"{self.runs} holds the finished evaluations" if any(self.runs.glob("*.json")) else None


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ConfigurationError: If a protocol is unknown or lacks data, or there is no source.
        CheckpointError: If a source cannot be read.
        DataError: If data cannot be used.
        SystemExit: With code 1, if an evaluation diverged; the others are written all the same.
    """
    sources, names = find_sources(config.sources, config.backbone), _protocols(config)
    settings = {}
    for source in sources:
        trunk = source.load(config.first_seed)
        settings[source.name] = resolve_setting(config.setting, trunk)
        print(f"{source.name}: {trunk.describe()}", flush=True)
    device = str(resolve_device(config.device))
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    jobs = {
        f"{source.name}-{name}-seed{seed}": {
            "protocol": name,
            "source": source,
            "data": config.data,
            "setting": config.setting,
            "statistics": config.statistics,
            "share": config.share,
            "seed": seed,
            "device": device,
        }
        for name in names
        for source in sources
        for seed in seeds
    }
    with make_executor(config.processes) as executor:
        found = sweep(evaluate, jobs, executor=executor, folder=config.runs)
    rows = [
        {
            "protocol": name,
            "source": source.name,
            "setting": settings[source.name],
            **in_columns([found[f"{source.name}-{name}-seed{seed}"] for seed in seeds]),
        }
        for name in names
        for source in sources
    ]
    report = {
        **origin(),
        "machine": machine(resolve_device(config.device), threads=1 if config.processes else None),
        "options": asdict(config),
        "interval": OF_MEANS,
        "rows": rows,
    }
    write_json(with_ending(config.out, ".json"), report)
    write_text(with_ending(config.out, ".csv"), as_csv(list(_long(rows))))
    tables = "\n\n".join(
        as_table(name, [row for row in rows if row["protocol"] == name], config.data, config.share) for name in names
    )
    write_text(with_ending(config.out, ".md"), tables + "\n")
    print(f"\n{tables}\n\nwritten to {config.out}.json, .csv and .md")
    exit_if_diverged(rows)
    return report


def _protocols(config: Config) -> list[str]:
    """The protocols to run.

    Raises:
        ConfigurationError: If one is unknown or lacks data, or no data are given.
        DataError: If there is no such folder of data.
    """
    require_known("--protocols", config.protocols, PROTOCOLS)
    allowed = [name for name, each in PROTOCOLS.items() if each.allowed_by(config.data)]
    names = list(dict.fromkeys(config.protocols)) or allowed
    if not names:
        raise ConfigurationError(
            "no data are given: name folders with --images and --eval-images, --voc, --voc-segmentation or --videos"
        )
    for name in names:
        PROTOCOLS[name].check(name, config.data)
    return names


def _long(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line a metric."""
    for row in rows:
        for metric in columns_of([row]) or [PROTOCOLS[row["protocol"]].metric]:
            values = [value_of(each, metric) for each in row["figures"]]
            columns = mean_of(values).as_columns("value")
            names = {"protocol": row["protocol"], "source": row["source"], "figure": metric, "n": len(values)}
            yield {**names, **columns, "seconds": sum(row["seconds"]) / len(values)}


if __name__ == "__main__":
    run_script(main, Config, __doc__)
