"""Table F.1: accuracy after an epoch with the policy, and with its inverse, relative to random permutations.

    python experiments/paper/table_f1.py
    python experiments/paper/table_f1.py --policy runs/across-gaussian-pool-seed0

The protocol is that of appendix F: a network is taken from a checkpoint and trained for one epoch with each of the
three, and the ratios are averaged over several checkpoints. Here these are at 20, 40, 60, 80 and 100% of an episode, of
several seeds. Where an epoch is short, it shows little, so the same is measured after a quarter of an episode. The
policy is frozen in that time. By default it is REINFORCE as it has learned in the run so far, as in the paper, else a
policy that was learned across runs.

A policy with all of Ψ in play has an inverse with all of Ψ in play, and copies that train with the two are the same
network. A ratio over all checkpoints then says little, so the ratios are given by checkpoint as well, with the
difference of the two policies and the number of runs in which they are equal.

How much there is to win is measured beside it: copies are also trained with the easiest 10, 30, 50, 70 or 90% of Ψ in
play all the time (`POOLS`). At each checkpoint the best of these is taken, on the seeds that are reported, so its
figure is rather too high.

The paper's network is CaffeNet on ImageNet with 1000 permutations, in runs of 350,000 iterations; here it is the nano
preset on embedded scenes. A job that is done is kept in the folder `runs`. Writes `experiments/results/table-f1.json`
with every value, and prints the table.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import agents
from agents import Agent, InversePolicy
from agents.rollout import rollout
from experiments.common.learned import LearnedPolicy
from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.report import heading, publish
from experiments.common.reports.statistics import OF_MEANS, OF_RATIOS, Estimate, mean_of, ratio_of_means
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.paper.shared import find_policy, policy_in
from permenv import PermShuffleEnv
from permenv.wrappers.base import base_env_of

CHECKPOINTS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of an episode."""
QUARTER = 0.25
"""The longer of the two trainings, as a share of an episode."""
KINDS = ("policy", "inverse", "random")
POOLS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of Ψ, easiest first, that are in play all the time."""
_NEVER = 10**9  # updates after which a pool would have grown to all of Ψ
PAPER = {"policy": (125, 14), "inverse": (78, 16)}
"""The paper's mean and standard deviation, in percent of random permutations' accuracy."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    preset: Preset = "nano"
    policy: Path | None = None
    """Run folder of `experiments/across_runs.py`, or a copy of its checkpoint; by default REINFORCE within each run."""
    seeds: int = 5
    """Runs; each has all checkpoints."""
    first_seed: int = 300
    """The first of the seeds."""
    runs: Path | None = Path("runs/table-f1")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/table-f1.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        CheckpointError: If the folder holds no policy.
        RunFolderError: If `runs` has results of other settings.
    """
    name, policy = find_policy(config.policy)
    found = over_seeds(_run, {name: {"policy": policy}}, config)[name]
    report = {
        **heading(config),
        "policy": name,
        "first_seed": config.first_seed,
        "interval": OF_RATIOS,
        "paper": PAPER,
        "epoch": found[0]["epoch"],
        "quarter": found[0]["quarter"],
        "table": {length: _rows([run["accuracies"] for run in found], length) for length in ("epoch", "quarter")},
        "by_checkpoint": {
            "interval": OF_MEANS,
            **{length: _by_checkpoint([run["accuracies"] for run in found], length) for length in ("epoch", "quarter")},
        },
        "best_pools": {
            length: _best_pools([run["accuracies"] for run in found], length) for length in ("epoch", "quarter")
        },
        "accuracies": [run["accuracies"] for run in found],
    }
    publish(report, in_words(report), config.out)
    return report


def _run(policy: LearnedPolicy | None, seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Train one network with the policy; at each checkpoint, continue copies of it with the three policies.

    Returns:
        "epoch" and "quarter", their iterations, and "accuracies": by checkpoint, by length and by kind.
    """
    episode, quarter, env = _with_epochs(environment)
    base_env = base_env_of(env)
    env, agent = policy_in(env, policy, seed)
    observation, _ = env.reset(seed=seed)
    accuracies: dict[str, dict[str, dict[str, float]]] = {}
    done = 0
    for share in CHECKPOINTS:
        updates = round(share * episode)
        last = rollout(env, agent, observation=observation, updates=updates - done, learn=policy is None)
        done, observation = updates, last.next_observation
        accuracies[f"{share:.0%}"] = {"epoch": {}, "quarter": {}}
        for kind in (*KINDS, *map(_pool, POOLS)):
            seen = observation if kind in ("policy", "inverse") else base_env.run.observation
            errors = _continue(base_env, seen, kind, agent, policy, seed, quarter)
            accuracies[f"{share:.0%}"]["epoch"][kind] = 1 - errors[0]
            accuracies[f"{share:.0%}"]["quarter"][kind] = 1 - errors[-1]
    epoch = base_env.config.iterations_per_update
    return {"epoch": epoch, "quarter": quarter * epoch, "accuracies": accuracies}


