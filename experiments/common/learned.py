"""Policies learned across runs: what they see and choose, and how they are played once they are frozen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents import Agent, EpisodicAgent, GaussianReinforce, Pgpe
from experiments.common.content import digest_of_file, require_content
from experiments.common.training.run_folder import CHECKPOINT
from permenv import CheckpointError, ConfigurationError, checkpoint
from permenv.wrappers import (
    PHASE_WRAPPERS,
    ErrorAndProgress,
    ErrorReduction,
    MixtureAction,
    PoolAction,
    RunSummary,
    StateHistory,
)

LEARNERS: Mapping[str, Callable[..., EpisodicAgent]] = {"gaussian": GaussianReinforce, "pgpe": Pgpe}
"""By name, our algorithms; the others are those of Stable-Baselines3."""

_FORMER_NAMES: Mapping[str, str] = {"reinforce": "gaussian"}  # of algorithms, in older files

ACTION_WRAPPERS: Mapping[str, Callable[[gym.Env], gym.Env]] = {
    name: PHASE_WRAPPERS[name] for name in ("pool", "mixture")
}
"""By name, the action wrappers of a policy: one action a phase."""
_INVERSES: Mapping[str, Callable[[gym.Env], gym.Env]] = {
    "pool": lambda env: PoolAction(env, hardest_first=True),
    "mixture": lambda env: gym.wrappers.TransformAction(MixtureAction(env), lambda action: -action, None),
}
"""The same actions with easy and hard exchanged: of a mixture that is q ∝ f² / π, see `agents.InversePolicy`."""


def algorithm_in(settings: Mapping[str, Any]) -> str:
    """Return the algorithm that a policy's settings name, which older files may call otherwise."""
    return _FORMER_NAMES.get(settings["algorithm"], settings["algorithm"])


def wrap(env: gym.Env, actions: str, history: int, *, inverse: bool = False) -> gym.Env:
    """Wrap the environment as a policy across runs needs it.

    Args:
        env: `PermShuffle-v0`.
        actions: One of `ACTION_WRAPPERS`.
        history: Number of states that are observed, those of the last validations, with the errors and the progress;
            0 for a summary of the last one (`permenv.wrappers.RunSummary`).
        inverse: Whether easy and hard are exchanged in the actions.

    Returns:
        An environment with one step a phase, whose return is E_0 - E_T.
    """
    acting = (_INVERSES if inverse else ACTION_WRAPPERS)[actions](ErrorReduction(env))
    return ErrorAndProgress(StateHistory(acting, history)) if history else RunSummary(acting)


@dataclass(frozen=True)
class LearnedPolicy:
    """A policy that `experiments/across_runs.py` has learned.

    Attributes:
        path: The checkpoint.
        digest: Of the checkpoint: two files with the same digest hold the same policy.
        inverse: Whether its actions are inverted.
    """

    path: Path
    digest: str
    inverse: bool = False

    @classmethod
    def find(cls, given: Path, *, inverse: bool = False) -> LearnedPolicy:
        """Find a policy.

        Args:
            given: A run folder of `experiments/across_runs.py`, or a copy of its checkpoint under another name.
            inverse: Whether its actions are inverted.

        Raises:
            CheckpointError: If there is none, or the file cannot be read or holds something else.
        """
        path = given / CHECKPOINT if given.is_dir() else given
        if not path.is_file():
            raise CheckpointError(f"there is no {path}: name a run folder of experiments/across_runs.py")
        policy = cls(path, digest_of_file(path), inverse)
        policy._read()
        return policy

    @property
    def name(self) -> str:
        """What tables call it."""
        name = self.path.parent.name if self.path.name == CHECKPOINT else self.path.stem
        return f"inverse of {name}" if self.inverse else name

    def make(self, env: gym.Env, *, seed: int) -> tuple[gym.Env, Agent]:
        """Make the frozen policy, which plays the mean of its actions, and wrap the environment as the policy needs it.

        Args:
            env: `PermShuffle-v0` with the number of groups and tasks that the policy was trained with.
            seed: Has no effect on a frozen policy.

        Raises:
            CheckpointError: If the file holds no such policy, or another one than when it was found.
            ValueError: If the environment has other groups or tasks.
        """
        saved = self._read()
        job, options = saved["job"], saved["job"]["settings"]
        wrapped = wrap(env, options["actions"], options["history"], inverse=self.inverse)
        algorithm = algorithm_in(options)
        if algorithm not in LEARNERS:
            from agents.sb3_across import FrozenModel  # slow to import

            with checkpoint.naming(self.path):
                return wrapped, FrozenModel(
                    algorithm, saved["agent"], job.get("scale"), wrapped, hidden=options["hidden"]
                )
        kind = LEARNERS[algorithm]
        agent = kind(wrapped.observation_space, wrapped.action_space, seed=seed, hidden=options["hidden"])
        agent.deterministic = True
        with checkpoint.naming(self.path):
            agent.load_state_dict(saved["agent"])
        return wrapped, agent

    def _read(self) -> dict[str, Any]:
        """Read the checkpoint, and check that it is that of a policy across runs."""
        saved = checkpoint.read(self.path)
        require_content(self.path, self.digest)
        job = saved.get("job")
        settings = job.get("settings") if isinstance(job, dict) else None
        # the runs of experiments/sb3.py have "actions" as well
        if not (isinstance(settings, dict) and {"actions", "history"} <= settings.keys()):
            raise CheckpointError(
                f"{self.path} holds no policy across runs: name a run folder of experiments/across_runs.py"
            )
        return saved


def by_name(policies: Sequence[LearnedPolicy], taken: Collection[str]) -> dict[str, LearnedPolicy]:
    """Return policies by their names.

    Args:
        policies: The policies.
        taken: What others are called that they are compared with.

    Raises:
        ConfigurationError: If two have the same name, or one has a name that is taken.
    """
    found: dict[str, LearnedPolicy] = {}
    for policy in policies:
        if policy.name in found or policy.name in taken:
            other = found[policy.name].path if policy.name in found else "an agent"
            raise ConfigurationError(
                f"{policy.path}: {other} is called {policy.name!r} as well: give the folder or the file another name"
            )
        found[policy.name] = policy
    return found
