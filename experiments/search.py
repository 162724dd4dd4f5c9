"""A search: which settings of an agent and its environment have the lowest error, by all combinations of values.

    python experiments/search.py --vary agent.learning-rate 0.003 0.01 0.03 --vary env.ema-decay 0.97 0.99
    python experiments/search.py --agent ppo --vary agent.n-epochs 3 10 --vary agent.hidden 16 64 --ray local --prune

`--vary` names an option and its values: agent.NAME, a keyword of the agent's class (of Stable-Baselines3's for ppo, a2c
and dqn), or env.NAME, a field of `permenv.Config`. Errors are compared as they are, so vary nothing that changes what E
measures, such as the number of permutations.

A setting is judged by its mean error over the seeds, which run side by side in one job, so that a hard seed does not
decide. A seed has the same data and the same first network in all settings, so comparisons are paired. The seeds are
for tuning: no study uses those from 50 to 99. `experiments/leaderboard.py` compares what is found, on other seeds.

With `--prune`, on Ray, settings with a high error are stopped early by ASHA (Li et al., "A system for massively
parallel hyperparameter tuning", 2020) as Ray Tune has it: after `grace`, `grace` · `reduction`, ... updates a setting
goes on if its error is among the lowest 1 / `reduction` of those that others have had there before. The first always
goes on, so the order counts; where several settings run at once, that is the order in which they arrive. Until it is
stopped, a setting has the errors that it has without `--prune`.

A setting that is done, or was stopped, is kept in the folder `runs` and not run again: the search can be killed and
started again at any time. Writes `runs/search.json` and `.md` and prints the table: settings that were stopped come
after the others, the longest first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from experiments.common.agent_runs import Report, check_names, code_of, play
from experiments.common.files import with_ending, write_json, write_text
from experiments.common.options import EnvOptions, Preset, SweepOptions, require_at_least
from experiments.common.reports.report import heading, heading_in_words
from experiments.common.reports.statistics import INTERVAL, Estimate, mean_of, ratio_of_means
from experiments.common.script import run_script
from experiments.common.sweeps.pruning import Asha, pruned_sweep
from experiments.common.sweeps.settings import Setting, grid
from experiments.common.sweeps.sweep import executor_of, sweep
from experiments.common.sweeps.turns import reports
from permenv import ConfigurationError
from permenv.device import resolve_device
from permenv.wrappers.base import base_env_of

_LENGTHS = ("total_updates", "iterations_per_update", "free_iterations")
"""Fields that decide how many iterations a number of updates is."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The search's options."""

    preset: Preset = "nano"
    agent: str = "reinforce"
    """The agent; MODULE:CLASS is one of your own."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option, agent.NAME or env.NAME, and its values. All combinations with the values of the others are run."""
    prune: bool = False
    """Stop settings with a high error early. Needs --ray."""
    grace: int = 3
    """With --prune: updates before which no setting is stopped."""
    reduction: int = 3
    """With --prune: of the settings that get so far, one in so many goes on."""
    seeds: int = 3
    """Runs of each setting."""
    first_seed: int = 50
    """The first of the seeds; these are for tuning only."""
    runs: Path | None = Path("runs/search")
    """Folder with the result of each setting; a setting whose result is there is not run again."""
    out: Path = Path("runs/search")
    """Where to write the .json and .md."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ConfigurationError: If the agent, an option or a value does not exist, or the settings cannot be compared.
        RunFolderError: If the folder has results of other arguments.
    """
    check_names((config.agent,))
    _check_pruning(config)
    settings = {setting.name: setting for setting in grid(config.vary, config.agent, config.environment)}
    seeds = tuple(range(config.first_seed, config.first_seed + config.seeds))
    jobs = {
        _file(name): {
            **{"agent": config.agent, "setting": setting, "seeds": seeds, "environment": config.environment},
            **code_of(config.agent),
        }
        for name, setting in settings.items()
    }
    if config.prune:
        assert config.ray is not None
        asha = Asha(updates=config.env.total_updates, grace=config.grace, reduction=config.reduction)
        gpus = float(resolve_device(config.device).type == "cuda")
        found = pruned_sweep(
            trial, jobs, asha, ray=config.ray, processes=config.processes, gpus=gpus, folder=config.runs
        )
    else:
        with executor_of(config) as executor:
            found = sweep(trial, jobs, executor=executor, folder=config.runs)
    report = {
        **heading(config),
        "agent": config.agent,
        "first_seed": config.first_seed,
        "interval": INTERVAL,
        "settings": _rows(settings, {name: found[_file(name)] for name in settings}),
    }
    table = in_words(report)
    write_json(with_ending(config.out, ".json"), report)
    write_text(with_ending(config.out, ".md"), table + "\n")
    print(f"{table}\n\nwritten to {with_ending(config.out, '.json')} and .md")
    return report


