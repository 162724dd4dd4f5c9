"""A contest: every agent from every seed, a run each, in processes; a run that has its file is not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import agents
from agents import sb3
from experiments import runs

AGENTS = (*agents.AGENTS, "ppo", "a2c", "dqn")
_RESAMPLES = 10_000
_LEVEL = 0.95
INTERVAL = f"{_LEVEL:.0%}, bootstrap of the mean, {_RESAMPLES} resamples"


@dataclass(frozen=True)
class Config:
    """What the options of all contests begin with."""

    agents: tuple[str, ...] = AGENTS
    """Whose runs."""
    seeds: int = 5
    """Runs of each, seeds 0, 1, ..."""
    updates: int = 8
    """Updates of each run."""
    processes: int = max(1, (os.cpu_count() or 1))
    """Runs at once, one thread each."""
    runs: Path = Path("runs/contest")
    """Folder of the runs, one JSON file each; those that are there already are not run again."""


def play(name: str, env: gym.Env, *, seed: int) -> None:
    """Let an agent play and learn one run, from its reset to its end.

    Args:
        name: One of `AGENTS`.
        env: `PermShuffle-v0`, its actions unchanged, under any wrappers. Stable-Baselines3 resets it once more when the
            run is over.
        seed: Of the run, and of what the agent draws.
    """
    if name not in agents.AGENTS:
        world: Any = env.unwrapped
        model = sb3.make_model(name, env, seed=seed)
        steps = world.config.total_updates * sb3.steps_of_an_update(env)
        model.learn(steps, lambda local, _: not local["dones"][0])
        return
    agent = agents.make(name, env, seed=seed)
    observation, _ = env.reset(seed=seed)
    over = False
    while not over:
        action = agent.act(observation)
        observation_next, reward, terminated, truncated, info = env.step(action)
        agent.learn(agents.Transition(observation, action, reward, observation_next, terminated, truncated, info))
        observation, over = observation_next, terminated or truncated


def run_all(
    work: Callable[[str, int], Mapping[str, Any]], config: Config, settings: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Run what is missing of every agent and seed, and gather all.

    Args:
        work: Makes one run of an agent from a seed, and returns what JSON can hold; it is sent to a process, which has
            one thread.
        config: Who, how often, where: the files are AGENT-seedSEED.json.
        settings: What all runs of one folder have in common beside `updates` and the libraries' versions.

    Returns:
        By agent, a run a seed.

    Raises:
        ValueError: If an agent is unknown.
        RunFolderError: If there are runs of other settings, before anything is run.
    """
    unknown = [name for name in config.agents if name not in AGENTS]
    if unknown:
        raise ValueError(f"unknown agent {unknown[0]!r}: choose of {', '.join(AGENTS)}")
    settings = {**settings, "updates": config.updates, "versions": runs.versions()}
    config.runs.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for seed in range(config.seeds) for name in dict.fromkeys(config.agents)]
    files = {(name, seed): config.runs / f"{name}-seed{seed}.json" for name, seed in jobs}
    found = {job: _read(path, settings) for job, path in files.items() if path.is_file()}
    # The oracle's runs take as long as all others together: they go last, so that a table without them comes early.
    missing = sorted((job for job in jobs if job not in found), key=lambda job: job[0] == "lookahead")
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_run, work, *job, settings, files[job]) for job in missing]
        for done in tqdm(as_completed(running), total=len(running), unit="run", disable=not running):
            done.result()
    found |= {job: _read(files[job], settings) for job in missing}
    return {name: [found[name, seed] for seed in range(config.seeds)] for name in config.agents}


def _run(
    work: Callable[[str, int], Mapping[str, Any]], name: str, seed: int, settings: Mapping[str, Any], path: Path
) -> None:
    torch.set_num_threads(1)
    runs.write_json(path, {"settings": settings, "agent": name, "seed": seed, **work(name, seed)})


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise runs.RunFolderError(
            f"{path} was run with {found['settings']}, asked for is {settings}: name another folder with --runs, or "
            f"remove it"
        )
    return found


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean, and the ends of the bootstrap's percentile interval of it, see `INTERVAL`."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(np.mean(values)), float(low), float(high)
