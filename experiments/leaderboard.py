"""All agents on one environment: what they gain over random permutations, when, and at what cost.

    python experiments/leaderboard.py
    python experiments/leaderboard.py --agents random reinforce lookahead --seeds 20
    python experiments/leaderboard.py --preset tiny --updates 8

Runs of one seed begin with the same network and the same validation set, so agents are compared with random
permutations seed by seed (`experiments.common.reports.effect`). Each run is written to the folder `runs` when it ends
and is not run again: the script can be killed and started again at any time. Writes `runs/leaderboard.json` and `.png`
and prints the table.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common.agent_runs import (
    AGENTS,
    check_names,
    check_options,
    code_of,
    curriculum_options,
    play,
    play_learned,
    require_curriculum,
)
from experiments.common.learned import LearnedPolicy, by_name
from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.effect import Curves, accuracy_ratio, iterations_needed, iterations_saved, time_needed
from experiments.common.reports.report import heading, publish
from experiments.common.reports.statistics import INTERVAL, Estimate, mean_of
from experiments.common.reports.style import add_title, label_lines, styled
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from permenv import ConfigurationError
from permenv.wrappers import CrossEntropyReward

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_REFERENCE = "random"
_PAPER = "reinforce"  # the paper's agent
_BEST = 3  # how many other agents have a colour in the picture
_LABELS = {
    "random": "random permutations",
    "reinforce": "REINFORCE",
    "inverse": "inverse of REINFORCE",
    "uniform": "uniform over groups",
    "fixed": "always the hardest group",
    "easiest-first": "easiest first",
    "hardest-first": "hardest first",
    "exp3": "EXP3",
    "ucb": "UCB",
    "ppo": "PPO",
    "a2c": "A2C",
    "dqn": "DQN",
    "difficulty-proportional": "in proportion to the difficulty",
    "lookahead": "one-step lookahead",
    "pool-policy": "learned across runs",
    "inverse of pool-policy": "inverse of the learned",
}
"""Names of agents in the picture, where they differ from those in the table."""


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The comparison's options."""

    preset: Preset = "nano"
    agents: tuple[str, ...] = AGENTS
    """The agents; random permutations, which the others are compared with, are always among them. MODULE:CLASS is one
    of your own."""
    policies: tuple[Path, ...] = ()
    """Run folders of `experiments/across_runs.py`, or copies of their checkpoints: each policy is compared as well,
    frozen, and so is its inverse."""
    curriculum: tuple[float, float] | None = None
    """The curriculum that is compared as well: the share of Ψ with which it begins, and the share of the updates after
    which it is all of Ψ. `experiments/studies/curricula.py` finds the best."""
    cross_entropy: tuple[str, ...] = ()
    """Agents that are compared once more, learning from the cross-entropy instead of the error
    (`permenv.wrappers.CrossEntropyReward`)."""
    seeds: int = 10
    """Runs of each agent."""
    first_seed: int = 100
    """The first of the seeds; none of these has been used for tuning."""
    runs: Path | None = Path("runs/leaderboard")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("runs/leaderboard")
    """Where to write the .json and .png."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ConfigurationError: If an agent is unknown or does not support the task, the curriculum is out of range, or a
            policy has the name of another one or of an agent.
        CheckpointError: If there is no such policy, or it is one of another number of groups or tasks.
        RunFolderError: If the folder has runs of other settings.
    """
    check_names((*config.agents, *config.cross_entropy))
    if config.curriculum is not None:
        require_curriculum("--curriculum", *config.curriculum)
    players: dict[str, str | LearnedPolicy] = {name: name for name in (*config.agents, _REFERENCE)}
    policies = [LearnedPolicy.find(path, inverse=inverse) for path in config.policies for inverse in (False, True)]
    players |= by_name(policies, taken=AGENTS)
    variants: dict[str, dict[str, Any]] = {
        name: {"player": player, **(code_of(player) if isinstance(player, str) else {})}
        for name, player in players.items()
    }
    if config.curriculum is not None:
        options = curriculum_options(*config.curriculum, config.env.total_updates)
        variants[_curriculum_name(config)] = {"player": "easiest-first", "options": options}
    for name in config.cross_entropy:
        variants[f"{name}, cross-entropy"] = {"player": name, "cross_entropy": True, **code_of(name)}
    _check_players({**players, **{name: name for name in config.cross_entropy}}, config)
    found = over_seeds(_run, variants, config)
    by_agent = _metrics(found)
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": INTERVAL,
        "agents": [
            {
                "agent": name,
                "n": len(found[name]),
                "diverged": sum(run["diverged"] for run in found[name]),
                **{
                    column: value
                    for metric, each in metrics.items()
                    for column, value in each.as_columns(metric).items()
                },
                **{column: float(np.mean([run[column] for run in found[name]])) for column in ("seconds", "cost")},
                "errors": [run["errors"] for run in found[name]],
            }
            for name, metrics in by_agent.items()
        ],
        "against_the_curriculum": _against(found, _curriculum_name(config)),
    }
    title = f"{config.preset} preset, seeds {config.first_seed} to {config.first_seed + config.seeds - 1}"
    publish(report, in_words(report), config.out, _picture(by_agent, found, title))
    return report


