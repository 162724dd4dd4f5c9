"""All agents by name, ours and those of Stable-Baselines3, and one run of any of them."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

import agents
from agents.base import in_update
from agents.rollout import rollout
from experiments.common.learned import LearnedPolicy
from experiments.common.options import require_known
from permenv import ConfigurationError, PermShuffleEnv

_SB3 = ("ppo", "a2c", "dqn")
AGENTS = (*agents.AGENTS, *_SB3)

Report = Callable[[dict[str, Any]], object]
"""Receives what is known of a run so far: "iterations", "errors" and "diverged", see `play`."""


def check_names(names: Sequence[str]) -> None:
    """Check that all agents exist: those of `AGENTS`, and of your own, see `agents.agent_class`.

    Raises:
        ConfigurationError: If one does not.
    """
    own = [name for name in names if ":" in name]
    for name in own:
        try:
            agents.agent_class(name)
        except ValueError as error:
            raise ConfigurationError(f"unknown agent {name!r}: {error}") from error
    require_known("unknown agent", [name for name in names if name not in own], AGENTS)


def code_of(name: str) -> dict[str, str]:
    """Return a digest of the module of an agent of your own, on which its results depend, as an argument of a job."""
    if ":" not in name:
        return {}
    source = inspect.getsource(inspect.getmodule(agents.agent_class(name)))  # type: ignore[arg-type]  # it has a module
    return {"code": hashlib.blake2b(source.encode(), digest_size=16).hexdigest()}


def options_of(name: str) -> dict[str, Any]:
    """Return the options of an agent, which `play` takes, with their annotations."""
    if name not in _SB3:
        return agents.options_of(name)
    from agents import sb3  # slow to import

    return sb3.options_of(name)


def require_curriculum(option: str, start: float, growth: float) -> None:
    """Check a curriculum among the options of a script.

    Args:
        option: What named it, for the error.
        start: See `curriculum_options`.
        growth: Likewise.

    Raises:
        ConfigurationError: If a share is out of range.
    """
    if not (0 < start <= 1 and 0 < growth <= 1):
        raise ConfigurationError(f"{option} {start} {growth}: both must be above 0 and at most 1")


def curriculum_options(start: float, growth: float, updates: int) -> dict[str, Any]:
    """Return the options with which "easiest-first" plays a curriculum.

    Args:
        start: The share of Ψ with which it begins, above 0 and at most 1.
        growth: The share of the updates after which it is all of Ψ, likewise.
        updates: Of the run.
    """
    return {"start": start, "updates": max(1, round(growth * updates))}


def check_options(name: str, env: gym.Env, **options: Any) -> None:
    """Make an agent once, to check its options.

    Raises:
        ValueError, TypeError: If it does not support these options.
    """
    if name not in _SB3:
        agents.make(name, env, seed=0, **options)
    else:
        from agents import sb3  # slow to import

        sb3.make_model(name, env, seed=0, **options)


def play(name: str, env: gym.Env, *, seed: int, report: Report | None = None, **options: Any) -> dict[str, Any]:
    """Let an agent act and learn in one run, from its reset to its end.

    Args:
        name: One of `AGENTS`, or of your own, see `agents.make`.
        env: `PermShuffle-v0`, its actions unchanged, under any wrappers. Stable-Baselines3 resets it once more when the
            run is over.
        seed: Of the run, and of what the agent draws.
        report: Called after each update, before the agent learns from it, and when the run diverges.
        **options: Of the agent, see `agents.make` and `agents.sb3.make_model`.

    Returns:
        "iterations" and "errors", see `Pretraining.error_curve`; "diverged"; "seconds" of the whole run, and "cost",
        the share of them that was not training.
    """

    def learn_and_act(watched: gym.Env) -> None:
        if name not in _SB3:
            rollout(watched, agents.make(name, watched, seed=seed, **options), seed=seed)
            return
        from agents import sb3  # slow to import

        model = sb3.make_model(name, watched, seed=seed, **options)
        steps = env.unwrapped.config.total_updates * sb3.steps_of_an_update(env)  # type: ignore[attr-defined]
        model.learn(steps, lambda local, _: not local["dones"][0])

    return watch(env, learn_and_act, report)


def play_learned(policy: LearnedPolicy, env: gym.Env, *, seed: int) -> dict[str, Any]:
    """Let a frozen policy that was learned across runs act in one run; see `play`."""

    def act(watched: gym.Env) -> None:
        wrapped, agent = policy.make(watched, seed=seed)
        rollout(wrapped, agent, seed=seed, learn=False)

    return watch(env, act)


def watch(env: gym.Env, run: Callable[[gym.Env], None], report: Report | None = None) -> dict[str, Any]:
    """Time a run and return its errors.

    Args:
        env: `PermShuffle-v0` under any wrappers.
        run: Resets the environment that it is given and acts in it to the end of the run.
        report: See `play`.

    Returns:
        What `play` returns.
    """
    watched = _LastRun(env, report)
    start = time.perf_counter()
    run(watched)
    seconds = time.perf_counter() - start
    result = watched.last_run
    result["cost"] = 1 - result.pop("seconds_training") / seconds
    return {**result, "seconds": seconds}


class _LastRun(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the errors of a run when it ends, because Stable-Baselines3 begins the next one at once."""

    def __init__(self, env: gym.Env, report: Report | None) -> None:
        super().__init__(env)
        self.last_run: dict[str, Any] = {}
        self._report = report

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self.last_run:
            if self._report is not None and (terminated or (in_update(info) and info["validated"])):
                self._report(self._result())
            if terminated or truncated:
                training = self._base_env.run.seconds["training"]
                self.last_run = {**self._result(), "seconds_training": training}
        return observation, reward, terminated, truncated, info

    def _result(self) -> dict[str, Any]:
        run = self._base_env.run
        iterations, errors = run.error_curve()
        return {"iterations": iterations, "errors": errors, "diverged": run.diverged}

    @property
    def _base_env(self) -> PermShuffleEnv:
        base_env = self.unwrapped
        assert isinstance(base_env, PermShuffleEnv)
        return base_env
