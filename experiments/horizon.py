"""What one update of the oracle is worth: against every agent's from the same state, and some updates later.

    python experiments/horizon.py

Every agent plays as in the leaderboard; after some updates its run is forked. The agent goes on for one update, and
from the same state so do, on forks:

- the oracle (`agents.Lookahead`), which tries every lean and plays the best one;
- the oracle's lean drawn anew: the same chances, other actions and other data. What the oracle has beyond this one is
  the luck of the draw, which it selects by;
- random permutations.

These three then train on random permutations to the end of the run. Reported:

- by agent, the gain of that one update, E before minus E after, its own and the oracle's;
- over all states, by how much the oracle's error, and that of its lean drawn anew, is below that of random permutations
  after that update and each later one.

Each agent and seed leaves a file in the folder `runs` and is not run again. Writes `experiments/results/horizon.json`
and prints the tables.
"""

from __future__ import annotations

import functools
import os
import sys
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
class Config:
    """The measurement's options."""

    agents: tuple[str, ...] = _AGENTS
    """Whose states, and whom the oracle is compared with."""
    seeds: int = 3
    """Runs of each, seeds 0, 1, ..."""
    after: int = 4
    """Updates after which the run is forked, at least 1."""
    updates: int = 8
    """Updates of a whole run, more than `after`."""
    processes: int = max(1, (os.cpu_count() or 1))
    """Runs at once, one thread each."""
    runs: Path = Path("runs/horizon")
    """Folder of the runs, one JSON file each; those that are there already are not run again."""
    out: Path = Path("experiments/results/horizon.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, compare, print and write.

    Raises:
        ValueError: If an agent is unknown or the updates do not fit.
        RunFolderError: If the folder has runs of other settings.
    """
    contest.check(config.agents)
    if not 1 <= config.after < config.updates:
        raise ValueError(f"--after {config.after}: must be at least 1 and below --updates {config.updates}")
    settings = {"after": config.after, "updates": config.updates}
    found = contest.run_all(
        functools.partial(_run, after=config.after, updates=config.updates),
        config.agents,
        config.seeds,
        settings=settings,
        folder=config.runs,
        processes=config.processes,
    )
    report = {
        "machine": {**runs.machine(torch.device("cpu")), "threads": 1},  # of each process
        "data": "embedded scenes, seed 0",
        "seeds": config.seeds,
        **settings,
        "interval": contest.INTERVAL,
        **compare(found),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.out, report)
    print(_in_words(report))
    return report


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Compare errors.

    Args:
        found: By agent, a run a seed: "before", E of the state; "own", E an update later; "oracle", "lean drawn anew",
            "random", E after that update and each later one.

    Returns:
        "one update": by agent, the gains "own" and "oracle", and "difference", oracle's minus own. "later": after so
        many updates, the advantage over random permutations of the "oracle" and of its "lean drawn anew", and "n", the
        number of states. Figures are [mean, low, high].
    """
    one_update: dict[str, Any] = {}
    for name, each in found.items():
        own = [run["before"] - run["own"] for run in each]
        oracle = [run["before"] - run["oracle"][0] for run in each]
        gains = {"own": own, "oracle": oracle, "difference": list(np.subtract(oracle, own))}
        one_update[name] = {figure: contest.mean_and_interval(values) for figure, values in gains.items()}
    states = [run for each in found.values() for run in each]
    later = [
        {
            "updates": updates + 1,
            "n": len(states),
            **{
                branch: contest.mean_and_interval([run["random"][updates] - run[branch][updates] for run in states])
                for branch in ("oracle", "lean drawn anew")
            },
        }
        for updates in range(len(states[0]["random"]))
    ]
    return {"one update": one_update, "later": later}


def _run(name: str, seed: int, after: int, updates: int) -> dict[str, Any]:
    """Errors of one agent's run, and of what might have become of it, see `compare`."""
    torch.set_num_threads(1)
    moment = _Moment(gym.make("PermShuffle-v0", total_updates=updates, device="cpu"), after)
    contest.play(name, moment, seed=seed)
    start = moment.start
    if start is None:
        raise RuntimeError(f"{name}, seed {seed}, diverged within {after} updates: there is no state to go on from")
    rng = np.random.default_rng([seed, after])
    spaces = (start.observation_space, start.action_space)
    found: dict[str, Any] = {"before": _error(start), "own": moment.error}

    world = start.fork()
    oracle = Lookahead(world, seed=int(rng.integers(2**31)))
    lean = _Constant(*spaces, seed=int(rng.integers(2**31)), chances=oracle.probabilities(_observation(world)))
    candidates = oracle.gains
    chosen = max(candidates, key=lambda lean: candidates[lean])
    found["lean"] = None if chosen is None else chosen[1]
    found["promised gain over random"] = candidates[chosen]
    branches = {
        "oracle": (world, oracle),
        "lean drawn anew": (_redrawn(start, rng), lean),
        "random": (_redrawn(start, rng), RandomPolicy(*spaces, seed=int(rng.integers(2**31)))),
    }
    afterwards = int(rng.integers(2**31))  # the same in all branches
    for branch, (world, agent) in branches.items():
        later = RandomPolicy(*spaces, seed=afterwards)
        found[branch] = _errors(world, [agent, *[later] * (updates - after - 1)])
    return found


class _Moment(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Forks the run after some updates, notes the error one update later, and ends it there.

    Attributes:
        start: The run after these updates; None before, or if it diverged.
        error: E one update later.
    """

    def __init__(self, env: gym.Env, after: int) -> None:
        super().__init__(env)
        self.start: PermShuffleEnv | None = None
        self.error = _DIVERGED
        self._after = after

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if info["validated"] and info["phase"] == "update":
            world = self.unwrapped
            assert isinstance(world, PermShuffleEnv)
            if info["update"] == self._after:
                self.start = world.fork()
            elif info["update"] == self._after + 1:
                self.error, truncated = _error(world), True
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


def _errors(world: PermShuffleEnv, agents: list[Agent]) -> list[float]:
    """Play an update each; return E at the end of each."""
    errors: list[float] = []
    observation = _observation(world)
    for agent in agents:
        over = False
        while not over:
            observation, _, terminated, _, info = world.step(agent.act(observation))
            if terminated:
                return errors + [_DIVERGED] * (len(agents) - len(errors))
            over = info["validated"] and info["phase"] == "update"
        errors.append(_error(world))
    return errors


def _in_words(report: dict[str, Any]) -> str:
    """The tables, as the documentation shows them."""

    def shown(figure: tuple[float, float, float]) -> str:
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*figure)

    lines = [
        f"{report['data']}, states after {report['after']} updates, {report['seeds']} seeds; "
        f"mean [{report['interval']}]",
        "",
        "| from the states of | gain of its own next update | of the oracle's | difference |",
        "|---|---|---|---|",
        *(
            f"| {name} | {shown(row['own'])} | {shown(row['oracle'])} | {shown(row['difference'])} |"
            for name, row in report["one update"].items()
        ),
        "",
        f"E below that of random permutations from the same {report['later'][0]['n']} states",
        "",
        "| updates | the oracle, then random | its lean drawn anew, then random |",
        "|---|---|---|",
        *(
            f"| {row['updates']} | {shown(row['oracle'])} | {shown(row['lean drawn anew'])} |"
            for row in report["later"]
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, runs.RunFolderError) as error:
        sys.exit(f"error: {error}")