def _check_players(players: Mapping[str, str | LearnedPolicy], config: Config) -> None:
    """Make each agent and policy once, so that one that does not fit the task is refused before the others have run."""
    with contextlib.closing(config.environment.make()) as env:
        for name, player in players.items():
            try:
                if isinstance(player, LearnedPolicy):
                    player.make(env, seed=0)
                else:
                    check_options(player, env)
            except (ValueError, TypeError) as error:
                raise ConfigurationError(
                    f"agent {name!r} cannot be compared on task {config.task!r}; leave it out: {error}"
                ) from error


def _run(
    player: str | LearnedPolicy,
    seed: int,
    environment: EnvOptions,
    options: Mapping[str, Any] = MappingProxyType({}),
    cross_entropy: bool = False,
    code: str = "",
) -> dict[str, Any]:
    """Let one agent, with its options, or one frozen policy act in one run; `code` see `code_of`."""
    if isinstance(player, LearnedPolicy):
        return play_learned(player, environment.make(), seed=seed)
    env = environment.make()
    return play(player, CrossEntropyReward(env) if cross_entropy else env, seed=seed, **options)


def _curriculum_name(config: Config) -> str:
    """Return what the curriculum is called; "" if there is none."""
    return "" if config.curriculum is None else "easiest-first ({:g}, {:g})".format(*config.curriculum)


def _against(found: dict[str, list[dict[str, Any]]], curriculum: str) -> dict[str, dict[str, float | None]]:
    """Compare agents with the curriculum, seed by seed, as they are compared with random permutations."""
    curves = {name: Curves.of(runs) for name, runs in found.items()}
    return {
        name: {
            **accuracy_ratio(each, curves[curriculum], 0.5).as_columns("at_half"),
            **accuracy_ratio(each, curves[curriculum], 1.0).as_columns("at_end"),
            **iterations_saved(each, curves[curriculum], curves[_REFERENCE]).as_columns("saved"),
        }
        for name, each in curves.items()
        if curriculum and name != curriculum
    }


def _metrics(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Estimate]]:
    """Return what is estimated of each agent, the lowest final error first."""
    random = Curves.of(found[_REFERENCE])
    curves = {name: Curves.of(runs) for name, runs in found.items()}
    by_agent = {}
    for name, each in curves.items():
        needs = iterations_needed(each, random)
        cost = 0.0 if name == _REFERENCE else float(np.mean([run["cost"] for run in found[name]]))
        by_agent[name] = {
            "final_error": mean_of(each.errors[:, -1]),
            "at_half": accuracy_ratio(each, random, 0.5),
            "at_end": accuracy_ratio(each, random, 1.0),
            "needs": needs,
            "time": time_needed(needs, cost),
        }
    return dict(sorted(by_agent.items(), key=lambda item: item[1]["final_error"].value))


