"""Figure 4: permutations chosen by a fresh policy, by four complexities, from an intermediate checkpoint on.

    python experiments/paper/figure_4.py
    python experiments/paper/figure_4.py --policy experiments/results/pool-policy.safetensors

Section 4.3: the policy is initialised randomly and the network taken from a checkpoint whose validation error is 72.3%.
At each validation Ψ is divided by error into four complexities; here these are quarters of Ψ, so that random
permutations have a quarter of each, and permutations of equal error are divided by their mean ratio. Shown is the share
of each quarter in what the policy chooses, update by update, of each seed and in the mean. The paper says that the
policy samples uniformly in its first three episodes and prefers hard permutations later; its figure has no numbers, of
one run.

The network of each seed is trained with random permutations until E is at most `start_error`, saved, and continued by
REINFORCE, which learns from there on, and with --policy also by a policy learned across runs, which is frozen. The
paper's network is CaffeNet on ImageNet with 1000 permutations; here it is the nano preset (500 permutations) on
embedded scenes. A job that is done is kept in the folder `runs`. Writes `experiments/results/figure-4.json` and `.png`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

import agents
from agents.rollout import rollout
from experiments.common.learned import LearnedPolicy
from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, Estimate, mean_of
from experiments.common.reports.style import styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.paper.shared import find_policy, follow, policy_in
from permenv import ConfigurationError, Validation
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPLEXITIES = ("hardest", "hard", "easy", "easiest")
"""Quarters of Ψ."""
FIRST = 3
"""Updates in which the paper's policy samples uniformly."""
LAST = 1 / 3
"""Share of the updates that are "later"."""
MOST_BEFORE = 300
"""Updates in which the network must reach the error to start from."""
_AGENTS, _LEARNED = {"reinforce": "REINFORCE"}, "learned across runs"


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    preset: Preset = "nano"
    task: tyro.conf.Suppress[str] = "spatial"
    policy: Path | None = None
    """Also a policy learned across runs: a run folder of `experiments/across_runs.py`, or a copy of its checkpoint."""
    start_error: float = 0.723
    """E of the network that the policy begins with, in (0, 1]; the paper's by default."""
    seeds: int = 5
    """Networks."""
    first_seed: int = 700
    """The first of the seeds."""
    runs: Path | None = Path("runs/figure-4")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/figure-4.json")
    """JSON file; the picture lies beside it."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        CheckpointError: If `policy` holds no policy.
        ConfigurationError: If `start_error` is out of range.
        RuntimeError: If a network does not reach it.
    """
    if not 0 < config.start_error <= 1:
        raise ConfigurationError(f"--start-error {config.start_error}: must be above 0 and at most 1")
    policies = dict([find_policy(None)] + ([find_policy(config.policy)] if config.policy else []))
    variants = {name: {"policy": policy, "start_error": config.start_error} for name, policy in policies.items()}
    found = over_seeds(_run, variants, config)
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "complexities": COMPLEXITIES,
        "start_error": config.start_error,
        "policies": {name: _row(runs) for name, runs in found.items()},
    }
    publish(report, in_words(report), config.out, _figure(report))
    return report


def quarters(validation: Validation) -> np.ndarray:
    """Divide Ψ into four complexities of equal size.

    Args:
        validation: Of the network.

    Returns:
        (|Ψ|,) int, 0 the quarter of the highest error; of equal errors, those of lower mean ratio are harder.
    """
    hardest_first = np.lexsort((validation.ratios.mean(axis=1), -validation.permutation_errors))
    found = np.empty(len(hardest_first), dtype=np.int64)
    found[hardest_first] = np.arange(len(hardest_first)) * len(COMPLEXITIES) // len(hardest_first)
    return found


