"""Table 5 and figure 5: the ablation of tasks and policy, by nearest neighbours during training and by fine-tuning.

    python experiments/paper/table_5_figure_5.py
    python experiments/paper/table_5_figure_5.py --search objects --runs runs/table-5-objects

S is the spatial task, T the temporal one, S+T both at once, S&T first S, then T from its trunk, each half as long; +P
is with the policy, here REINFORCE within the run. All networks have the same number of SGD iterations; one of the joint
task trains on a mini-batch of each (section 4.3). Figure 5 is Top-1 of nearest neighbours at ten moments of the
training, with lines for an untrained network, whose batch statistics are measured, and for one that was trained on the
labels for as many iterations (`permenv.transfer.supervised`). Table 5 is fine-tuning at the end, by the protocols of
`experiments/evaluate.py`.

The paper trains CaffeNet for 350,000 iterations on ImageNet and UCF-101 and searches objects of VOC 2007, one run each.
Here it is the tiny preset on Imagenette and Weizmann actions, and by default Imagenette's photos are searched as whole
images; VOC's devkit holds frames of DAVIS (`experiments/paper/README.md`).

Which pairs of networks differ is judged over the seeds: of the differences of two networks of the same seed the mean is
taken, and a pair differs beyond noise if its 95% interval by Student's t does not contain 0. 21 pairs are compared in
each of four measures, so about one in each is to be expected by chance.

Networks and evaluations that are done are kept in the folder `runs`. Writes
`experiments/results/table-5-figure-5.json`, which `experiments/paper/figure_h1.py` reads, and `.png`.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import agents
from agents.rollout import rollout
from experiments.common.evaluation.evaluations import exit_if_diverged, value_of
from experiments.common.evaluation.protocols import PROTOCOLS, SETS, Data
from experiments.common.evaluation.sources import Source, source_of, weights_of, write_trunk
from experiments.common.options import EnvOptions, require_at_least, require_known
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, Estimate, mean_of
from experiments.common.reports.style import label_lines, styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import executor_of, sweep
from experiments.paper.shared import moments_of
from experiments.studies import features
from permenv import ConfigurationError
from permenv.device import resolve_device
from permenv.transfer.retrieval import retrieval
from permenv.transfer.trunks import Trunk, some_of, with_measured_statistics
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Network:
    """How a network is trained.

    Attributes:
        tasks: One after the other, with equal parts of the updates.
        agent: Chooses the permutations.
    """

    tasks: tuple[str, ...]
    agent: str = "random"

    @property
    def has_policy(self) -> bool:
        """Whether training needs validations."""
        return self.agent != "random"


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "S": Network(("spatial",)),
        "S+P": Network(("spatial",), "reinforce"),
        "T": Network(("temporal",)),
        "T+P": Network(("temporal",), "reinforce"),
        "S&T": Network(("spatial", "temporal")),
        "S+T": Network(("spatiotemporal",)),
        "S+T+P": Network(("spatiotemporal",), "reinforce"),
    }
)
PAPER: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "classification": (67.6, 71.3, 64.1, 65.9, 69.8, 72.0, 74.2),
        "actions": (51.5, 54.6, 52.8, 55.7, 54.2, 57.3, 58.6),
    }
)
"""By protocol, Table 5 in percent, in the order of `NETWORKS`."""
POINTS = 10
"""Moments of the training at which neighbours are searched."""
MOST = 2000
"""Queries, and images that are searched, at each."""
LINES = (features.UNTRAINED, features.SUPERVISED)
DURING, AT_END = "Top-1, mean over training", "Top-1 at the end"


@dataclass(frozen=True, kw_only=True)
class Config(features.Config):
    """The options: those of `experiments/studies/features.py`, and what figure 5 searches."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which networks."""
    protocols: tuple[str, ...] = tuple(PAPER)
    """Which protocols of `experiments/evaluate.py` at the end."""
    search: Literal["images", "objects"] = "images"
    """What figure 5 searches: whole `images`, or the objects of `voc`, as in the paper."""
    seeds: int = 5
    """Networks of each kind, at least 2."""
    first_seed: int = 820
    """The first of the seeds, of networks and protocols."""
    runs: Path | None = Path("runs/table-5")
    """Folder of the networks and of the results of each protocol; what is there is not run again."""
    out: Path = Path("experiments/results/table-5-figure-5.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Train and evaluate what is missing, print and write.

    Raises:
        ConfigurationError: If a network or protocol is unknown, or there are too few seeds.
        DataError: If data are missing or cannot be used.
    """
    _check(config)
    assert config.runs is not None, "it has a default"
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    names = [f"{network}-seed{seed}" for seed in seeds for network in config.networks]
    with executor_of(config) as executor:
        trained = sweep(train, dict(_jobs(config)), executor=executor, folder=config.runs / "networks")
        weights = {name: config.runs / f"{name}.pt" for name in names}
        of_labels = {f"{LINES[1]}-seed{seed}": weights_of(config.runs, LINES[1], seed) for seed in seeds}
        sweep(
            features.train,
            {
                name: {"network": LINES[1], "options": config.of(LINES[1]), "seed": seed, "path": of_labels[name]}
                for name, seed in zip(of_labels, seeds, strict=True)
            },
            executor=executor,
            folder=config.runs / "networks",
        )
        lines = sweep(
            top1_of_source,
            {
                f"{line}-seed{seed}": {
                    "source": source_of(of_labels.get(f"{line}-seed{seed}"), config.env),
                    "data": config.folders,
                    "search": config.search,
                    "seed": seed,
                    "device": str(resolve_device(config.device)),
                }
                for seed in seeds
                for line in LINES
            },
            executor=executor,
            folder=config.runs / "lines",
        )
        rows = features.evaluate_all(config, weights, executor)
    curves = {network: _curve([trained[f"{network}-seed{seed}"] for seed in seeds]) for network in config.networks}
    measures = {
        DURING: {network: np.mean(curve["top1"], axis=1).tolist() for network, curve in curves.items()},
        AT_END: {network: [row[-1] for row in curve["top1"]] for network, curve in curves.items()},
        **{
            protocol: {
                row["source"]: [value_of(metrics, PROTOCOLS[protocol].metric) for metrics in row["figures"]]
                for row in rows
                if row["protocol"] == protocol
            }
            for protocol in config.protocols
        },
    }
    of_lines = {line: [lines[f"{line}-seed{seed}"] for seed in seeds] for line in LINES}
    numbers = ("num_permutations", "num_validation", "batch_size")
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "search": config.search,
        "numbers": {name: getattr(config.env, name) for name in numbers},
        "curves": curves,
        "lines": of_lines,
        "above_untrained": {
            name: mean_of(np.subtract(values, of_lines[LINES[0]])) for name, values in measures[AT_END].items()
        },
        "measures": measures,
        "differences": {measure: differences(values) for measure, values in measures.items()},
        "rows": rows,
    }
    publish(report, in_words(report), config.out, _figure(report))
    exit_if_diverged(rows)
    return report


def train(
    network: Network,
    environments: Sequence[EnvOptions],
    moments: Sequence[int],
    data: Data,
    search: str,
    seed: int,
    path: Path,
) -> dict[str, Any]:
    """Train one network, look at its neighbours meanwhile, and write the weights of its trunk.

    Args:
        network: How.
        environments: Of each of its tasks.
        moments: Updates, of all tasks together, after which to look; ascending.
        data: Where neighbours are searched.
        search: A key of `experiments.common.evaluation.protocols.SETS`.
        seed: Of the run.
        path: Where the weights are written.

    Returns:
        By moment "iterations", "batches" (mini-batches trained on, of all tasks), "validations" (of a task, that the
        policy needed) and "top1"; "seconds".

    Raises:
        RuntimeError: If the run diverges.
    """
    start, before, curve = time.perf_counter(), (0, 0, 0), []
    parts = divide(environments[0].env.total_updates, len(environments))
    with tempfile.TemporaryDirectory() as folder:
        trunk_from: Path | None = None
        done = 0  # updates of the tasks before
        for number, (options, part) in enumerate(zip(environments, parts, strict=True)):
            env = options.make(total_updates=part)
            base_env, agent = base_env_of(env), agents.make(network.agent, env, seed=seed)
            observation, _ = env.reset(seed=seed, options=None if trunk_from is None else {"trunk": trunk_from})
            update = 0
            for moment in sorted({part, *(each - done for each in moments if done < each <= done + part)}):
                last = rollout(env, agent, observation=observation, updates=moment - update)
                if last.terminated:
                    raise RuntimeError(f"seed {seed} diverged: lower the learning rate")
                update, observation = moment, last.next_observation
                spent = _spent(base_env.run.iteration, len(base_env.records), len(base_env.tasks), network)
                write_trunk(path, base_env.run.trainer.eval_network.trunk.state_dict())
                if done + moment in moments:
                    source = source_of(path, options.env)
                    top1 = top1_of_source(source, data, search, seed, str(base_env.device))
                    curve.append((*np.add(before, spent).tolist(), top1))
            before, done = tuple(np.add(before, spent).tolist()), done + part
            trunk_from = Path(folder) / f"{number}.safetensors"
            base_env.save(trunk_from)
    columns = zip(*curve, strict=True)
    named = dict(zip(("iterations", "batches", "validations", "top1"), map(list, columns), strict=True))
    return {**named, "seconds": time.perf_counter() - start}


def divide(total: int, parts: int) -> list[int]:
    """Divide a number of updates into equal parts; the first ones have one more where it does not divide."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def top1_of_source(source: Source, data: Data, search: str, seed: int, device: str) -> float:
    """Return the Top-1 accuracy of nearest neighbours, in [0, 1]; statistics of an untrained network are measured.

    Raises:
        RuntimeError: If its features are not finite.
    """
    trunk: Trunk = source.load(seed)
    trunk.module.to(device)
    database, queries = SETS[search](data, trunk.input_size)
    if source.is_untrained:
        trunk = with_measured_statistics(trunk, some_of(database))
    found = retrieval(trunk.module, queries, database, most=MOST)
    if found is None:
        raise RuntimeError(f"{source.name}: features are not finite, or the images have no classes")
    return found[1]


def differences(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Compare all pairs of networks.

    Args:
        values: By network, its metric of each seed.

    Returns:
        For each pair "first", "second", "difference" with its interval, paired by seed, and "beyond_noise".
    """
    found = []
    for first, second in itertools.combinations(values, 2):
        difference = mean_of(np.subtract(values[first], values[second]))
        beyond = difference.low > 0 or difference.high < 0
        found.append({"first": first, "second": second, "difference": difference, "beyond_noise": beyond})
    return found


def said(measure: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    """Say in a sentence which pairs of networks differ beyond noise, in percentage points."""
    clear = []
    for pair in pairs:
        if pair["beyond_noise"]:
            value, low, high = pair["difference"]
            names = (pair["first"], pair["second"]) if value > 0 else (pair["second"], pair["first"])
            ends = sorted(100 * abs(end) for end in (low, high))
            clear.append(f"{names[0]} is above {names[1]} by {100 * abs(value):.1f} [{ends[0]:.1f}, {ends[1]:.1f}]")
    rest = len(pairs) - len(clear)
    if not clear:
        return f"{measure}: none of the {rest} pairs differs beyond noise."
    others = f"; the other {rest} of {len(pairs)} pairs do not differ beyond noise" if rest else ""
    return f"{measure}: {'; '.join(clear)}{others}."


def _check(config: Config) -> None:
    require_at_least(config, seeds=2)
    require_known("--networks", config.networks, NETWORKS)
    require_known("--protocols", config.protocols, PROTOCOLS)
    for protocol in (*config.protocols, "retrieval-images", f"retrieval-{config.search}"):  # labels train one network
        PROTOCOLS[protocol].check(protocol, config.folders)
    most = max(len(NETWORKS[name].tasks) for name in config.networks)
    if config.env.total_updates < most:
        raise ConfigurationError(f"--updates {config.env.total_updates}: {most} tasks need at least one each")


def _jobs(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    assert config.runs is not None, "it has a default"
    moments = moments_of(config.env.total_updates, [point / POINTS for point in range(1, POINTS + 1)])
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for name in config.networks:
            network = NETWORKS[name]
            yield (
                f"{name}-seed{seed}",
                {
                    "network": network,
                    "environments": [config.on(task) for task in network.tasks],
                    "moments": moments,
                    "data": config.folders,
                    "search": config.search,
                    "seed": seed,
                    "path": config.runs / f"{name}-seed{seed}.pt",
                },
            )


def _spent(iterations: int, validations: int, tasks: int, network: Network) -> tuple[int, int, int]:
    """Iterations, mini-batches and validations of single tasks."""
    return iterations, iterations * tasks, validations * tasks if network.has_policy else 0


def _curve(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **{name: runs[0][name] for name in ("iterations", "batches", "validations")},
        "top1": [run["top1"] for run in runs],
    }


@styled
def _figure(report: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axis = picture.subplots()
    lines = []
    for name, curve in report["curves"].items():
        value, low, high = 100 * np.array([mean_of(each) for each in np.transpose(curve["top1"])]).T
        lines += axis.plot(curve["iterations"], value, marker=".", label=name)
        axis.fill_between(curve["iterations"], low, high, color=lines[-1].get_color(), alpha=0.12, linewidth=0)
    for line, style in zip(LINES, ("dotted", "dashed"), strict=True):
        heights = [100 * np.mean(report["lines"][line])] * 2
        lines += axis.plot((0, report["iterations"]), heights, color="black", linestyle=style, label=line)
    axis.set(xlabel="SGD iteration", ylabel="Top-1, %", title=f"nearest neighbours of {report['search']}")
    axis.set_xlim(0, report["iterations"])
    label_lines(axis, lines)
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    measures = report["measures"]
    after = [measure for measure in measures if measure not in (DURING, AT_END)]
    lines = [
        f"{heading_in_words(report)}; percent, mean [{report['interval']}]",
        "",
        "| network | " + " | ".join(f"paper: {each} | ours" if each in PAPER else each for each in after) + " |",
        "|---" * (1 + len(after) + sum(each in PAPER for each in after)) + "|",
    ]
    for name in report["curves"]:
        cells = [name]
        for measure in after:
            if measure in PAPER:
                cells.append(f"{PAPER[measure][list(NETWORKS).index(name)]:.1f}")
            cells.append(_percent(measures[measure][name]))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"| network | {DURING} | {AT_END} |", "|---|---|---|"]
    for name in report["curves"]:
        lines.append(f"| {name} | {_percent(measures[DURING][name])} | {_percent(measures[AT_END][name])} |")
    lines += [f"| {name} | | {_percent(values)} |" for name, values in report["lines"].items()]
    above = (
        f"{name} {Estimate(*(100 * end for end in gain)):+.1f}" for name, gain in report["above_untrained"].items()
    )
    lines += ["", f"{AT_END}, in points above the {LINES[0]} network of the same seed: {', '.join(above)}"]
    lines += ["", *(said(measure, pairs) for measure, pairs in report["differences"].items())]
    return "\n".join(lines)


def _percent(shares: Sequence[float]) -> str:
    return f"{mean_of(100 * np.array(shares)):.1f}"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