def trial(
    agent: str,
    setting: Setting,
    seeds: Sequence[int],
    environment: EnvOptions,
    report: Report = lambda result: None,
    code: str = "",
) -> dict[str, Any]:
    """Run all seeds of a setting side by side, update by update.

    Args:
        agent: One of `agent_runs.AGENTS`, or of your own.
        setting: What differs from the agent's options and from `environment`.
        seeds: Each is a run.
        environment: What the runs are of.
        report: Called with the result so far after each update of all seeds.
        code: See `agent_runs.code_of`.

    Returns:
        "errors", the mean of E over the seeds after each update; "by_seed", (seeds, updates), E, 1 from where a run
        diverged on; "diverged", how many did; "iterations", "seconds" so far; "finished".
    """
    start, errors = time.perf_counter(), []
    envs = [environment.make(**setting.env) for _ in seeds]
    updates: int = base_env_of(envs[0]).config.total_updates
    turns = [reports(partial(_play, agent, env, seed, setting.agent)) for env, seed in zip(envs, seeds, strict=True)]
    runs: list[dict[str, Any]] = [{} for _ in seeds]
    with ExitStack() as stack:
        for turn in turns:
            stack.callback(turn.close)
        for update in range(1, updates + 1):
            runs = [next(turn, run) for turn, run in zip(turns, runs, strict=True)]  # one that diverged is over
            errors.append([run["errors"][-1] for run in runs])
            diverged = sum(run["diverged"] for run in runs)
            result = {
                "errors": [float(np.mean(each)) for each in errors],
                "by_seed": np.transpose(errors).tolist(),
                "diverged": diverged,
                "iterations": max(run["iterations"][-1] for run in runs),
                "seconds": time.perf_counter() - start,
                "finished": update == updates or diverged == len(seeds),
            }
            report(result)
            if result["finished"]:
                break
    return result


def _play(agent: str, env: gym.Env, seed: int, options: Mapping[str, Any], report: Report) -> None:
    play(agent, env, seed=seed, report=report, **options)


def _check_pruning(config: Config) -> None:
    if not config.prune:
        return
    if config.ray is None:
        raise ConfigurationError("--prune: Ray Tune does it; say where with --ray, local on this machine")
    require_at_least(config, grace=1, reduction=2)
    if config.grace > config.env.total_updates:
        raise ConfigurationError(f"--grace {config.grace}: a run has {config.env.total_updates} updates")
    for name, *_ in config.vary:
        if name.replace("-", "_").removeprefix("env.") in _LENGTHS:
            raise ConfigurationError(f"--vary {name}: with --prune an update must be as long in all settings")


def _file(setting: str) -> str:
    """Return the name of the file with the result of a setting, whose backbone may be "timm/NAME"."""
    return setting.replace("/", "-")


def _rows(settings: Mapping[str, Setting], found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of each setting: those that were not stopped by their final error, then the others."""
    order = sorted(
        found, key=lambda name: (not found[name]["finished"], -_stop(found[name]), found[name]["errors"][-1])
    )
    best = 1 - np.array(found[order[0]]["by_seed"])  # [seeds, updates], accuracies
    rows = []
    for name in order:
        result = found[name]
        errors = np.array(result["by_seed"])
        reference = best[:, -1] if result["finished"] else best[:, errors.shape[1] - 1]
        with np.errstate(divide="ignore", invalid="ignore"):  # an accuracy of 0
            accuracy = ratio_of_means(1 - errors[:, -1], reference)
        rows.append(
            {
                "setting": name,
                "agent": settings[name].agent,
                "env": settings[name].env,
                "stopped": not result["finished"],
                "updates": errors.shape[1],
                **mean_of(errors[:, -1]).as_columns("error"),
                **accuracy.as_columns("accuracy"),
                "diverged": result["diverged"],
                "iterations": result["iterations"],
                "seconds": result["seconds"],
                "errors": result["by_seed"],
            }
        )
    return rows


def _stop(result: Mapping[str, Any]) -> int:
    """Return the updates before a setting was stopped; 0 if it was not."""
    return 0 if result["finished"] else len(result["errors"])


def in_words(report: Mapping[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [
        f"{report['agent']}, {heading_in_words(report)}; mean [{report['interval']}]; accuracy in percent of that of "
        f"the first row, after as many updates",
        "",
        "| setting | updates | error | accuracy, of the best's | iterations | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["settings"]:
        error = Estimate.of_columns(row, "error")
        accuracy = "-" if row["accuracy"] is None else f"{Estimate.of_columns(row, 'accuracy'):.0%}"
        updates = f"stopped after {row['updates']}" if row["stopped"] else row["updates"]
        lines.append(
            f"| {row['setting']} | {updates} | {error:.3f} | {accuracy} | {row['iterations']} | {row['seconds']:.0f} |"
        )
    if any(row["stopped"] for row in report["settings"]):
        lines += [
            "",
            "Errors of settings that were stopped are those of fewer updates: do not compare them with the others.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