def _run(policy: LearnedPolicy | None, start_error: float, seed: int, environment: EnvOptions) -> dict[str, Any]:
    """Continue one network with a policy.

    Returns:
        "updates_before"; by update "iterations", "errors" before it, and "shares" of the complexities.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        before = _save_checkpoint(environment, seed, start_error, path)
        env = environment.make(total_updates=before + environment.env.total_updates)
        env, agent = policy_in(env, policy, seed)
        choices = follow(env, agent, environment.task, options={"checkpoint": path}, learn=policy is None)
    return {
        "updates_before": before,
        "iterations": [each.iteration for each in choices],
        "errors": [each.validation.error for each in choices],
        "shares": [
            np.bincount(quarters(each.validation), weights=each.shares, minlength=len(COMPLEXITIES)).tolist()
            for each in choices
        ],
    }


def _save_checkpoint(environment: EnvOptions, seed: int, start_error: float, path: Path) -> int:
    """Train with random permutations until E is at most `start_error`; return the updates."""
    env = environment.make(total_updates=MOST_BEFORE + 1)
    base_env, random = base_env_of(env), agents.make("random", env, seed=seed)
    observation, _ = env.reset(seed=seed)
    for updates in range(MOST_BEFORE + 1):
        error = base_env.validation[environment.task].error
        if error <= start_error:
            base_env.save(path)
            return updates
        last = rollout(env, random, observation=observation, updates=1)
        if last.terminated:
            break
        observation = last.next_observation
    raise RuntimeError(
        f"seed {seed}: E is {error:.3f} after {updates} updates and was never {start_error}; raise --start-error"
    )


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    shortest = min(len(run["shares"]) for run in runs)  # one that diverged has fewer
    shares = np.array([run["shares"][:shortest] for run in runs])  # [seeds, updates, complexities]
    late = max(1, round(LAST * shortest))
    return {
        "first": [mean_of(each) for each in shares[:, :FIRST].mean(axis=1).T],
        "last": [mean_of(each) for each in shares[:, -late:].mean(axis=1).T],
        "updates_before": [run["updates_before"] for run in runs],
        "start_errors": [run["errors"][0] for run in runs],
        "shares": shares.tolist(),
    }


@styled
def _figure(report: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    policies = report["policies"]
    picture = Figure(figsize=(11, 0.8 + 2.4 * len(policies)), dpi=120, layout="constrained")
    axes = picture.subplots(len(policies), len(COMPLEXITIES), sharex=True, sharey=True, squeeze=False)
    for line, (name, row) in zip(axes, policies.items(), strict=True):
        shares = np.array(row["shares"])  # [seeds, updates, complexities]
        updates = np.arange(shares.shape[1]) + 1
        for axis, of_quarter in zip(line, np.moveaxis(shares, -1, 0), strict=True):
            axis.axhline(1 / len(COMPLEXITIES), color="black", linewidth=0.8, linestyle="dotted", label="random: 25%")
            for seed, of_seed in enumerate(of_quarter, report["first_seed"]):
                axis.plot(updates, of_seed, linewidth=0.8, label=f"seed {seed}")
            axis.plot(updates, of_quarter.mean(axis=0), color="black", linewidth=2, label="mean")
        line[0].set_ylabel(f"{_AGENTS.get(name, _LEARNED)}\nshare of the choices")
    for axis, complexity in zip(axes[0], COMPLEXITIES, strict=True):
        axis.set_title(f"{complexity} quarter")
    for axis in axes[-1]:
        axis.set_xlabel("update")
    axes[0, 0].set_ylim(bottom=0)
    picture.legend(handles=axes[0, 0].get_lines(), loc="outside right upper", fontsize=9)
    return picture


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{heading_in_words(report)}; from E {report['start_error']} on; share of the choices, "
        f"mean [{report['interval']}]",
        "",
        "| agent | updates | " + " | ".join(f"{name} quarter" for name in COMPLEXITIES) + " |",
        "|---" * (2 + len(COMPLEXITIES)) + "|",
        "| random permutations | all |" + f" {1 / len(COMPLEXITIES):.0%} |" * len(COMPLEXITIES),
    ]
    for name, row in report["policies"].items():
        for when, words in (("first", f"first {FIRST}"), ("last", "last third")):
            cells = " | ".join(f"{Estimate(*each):.1%}" for each in row[when])
            lines.append(f"| {_AGENTS.get(name, _LEARNED)} | {words} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
