"""What one update of the one-step lookahead is worth: against every agent from the same state, and some updates later.

    python experiments/studies/horizon.py

Every agent acts as in the leaderboard; at some moments its run is forked. The agent continues for one update, and from
the same state, on forks, so do

- the lookahead (`agents.Lookahead`), which tries every tilt and plays the best one;
- the lookahead's tilt redrawn: the same distribution, with other actions and other data. What the lookahead gains more
  than this is due to chance: it selects by the error that the actual draws led to;
- random permutations, with other data.

The forks of the lookahead and of random permutations then train on random permutations for some more updates. Reported:

- by agent, the gain of that one update, E before minus E after, its own and the lookahead's from the same state;
- by moment, how often the lookahead tilts at all, and how far the errors of these forks are below that of random
  permutations, after that update and each later one.

Intervals are over states. States of one seed begin with the same network and validation set, so they are not
independent, and the intervals are narrower than those over many seeds would be.

Each agent and seed leaves a file in the folder `runs` and is not run again. Writes `experiments/results/horizon.json`
and prints the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from agents import Agent, Lookahead, RandomPolicy
from agents.rollout import rollout
from experiments.common.options import EnvOptions, SweepOptions, run_script
from experiments.common.players import AGENTS, check_names, play
from experiments.common.statistics import INTERVAL, mean_and_interval
from experiments.common.sweep import over_seeds
from experiments.studies.shared import heading, in_words, publish
from permenv import ConfigurationError, PermShuffleEnv

_AGENTS = tuple(name for name in AGENTS if name != "lookahead")
_DIVERGED = 1.0  # the error that counts for a network that diverged


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The measurement's options."""

    changes: ClassVar = {"total_updates": 8}

    agents: tuple[str, ...] = _AGENTS
    """The agents whose states are taken, and with which the lookahead is compared."""
    seeds: int = 2
    """Runs of each, seeds 0, 1, ..."""
    moments: tuple[int, ...] = (1, 4)
    """Updates after which the run is forked, each at least 1."""
    later: int = 3
    """Updates on random permutations after the one in question."""
    share: float = 0.5
    """Share of the samples that the lookahead gives to the group it tilts to, in (0, 1]."""
    runs: Path | None = Path("runs/horizon")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/horizon.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ConfigurationError: If an agent is unknown, the updates do not fit or the share is out of its range.
        RunFolderError: If the folder has runs of other settings.
    """
    check_names(config.agents)
    updates = config.env.total_updates
    if min(config.moments) < 1 or max(config.moments) + 1 + config.later > updates:
        raise ConfigurationError(
            f"--moments {config.moments}: each must be at least 1, and leave 1 + {config.later} (--later) of the "
            f"{updates} updates of a run (--updates)"
        )
    if not 0 < config.share <= 1:
        raise ConfigurationError(f"--share {config.share}: must be above 0 and at most 1")
    common = {"moments": config.moments, "later": config.later, "share": config.share}
    found = over_seeds(_run, {name: {"name": name, **common} for name in config.agents}, config)
    states = {name: [state for run in runs for state in run] for name, runs in found.items()}
    report = {
        **heading(config),
        "share": config.share,
        "interval": INTERVAL,
        **compare(states),
        "states": states,
    }
    publish(report, _in_words(report), config.out)
    return report


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Compare errors.

    Args:
        found: By agent, its states: "moment"; "before", E there; "own", E an update later; "tilts", whether the
            lookahead tilts; "lookahead", "random", E after that update and each later one; "tilt redrawn", E after
            that update.

    Returns:
        "one update": by agent, "difference" of the gains, the lookahead's minus its own, over all moments; and at each
        of the "moments" the means: gains "own" and "lookahead", and "later", how far the lookahead's last error is
        below that of random permutations. "moments": each with "n" states; "tilts", the share of them in which the
        lookahead tilts; "before", the mean E there; "tilt redrawn" and "lookahead", how far their errors are below
        that of random permutations, "lookahead" for every update since. Figures with an interval are (mean, low, high).
    """
    one_update = {
        name: {
            "moments": {
                moment: {
                    "own": float(np.mean([state["before"] - state["own"] for state in there])),
                    "lookahead": float(np.mean([state["before"] - state["lookahead"][0] for state in there])),
                    "later": float(np.mean([state["random"][-1] - state["lookahead"][-1] for state in there])),
                }
                for moment, there in _by_moment(states).items()
            },
            "difference": mean_and_interval([state["own"] - state["lookahead"][0] for state in states]),
        }
        for name, states in found.items()
    }
    moments = []
    for moment, there in _by_moment([state for states in found.values() for state in states]).items():
        reference = np.array([state["random"] for state in there])  # [states, updates]
        played = np.array([state["lookahead"] for state in there])
        redrawn = np.array([state["tilt redrawn"] for state in there])
        moments.append(
            {
                "moment": moment,
                "n": len(there),
                "tilts": float(np.mean([state["tilts"] for state in there])),
                "before": float(np.mean([state["before"] for state in there])),
                "tilt redrawn": mean_and_interval(reference[:, 0] - redrawn),
                "lookahead": [mean_and_interval(column) for column in (reference - played).T],
            }
        )
    return {"one update": one_update, "moments": moments}