def _with_epochs(environment: EnvOptions) -> tuple[int, int, gym.Env]:
    """Make the environment with an epoch per update, and without free iterations.

    Returns:
        The updates of an episode, of about as many iterations as before; those of a quarter of it; and the environment,
        which allows for both, since the last copies continue beyond the end of the episode.
    """
    base_env = base_env_of(environment.make())
    config, task = base_env.config, next(iter(base_env.tasks.values()))
    epoch = max(1, (len(task.data) - config.num_validation) // config.batch_size)
    episode = max(len(CHECKPOINTS), round(config.total_iterations / epoch))
    quarter = max(1, round(QUARTER * episode))
    numbers = dataclasses.replace(
        environment.env, iterations_per_update=epoch, free_iterations=0, total_updates=episode + quarter
    )
    return episode, quarter, dataclasses.replace(environment, env=numbers).make()


def _continue(
    base_env: PermShuffleEnv,
    observation: np.ndarray,
    kind: str,
    agent: Agent,
    policy: LearnedPolicy | None,
    seed: int,
    updates: int,
) -> list[float]:
    """Train a copy of the network for some updates with a frozen policy; return E after each."""
    fork: gym.Env = base_env.fork()
    pools = {_pool(share): share for share in POOLS}
    if kind == "random":
        frozen: Agent = agents.make("random", fork, seed=seed)
    elif kind in pools:
        frozen = agents.make("easiest-first", fork, seed=seed, start=pools[kind], updates=_NEVER)
    elif policy is not None:
        fork, frozen = dataclasses.replace(policy, inverse=kind == "inverse").make(fork, seed=seed)
    else:
        frozen = copy.deepcopy(agent)
        if kind == "inverse":
            frozen = InversePolicy(frozen, seed=seed)  # type: ignore[arg-type]  # REINFORCE chooses groups
    errors: list[float] = []
    last = rollout(
        fork,
        frozen,
        observation=observation,
        updates=updates,
        learn=False,
        on_update=lambda transition: errors.append(transition.info["error"]),
    )
    return [*errors, 1.0] if last.terminated else errors  # a network that has diverged recognises nothing


def _pool(share: float) -> str:
    return f"easiest {share:.0%}"


def _best_pools(runs: list[dict[str, Any]], length: str) -> dict[str, Any]:
    """Return, by checkpoint, the best pool and its mean accuracy relative to random permutations; and the mean."""
    best: dict[str, Any] = {}
    for point in runs[0]:
        found = {kind: np.mean([run[point][length][kind] for run in runs]) for kind in ("random", *map(_pool, POOLS))}
        kind = max(found, key=found.__getitem__)
        best[point] = {"pool": kind, "ratio": float(found[kind] / found["random"])}
    return {"checkpoints": best, "mean": float(np.mean([row["ratio"] for row in best.values()]))}


def _by_checkpoint(runs: list[dict[str, Any]], length: str) -> dict[str, dict[str, Any]]:
    """Return, by checkpoint, the mean ratio of both policies, that of their difference, and how many runs are equal."""
    rows = {}
    for point in runs[0]:
        values = {kind: np.array([run[point][length][kind] for run in runs]) for kind in KINDS}
        policy, inverse = (values[kind] / values["random"] for kind in ("policy", "inverse"))  # [seeds] each
        rows[point] = {
            **mean_of(policy).as_columns("policy"),
            **mean_of(inverse).as_columns("inverse"),
            **mean_of(policy - inverse).as_columns("difference"),
            "equal": int((values["policy"] == values["inverse"]).sum()),
        }
    return rows


def _rows(runs: list[dict[str, Any]], length: str) -> dict[str, dict[str, Any]]:
    """Return, by policy, the mean and deviation of the ratios, and the ratio of the means with its interval."""
    rows = {}
    values = {kind: np.array([[point[length][kind] for point in run.values()] for run in runs]) for kind in KINDS}
    for kind in ("policy", "inverse"):
        ratios = values[kind] / values["random"]  # [seeds, checkpoints]
        ours, theirs = (values[each].mean(axis=1) for each in (kind, "random"))  # [seeds]
        rows[kind] = {
            "mean": float(ratios.mean()),
            "sd": float(ratios.std(ddof=1)),
            **ratio_of_means(ours, theirs).as_columns("of_means"),
        }
    return rows


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{report['preset']} preset, {report['data']}, {report['policy']}: {len(report['accuracies'][0])} checkpoints "
        f"of {report['seeds']} seeds; accuracy relative to random permutations",
        "",
        "| | paper, one epoch | one epoch "
        f"({report['epoch']} iterations) | ratio of the means | a quarter of an episode ({report['quarter']} "
        "iterations) | ratio of the means |",
        "|---|---|---|---|---|---|",
    ]
    for kind, (mean, sd) in report["paper"].items():
        cells = [kind, f"({mean} ± {sd})%"]
        for length in ("epoch", "quarter"):
            row = report["table"][length][kind]
            ratio = Estimate.of_columns(row, "of_means")
            cells += [f"({100 * row['mean']:.0f} ± {100 * row['sd']:.0f})%", f"{ratio:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    for length in ("epoch", "quarter"):
        lines += [
            "",
            f"by checkpoint, one {length}, mean of the ratios of each run [{report['by_checkpoint']['interval']}]:",
            "",
            "| checkpoint | accuracy of random permutations | policy | inverse | policy minus inverse, in points "
            "| runs in which the two are equal |",
            "|---|---|---|---|---|---|",
        ]
        for point, row in report["by_checkpoint"][length].items():
            ratios = [f"{Estimate.of_columns(row, each):.1%}" for each in ("policy", "inverse")]
            more = f"{Estimate(*(100 * end for end in Estimate.of_columns(row, 'difference'))):+.1f}"
            random = np.mean([accuracies[point][length]["random"] for accuracies in report["accuracies"]])
            cells = [point, f"{random:.1%}", *ratios, more, f"{row['equal']} of {report['seeds']}"]
            lines.append("| " + " | ".join(cells) + " |")
    for length, best in report["best_pools"].items():
        found = ", ".join(f"{point}: {row['pool']} {row['ratio']:.0%}" for point, row in best["checkpoints"].items())
        lines += ["", f"best constant pool of each checkpoint, one {length}: {best['mean']:.0%} ({found})"]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
