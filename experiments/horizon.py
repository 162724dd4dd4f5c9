"""What one update of the oracle is worth: against every agent's from the same state, and some updates later.

    python experiments/horizon.py

Every agent plays as in the leaderboard; at some moments its run is forked. The agent goes on for one update, and from
the same state so do, on forks:

- the oracle (`agents.Lookahead`), which tries every lean and plays the best one;
- the oracle's lean drawn anew: the same chances, other actions and other data. What the oracle has beyond this one is
  the luck of the draw, which it selects by;
- random permutations, with other data.

The oracle's fork and that of random permutations then train on random permutations for some updates more. Reported:

- by agent, the gain of that one update, E before minus E after, its own and the oracle's from the same state;
- by moment, how often the oracle leans at all, and by how much the errors of these forks are below that of random
  permutations, after that update and each later one.

Intervals are over states. States of one seed begin with the same network and X_val, so they are not independent, and
the intervals narrower than those over many seeds would be.

Each agent and seed leaves a file in the folder `runs` and is not run again. Writes `experiments/results/horizon.json`
and prints the tables.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from agents import Agent, Lookahead, RandomPolicy
from experiments import contest, runs
from permenv import PermShuffleEnv

_ORACLE = "lookahead"
_AGENTS = tuple(name for name in contest.AGENTS if name != _ORACLE)
_DIVERGED = 1.0  # the error that counts for a network that is no more


@dataclass(frozen=True)
class Config(contest.Config):
    """The measurement's options."""

    agents: tuple[str, ...] = _AGENTS
    """Whose states, and whom the oracle is compared with."""
    seeds: int = 2
    """Runs of each, seeds 0, 1, ..."""
    moments: tuple[int, ...] = (1, 4)
    """Updates after which the run is forked, each at least 1."""
    later: int = 3
    """Updates on random permutations after the one in question."""
    share: float = 0.5
    """Of the samples that the oracle gives to the group it leans to, in (0, 1]."""
    runs: Path = Path("runs/horizon")
    """Folder of the runs, one JSON file each; those that are there already are not run again."""
    out: Path = Path("experiments/results/horizon.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ValueError: If an agent is unknown, the updates do not fit or the share is out of its range.
        RunFolderError: If the folder has runs of other settings.
    """
    if min(config.moments) < 1 or max(config.moments) + 1 + config.later > config.updates:
        raise ValueError(
            f"--moments {config.moments}: each must be at least 1, and leave 1 + {config.later} (--later) of the "
            f"{config.updates} updates of a run (--updates)"
        )
    if not 0 < config.share <= 1:
        raise ValueError(f"--share {config.share}: must be above 0 and at most 1")
    found = contest.run_all(
        functools.partial(_run, moments=config.moments, later=config.later, updates=config.updates, share=config.share),
        config,
        {"moments": list(config.moments), "later": config.later, "share": config.share},
    )
    states = {name: [state for run in each for state in run["states"]] for name, each in found.items()}
    report = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": "embedded scenes, seed 0",
        "seeds": config.seeds,
        "updates": config.updates,
        "share": config.share,
        "interval": contest.INTERVAL,
        **compare(states),
        "states": states,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, report)
    print(_in_words(report))
    return report


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Compare errors.

    Args:
        found: By agent, its states: "moment"; "before", E there; "own", E an update later; "leans", whether the oracle
            does; "oracle", "random", E after that update and each later one; "lean drawn anew", E after that update.

    Returns:
        "one update": by agent, "difference" of the gains, the oracle's minus its own, over all moments; and at each of
        the "moments" the means: gains "own" and "oracle", and "later", by how much the oracle's last error is below
        that of random permutations. "moments": each with "n" states, "leans", the share of them in which the oracle
        leans, "before", the mean E there, "lean drawn anew" and "oracle": by how much their errors are below that of
        random permutations, "oracle" for every update since. Figures with an interval are (mean, low, high).
    """
    one_update = {
        name: {
            "moments": {
                moment: {
                    "own": float(np.mean([state["before"] - state["own"] for state in there])),
                    "oracle": float(np.mean([state["before"] - state["oracle"][0] for state in there])),
                    "later": float(np.mean([state["random"][-1] - state["oracle"][-1] for state in there])),
                }
                for moment, there in _by_moment(states).items()
            },
            "difference": contest.mean_and_interval([state["own"] - state["oracle"][0] for state in states]),
        }
        for name, states in found.items()
    }
    moments = []
    for moment, there in _by_moment([state for states in found.values() for state in states]).items():
        reference = np.array([state["random"] for state in there])  # [states, updates]
        played = np.array([state["oracle"] for state in there])
        redrawn = np.array([state["lean drawn anew"] for state in there])
        moments.append(
            {
                "moment": moment,
                "n": len(there),
                "leans": float(np.mean([state["leans"] for state in there])),
                "before": float(np.mean([state["before"] for state in there])),
                "lean drawn anew": contest.mean_and_interval(reference[:, 0] - redrawn),
                "oracle": [contest.mean_and_interval(column) for column in (reference - played).T],
            }
        )
    return {"one update": one_update, "moments": moments}


def _by_moment(states: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    moments = dict.fromkeys(state["moment"] for state in states)
    return {moment: [state for state in states if state["moment"] == moment] for moment in moments}


def _run(name: str, seed: int, moments: tuple[int, ...], later: int, updates: int, share: float) -> dict[str, Any]:
    """The states of one agent's run, and what might have become of them, see `compare`."""
    env = _Moments(gym.make("PermShuffle-v0", total_updates=updates, device="cpu"), moments)
    contest.play(name, env, seed=seed)
    missing = sorted(set(moments) - set(env.own))
    if missing:
        raise RuntimeError(f"{name}, seed {seed}, diverged before update {missing[0] + 1} was over: nothing to compare")
    rng = np.random.default_rng([seed, len(moments)])
    return {
        "states": [
            {"moment": moment, "own": env.own[moment], **_branches(env.starts[moment], later, share, rng)}
            for moment in moments
        ]
    }


def _branches(start: PermShuffleEnv, later: int, share: float, rng: np.random.Generator) -> dict[str, Any]:
    """Errors of the forks from one state, see `compare`."""
    spaces = (start.observation_space, start.action_space)

    def agent(kind: Callable[..., Agent], **options: Any) -> Agent:
        return kind(*spaces, seed=int(rng.integers(2**31)), **options)

    world = start.fork()
    oracle = Lookahead(world, seed=int(rng.integers(2**31)), share=share)
    chances = oracle.probabilities(_observation(world))
    best = max(oracle.gains, key=lambda lean: oracle.gains[lean])
    afterwards = int(rng.integers(2**31))  # the same for both
    return {
        "before": _error(start),
        "leans": best is not None,
        "oracle": _errors(world, oracle, RandomPolicy(*spaces, seed=afterwards), later),
        "random": _errors(_redrawn(start, rng), agent(RandomPolicy), RandomPolicy(*spaces, seed=afterwards), later),
        "lean drawn anew": _errors(_redrawn(start, rng), agent(_Constant, chances=chances))[0],
    }


class _Moments(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Forks the run at some moments, notes the error one update later, and ends the run after the last one.

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
            world = self.unwrapped
            assert isinstance(world, PermShuffleEnv)
            if info["update"] in self._moments:
                self.starts[info["update"]] = world.fork()
            if info["update"] - 1 in self._moments:
                self.own[info["update"] - 1] = _error(world)
            truncated = truncated or len(self.own) == len(self._moments)
        return observation, reward, terminated, truncated, info


class _Constant(RandomPolicy):
    """The same chances whatever it sees."""

    def __init__(self, *spaces: gym.Space, seed: int, chances: np.ndarray) -> None:
        super().__init__(*spaces, seed=seed)
        self._chances = chances

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        return self._chances


def _redrawn(start: PermShuffleEnv, rng: np.random.Generator) -> PermShuffleEnv:
    """A fork that meets other data."""
    twin = start.fork()
    twin.np_random = np.random.default_rng(rng.integers(2**31))
    return twin


def _observation(world: PermShuffleEnv) -> np.ndarray:
    return world.records[-1].observation


def _error(world: PermShuffleEnv) -> float:
    return world.records[-1].errors["spatial"]


def _errors(world: PermShuffleEnv, first: Agent, then: Agent | None = None, later: int = 0) -> list[float]:
    """Play an update as one agent does, and later ones as another; return E at the end of each."""
    errors: list[float] = []
    observation = _observation(world)
    for agent in [first, *[then] * later]:
        assert agent is not None
        over = False
        while not over:
            observation, _, terminated, _, info = world.step(agent.act(observation))
            if terminated:
                return errors + [_DIVERGED] * (1 + later - len(errors))
            over = info["validated"] and info["phase"] == "update"
        errors.append(_error(world))
    return errors


def _in_words(report: dict[str, Any]) -> str:
    """The tables, as the documentation shows them."""

    def shown(figure: tuple[float, float, float]) -> str:
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*figure)

    moments = report["moments"]
    later = len(moments[0]["oracle"])
    lines = [
        f"{report['data']}, {report['seeds']} seeds, {len(moments)} moments of each run; mean [{report['interval']}]",
        "",
        "| gain of an update | "
        + "".join(f"own, after {row['moment']} | the oracle's | below random {later - 1} later | " for row in moments)
        + "difference, all |",
        "|---" * (2 + 3 * len(moments)) + "|",
        *(
            f"| {name} | "
            + "".join(
                f"{gains['own']:+.3f} | {gains['oracle']:+.3f} | {gains['later']:+.3f} | "
                for gains in row["moments"].values()
            )
            + f"{shown(row['difference'])} |"
            for name, row in report["one update"].items()
        ),
        "",
        "E below that of random permutations from the same state",
        "",
        "| after update | states | E there | oracle leans in | its lean drawn anew | the oracle "
        + "".join(f"| {update} later " for update in range(1, later))
        + "|",
        "|---" * (5 + later) + "|",
    ]
    for row in moments:
        cells = [
            f"{row['moment']}",
            f"{row['n']}",
            f"{row['before']:.3f}",
            f"{row['leans']:.0%}",
            shown(row["lean drawn anew"]),
            *map(shown, row["oracle"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, runs.RunFolderError) as error:
        sys.exit(f"error: {error}")
