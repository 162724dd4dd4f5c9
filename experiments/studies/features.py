"""What features are worth: networks of equal budgets, several seeds, by every protocol of Tables 1 to 4.

    python experiments/studies/features.py
    python experiments/studies/features.py --protocols retrieval-objects linear --networks untrained jigsaw

`NETWORKS` are trained for the same number of SGD iterations, on the same data, with random permutations: the paper's
tasks and the joint one, order prediction networks, and a network that sees the labels; beside them an untrained one,
whose batch statistics are measured. Then `experiments/evaluate.py`'s protocols are run on each. The images are
Imagenette, the videos Weizmann actions laid out as UCF-101, VOC's devkit holds frames of DAVIS: stand-ins, see
`experiments/paper/README.md`.

Networks and evaluations that are done are kept in the folder `runs`. Writes `experiments/results/features.json` and
`.md` and prints the tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

import agents
from agents.rollout import rollout
from experiments.common.evaluation.evaluations import (
    as_table,
    evaluate,
    exit_if_diverged,
    in_columns,
    in_percent,
    value_of,
)
from experiments.common.evaluation.paper_tables import TABLES, paper_table
from experiments.common.evaluation.protocols import PROTOCOLS, Data, resolve_setting
from experiments.common.evaluation.sources import source_of, weights_of, write_trunk
from experiments.common.files import with_ending, write_json, write_text
from experiments.common.options import DATA_FOLDER, EnvOptions, SweepOptions, require_known
from experiments.common.reports.report import heading, heading_in_words
from experiments.common.reports.statistics import OF_MEANS, Estimate, holm, mean_of, p_of_mean
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import executor_of, sweep
from experiments.studies.order_prediction import NAME as ORDER_PREDICTION
from experiments.studies.order_prediction import ORDERS
from permenv import image_folder, make_config
from permenv.device import resolve_device
from permenv.transfer.finetuning import Schedule
from permenv.transfer.supervised import SupervisedOptions, supervised
from permenv.transfer.trunks import load_trunk
from permenv.wrappers.base import base_env_of

UNTRAINED, SUPERVISED = "untrained", "supervised"
TASKS = {"jigsaw": "spatial", ORDER_PREDICTION: ORDER_PREDICTION, "temporal": "temporal", "joint": "spatiotemporal"}
"""By network, the task that it is trained on."""
NETWORKS = (UNTRAINED, *TASKS, SUPERVISED)
_FOLDERS = {
    "images": "imagenette/train",
    "eval_images": "imagenette/val",
    "videos": "actions/videos",
    "voc": "davis_voc",
}
_IMAGES, _VIDEOS = ("spatial", "spatiotemporal"), ("temporal", "spatiotemporal", ORDER_PREDICTION)


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    task: tyro.conf.Suppress[str] = "spatial"
    networks: tuple[str, ...] = NETWORKS
    """Which networks."""
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    """Which protocols of `experiments/evaluate.py`."""
    data_folder: Path = DATA_FOLDER
    """Folder of the real data: imagenette, actions, davis_voc."""
    images: Path | None = None
    """Training images, a folder for each class; by default imagenette/train of the real data."""
    eval_images: Path | None = None
    """Test images, a folder for each class; by default imagenette/val of the real data."""
    videos: Path | None = None
    """Videos, a folder for each class, with the lists of three splits; networks are trained on the first. By default
    actions/videos of the real data."""
    voc: Path | None = None
    """VOCdevkit/VOC2007 or a folder above it; by default davis_voc of the real data."""
    share: float = 1.0
    """Share of the iterations of each protocol, in (0, 1]: to try it out."""
    supervised_rate: float = 0.02
    """Learning rate of the supervised network; the other networks have their task's own."""
    seeds: int = 3
    """Networks of each kind."""
    first_seed: int = 500
    """The first of the seeds, of networks and protocols."""
    runs: Path | None = Path("runs/features")
    """Folder of the networks and of the results of each protocol; what is there is not run again."""
    out: Path = Path("experiments/results/features")
    """Where to write the .json and .md."""

    def __post_init__(self) -> None:
        """Fill in `env` and the folders of data, and check the numbers.

        Raises:
            ConfigurationError: If an option is unknown or out of range.
        """
        super().__post_init__()
        for name, folder in _FOLDERS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.data_folder / folder)

    @property
    def folders(self) -> Data:
        """What the protocols take."""
        return Data(images=self.images, eval_images=self.eval_images, videos=self.videos, voc=self.voc)

    def on(self, task: str) -> EnvOptions:
        """The environment of a task: its own numbers, changed by the options. Order prediction keeps its `ORDERS`."""
        fixed = ORDERS if task == ORDER_PREDICTION else ()
        changes = {name: value for name, value in self.overrides.items() if name not in fixed}
        return EnvOptions(
            preset=self.preset,
            task=task,
            images=self.images if task in _IMAGES else None,
            videos=self.videos if task in _VIDEOS else None,
            device=self.device,
            updates=self.env.total_updates,
            env=make_config(self.preset, task, **changes),
        )

    def of(self, network: str) -> EnvOptions:
        """The environment of a network; the supervised one has that of the spatial task, at its own rate."""
        options = self.on(TASKS.get(network, "spatial"))
        if network != SUPERVISED:
            return options
        return replace(options, env=replace(options.env, learning_rate=self.supervised_rate))