def _by_moment(states: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    moments = dict.fromkeys(state["moment"] for state in states)
    return {moment: [state for state in states if state["moment"] == moment] for moment in moments}


def _run(
    name: str, seed: int, environment: EnvOptions, moments: tuple[int, ...], later: int, share: float
) -> list[dict[str, Any]]:
    """Return the states of one agent's run, and the errors of the forks from each, see `compare`."""
    env = _Moments(environment.make(), moments)
    play(name, env, seed=seed)
    missing = sorted(set(moments) - set(env.own))
    if missing:
        raise RuntimeError(f"{name}, seed {seed}, diverged before update {missing[0] + 1} was over: nothing to compare")
    rng = np.random.default_rng([seed, len(moments)])
    return [
        {"moment": moment, "own": env.own[moment], **_branches(env.starts[moment], later, share, rng)}
        for moment in moments
    ]


def _branches(start: PermShuffleEnv, later: int, share: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return the errors of the forks from one state, see `compare`."""
    spaces = (start.observation_space, start.action_space)

    def draw() -> int:
        return int(rng.integers(2**31))

    base_env = start.fork()
    lookahead = Lookahead(base_env, seed=draw(), share=share)
    chances = lookahead.probabilities(start.run.observation)
    best = max(lookahead.gains, key=lambda tilt: lookahead.gains[tilt])
    afterwards = draw()  # the same for both
    other_data = _redrawn_fork(start, draw())
    by_chance = RandomPolicy(*spaces, seed=draw())
    other_draw = _redrawn_fork(start, draw())
    same_tilt = _FixedDistribution(*spaces, seed=draw(), chances=chances)
    return {
        "before": _error(start),
        "tilts": best is not None,
        "lookahead": _errors(base_env, lookahead, RandomPolicy(*spaces, seed=afterwards), later),
        "random": _errors(other_data, by_chance, RandomPolicy(*spaces, seed=afterwards), later),
        "tilt redrawn": _errors(other_draw, same_tilt)[0],
    }


class _Moments(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Forks the run at some moments, records the error one update later, and ends the run after the last one.

    Attributes:
        starts: By moment, a fork.
        own: By moment, E one update later.
    """

    def __init__(self, env: gym.Env, moments: tuple[int, ...]) -> None:
        super().__init__(env)
        self.starts: dict[int, PermShuffleEnv] = {}
        self.own: dict[int, float] = {}
        self._moments = moments

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if info["validated"] and info["phase"] == "update":
            base_env = self.unwrapped
            assert isinstance(base_env, PermShuffleEnv)
            if info["update"] in self._moments:
                self.starts[info["update"]] = base_env.fork()
            if info["update"] - 1 in self._moments:
                self.own[info["update"] - 1] = _error(base_env)
            truncated = truncated or len(self.own) == len(self._moments)
        return observation, reward, terminated, truncated, info


class _FixedDistribution(RandomPolicy):
    """Draws from the same distribution for every observation."""

    def __init__(self, *spaces: gym.Space, seed: int, chances: np.ndarray) -> None:
        super().__init__(*spaces, seed=seed)
        self._chances = chances

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        return self._chances


def _redrawn_fork(start: PermShuffleEnv, seed: int) -> PermShuffleEnv:
    """Return a fork that draws other data."""
    fork = start.fork()
    fork.run.seed = seed
    return fork


def _error(base_env: PermShuffleEnv) -> float:
    return float(np.mean(list(base_env.records[-1].errors.values())))


def _errors(base_env: PermShuffleEnv, first: Agent, then: Agent | None = None, later: int = 0) -> list[float]:
    """Let one agent act for an update, and another for some later ones; return E at the end of each."""
    errors: list[float] = []
    for agent in [first, *[then] * later]:
        assert agent is not None
        last = rollout(base_env, agent, observation=base_env.run.observation, updates=1, learn=False)
        if last.terminated:
            return errors + [_DIVERGED] * (1 + later - len(errors))
        errors.append(_error(base_env))
    return errors


def _in_words(report: dict[str, Any]) -> str:
    """Return the tables, as the documentation shows them."""

    def shown(figure: tuple[float, float, float]) -> str:
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*figure)

    moments = report["moments"]
    later = len(moments[0]["lookahead"])
    lines = [
        f"{in_words(report)}, {len(moments)} moments of each run; mean [{report['interval']}]",
        "",
        "| gain of an update | "
        + "".join(
            f"own, after {row['moment']} | the lookahead's | below random {later - 1} later | " for row in moments
        )
        + "difference, all |",
        "|---" * (2 + 3 * len(moments)) + "|",
        *(
            f"| {name} | "
            + "".join(
                f"{gains['own']:+.3f} | {gains['lookahead']:+.3f} | {gains['later']:+.3f} | "
                for gains in row["moments"].values()
            )
            + f"{shown(row['difference'])} |"
            for name, row in report["one update"].items()
        ),
        "",
        "E below that of random permutations from the same state",
        "",
        "| after update | states | E there | lookahead tilts in | its tilt redrawn | the lookahead "
        + "".join(f"| {update} later " for update in range(1, later))
        + "|",
        "|---" * (5 + later) + "|",
    ]
    for row in moments:
        cells = [
            f"{row['moment']}",
            f"{row['n']}",
            f"{row['before']:.3f}",
            f"{row['tilts']:.0%}",
            shown(row["tilt redrawn"]),
            *map(shown, row["lookahead"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