@styled
def _picture(by_agent: dict[str, dict[str, Estimate]], found: dict[str, list[dict[str, Any]]], title: str) -> Figure:
    """Draw each agent's accuracy relative to random permutations, and its mean error over the run.

    Random permutations, the paper's agent and the best others have a colour and a label; the rest is grey.
    """
    from matplotlib.figure import Figure  # slow to import

    from permenv.render import COLOURS

    named = [name for name in (_REFERENCE, _PAPER) if name in by_agent]
    best = [name for name in by_agent if name not in named][:_BEST]
    # whatever their rank, so that several pictures agree
    in_order = sorted(best, key=lambda name: (name.startswith("inverse of "), name.startswith("easiest-first"), name))
    colours = dict.fromkeys(by_agent, "0.72") | dict(zip(in_order, COLOURS[2:], strict=False))
    colours |= dict(zip(named, ("black", COLOURS[1]), strict=False))
    picture = Figure(figsize=(13, max(0.3 * len(by_agent) + 1.4, 3.6)), dpi=120, layout="constrained")
    add_title(picture, title)
    *bars, curves = picture.subplots(1, 3, width_ratios=(1, 1, 1.4))
    for axis, column, moment in zip(bars, ("at_half", "at_end"), ("at half of the run", "at the end"), strict=True):
        for row, (name, metrics) in enumerate(by_agent.items()):
            value, low, high = (100 * end for end in metrics[column])
            axis.barh(row, value, color=colours[name], alpha=0.85)
            axis.plot([low, high], [row, row], color="0.25", linewidth=1)
            end = high if np.isfinite(high) else value
            axis.text(end, row, f" {value:.0f}", fontsize=8, verticalalignment="center")
        axis.axvline(100, color="black", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set_yticks(range(len(by_agent)), [_label(name) for name in by_agent] if axis is bars[0] else [])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(by_agent) - 0.4, -0.6)
        axis.set(title=f"accuracy {moment}", xlabel="% of random's [95%]")
    for text, name in zip(bars[0].get_yticklabels(), by_agent, strict=True):
        if name in (*named, *best):
            text.set(color=colours[name], fontweight="bold")
    lines: list[Line2D] = []
    for name in (*(each for each in by_agent if each not in (*named, *best)), *reversed(best), *reversed(named)):
        runs = Curves.of(found[name])
        width = 2.2 if name in (*named, *best) else 1
        line = curves.plot(
            runs.iterations, runs.errors.mean(axis=0), color=colours[name], linewidth=width, label=_label(name)
        )
        lines += line if name in (*named, *best) else []
    others = " (grey: the others)" if len(lines) < len(by_agent) else ""
    curves.set(title=f"mean error{others}", xlabel="SGD iteration", xlim=(0, runs.iterations[-1]))
    label_lines(curves, lines)
    return picture


def _label(name: str) -> str:
    """Return what pictures call an agent."""
    agent = re.split(r", | \(", name)[0]  # without its options
    if curriculum := re.fullmatch(r"easiest-first \((\S+), (\S+)\)", name):
        start, growth = map(float, curriculum.groups())
        return f"easiest {start:.0%} first, all at {growth:.0%}"
    return _LABELS.get(agent, agent) + name.removeprefix(agent)


def in_words(report: dict[str, Any]) -> str:
    """Return the table of the agents, and what is said of each beside the curriculum."""
    lines = [
        f"{report['preset']} preset, {report['data']}, {report['seeds']} seeds, {report['iterations']} iterations; "
        f"mean [{report['interval']}]",
        "",
        "| agent | final error | accuracy at half, of random's | at the end | iterations to random's final error "
        "| time to it | seconds | cost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["agents"]:
        shares = (Estimate.of_columns(row, column) for column in ("at_half", "at_end", "needs", "time"))
        cells = [_label(row["agent"]), f"{Estimate.of_columns(row, 'final_error'):.3f}", *map("{:.0%}".format, shares)]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}", f"{row['cost']:.0%}"]) + " |")
    for name, columns in report["against_the_curriculum"].items():
        if columns["saved"] is not None:
            half, end, saved = (Estimate.of_columns(columns, column) for column in ("at_half", "at_end", "saved"))
            lines += [
                "",
                f"{name} against the curriculum: {half:.0%} of the curriculum's accuracy at half of the run, {end:.0%} "
                f"at the end; it saves {saved:.1%} of the iterations until random's final error",
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