def main(config: Config) -> dict[str, Any]:
    """Train and evaluate what is missing, print and write.

    Raises:
        ConfigurationError: If a network or protocol is unknown.
        DataError: If data are missing or cannot be used.
        SystemExit: With code 1, if an evaluation diverged; the others are written all the same.
    """
    require_known("--networks", config.networks, NETWORKS)
    require_known("--protocols", config.protocols, PROTOCOLS)
    for name in config.protocols:
        PROTOCOLS[name].check(name, config.folders)
    assert config.runs is not None, "it has a default"
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    trained = [network for network in config.networks if network != UNTRAINED]
    weights = {f"{network}-seed{seed}": weights_of(config.runs, network, seed) for network in trained for seed in seeds}
    with executor_of(config) as executor:
        learned = sweep(
            train,
            {
                f"{network}-seed{seed}": {
                    "network": network,
                    "options": config.of(network),
                    "seed": seed,
                    "path": weights[f"{network}-seed{seed}"],
                }
                for seed in seeds
                for network in trained
            },
            executor=executor,
            folder=config.runs / "networks",
        )
        rows = evaluate_all(config, weights, executor)
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "networks": {name: learned[name] for name in weights},
        "rows": rows,
        "gains": gains(rows),
    }
    tables = [
        as_table(name, [row for row in rows if row["protocol"] == name], config.folders, config.share)
        for name in config.protocols
    ]
    text = "\n\n".join([in_words(report), *tables])
    write_json(with_ending(config.out, ".json"), report)
    write_text(with_ending(config.out, ".md"), text + "\n")
    print(f"{text}\n\nwritten to {config.out}.json and .md")
    exit_if_diverged(rows)
    return report


def evaluate_all(config: Config, weights: Mapping[str, Path], executor: Executor) -> list[dict[str, Any]]:
    """Evaluate all networks by all protocols.

    Args:
        config: The options.
        weights: By NETWORK-seedSEED, the weights of the trunk; a network that has none is untrained.
        executor: Runs the evaluations; those in the folder `runs` are not run again.

    Returns:
        A row for each protocol and network: "protocol", "source", "setting", and by seed "figures", "seconds" and
        "diverged", see `evaluate`.
    """
    assert config.runs is not None, "it has a default"
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    setting = resolve_setting("auto", load_trunk("random", backbone=config.env.backbone))
    jobs = {
        f"{network}-{protocol}-seed{seed}": {
            "protocol": protocol,
            "source": source_of(weights.get(f"{network}-seed{seed}"), config.env),
            "data": config.folders,
            "setting": "auto",
            "statistics": "auto",
            "share": config.share,
            "seed": seed,
            "device": str(resolve_device(config.device)),
        }
        for seed in seeds
        for protocol in config.protocols
        for network in config.networks
    }
    found = sweep(evaluate, jobs, executor=executor, folder=config.runs / "protocols")
    return [
        {
            "protocol": protocol,
            "source": network,
            "setting": setting,
            **in_columns([found[f"{network}-{protocol}-seed{seed}"] for seed in seeds]),
        }
        for protocol in config.protocols
        for network in config.networks
    ]


def train(network: str, options: EnvOptions, seed: int, path: Path) -> dict[str, float]:
    """Train one network, and write the weights of its trunk.

    Returns:
        By ordering task E at the end; "seconds".
    """
    start, errors = time.perf_counter(), {}
    if network == SUPERVISED:
        weights = _train_on_labels(options, seed)
    else:
        env = options.make()
        base_env = base_env_of(env)
        rollout(env, agents.make("random", env, seed=seed), seed=seed, learn=False)
        weights = base_env.run.trainer.eval_network.trunk.state_dict()
        errors = dict(base_env.records[-1].errors)
    write_trunk(path, weights)
    return {**errors, "seconds": time.perf_counter() - start}


def _train_on_labels(options: EnvOptions, seed: int) -> dict[str, torch.Tensor]:
    """As many iterations of as many images, cut out of larger ones as frames are."""
    numbers, device = options.env, resolve_device(options.device)
    assert isinstance(numbers.backbone, str), "a preset's"
    assert options.images is not None, "checked by the protocols"
    trunk = load_trunk("random", backbone=numbers.backbone, seed=seed)
    images = image_folder(options.images, round(trunk.input_size * 256 / 224))
    iterations = numbers.total_iterations
    schedule = Schedule(iterations, numbers.learning_rate, -(-2 * iterations // 3))
    chosen = SupervisedOptions(batch=numbers.batch_size, hidden=numbers.fc7, schedule=schedule)
    return supervised(trunk, images, chosen, seed=seed, device=device).module.state_dict()


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare each network's metric of a protocol with that of the untrained network of the same seed.

    Returns:
        "protocol", "source", "figure"; "gain", with its interval; "p", and "p_holm", corrected for the number of
        comparisons whose metrics are finite. They are None where a metric is not finite.
    """
    untrained = {row["protocol"]: row["figures"] for row in rows if row["source"] == UNTRAINED}
    found: list[dict[str, Any]] = []
    for row in rows:
        if row["source"] == UNTRAINED or row["protocol"] not in untrained:
            continue
        metric = PROTOCOLS[row["protocol"]].metric
        pairs = zip(row["figures"], untrained[row["protocol"]], strict=True)
        more = [value_of(own, metric) - value_of(theirs, metric) for own, theirs in pairs]
        p = p_of_mean(more)
        found.append(
            {
                "protocol": row["protocol"],
                "source": row["source"],
                "figure": metric,
                **mean_of(more).as_columns("gain"),
                "p": None if math.isnan(p) else p,
                "p_holm": None,
            }
        )
    known = [row for row in found if row["p"] is not None]
    for row, corrected in zip(known, holm([row["p"] for row in known]), strict=True):
        row["p_holm"] = corrected
    return found


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report but the tables of single protocols: all networks, Tables 1 to 4, the gains."""
    rows = report["rows"]
    networks = list(dict.fromkeys(row["source"] for row in rows))
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    figures = {(row["protocol"], row["source"]): row["figures"] for row in rows}
    lines = [
        f"{heading_in_words(report)}; percent, mean [{report['interval']}]",
        "",
        "| protocol | figure | " + " | ".join(networks) + " |",
        "|---" * (2 + len(networks)) + "|",
    ]
    for protocol in protocols:
        metric = PROTOCOLS[protocol].metric
        cells = " | ".join(in_percent(figures[protocol, network], metric) for network in networks)
        lines.append(f"| {protocol} | {metric} | {cells} |")
    for name, of_table in TABLES.items():
        if any(protocol in of_table for protocol in protocols):
            lines += ["", f"{name}:", "", paper_table(name, rows)]
    finite = sum(row["p"] is not None for row in report["gains"])
    lines += [
        "",
        f"percentage points above an untrained network of the same seed, mean [{report['interval']}]; p by Student's t "
        f"test, and corrected for {finite} comparisons by the method of Holm",
        "",
        "| protocol | figure | network | gain | p | p, corrected |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["gains"]:
        cells = "not finite | | "
        if row["gain"] is not None:
            gain = Estimate(*(100 * end for end in Estimate.of_columns(row, "gain")))
            cells = f"{gain:+.1f} | {row['p']:.2g} | {row['p_holm']:.2g}"
        lines.append(f"| {row['protocol']} | {row['figure']} | {row['source']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
