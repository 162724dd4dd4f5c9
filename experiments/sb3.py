"""The main job with an algorithm of Stable-Baselines3 instead of ours: PPO, A2C, DQN or SAC.

    python experiments/sb3.py --algorithm ppo
    python experiments/sb3.py --algorithm a2c --task spatiotemporal --actions mixture
    python experiments/sb3.py --algorithm dqn --task temporal

The run folder is that of `experiments/reinforce.py`, with `model.zip` beside the checkpoint: what
`agents.sb3.load_model` loads, written after every update. `--resume` goes on with both from the last update, but not
bit for bit: an action drawn and not yet taken is drawn again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.sb3 import load_model, make_model, start_from, steps_of_an_update
from experiments import job
from permenv.wrappers import ActionBlock, FlatJointAction, MixtureAction

MODEL = "model.zip"


@dataclass(frozen=True, kw_only=True)
class Config(job.Config):
    """The options."""

    algorithm: Literal["ppo", "a2c", "dqn", "sac"] = "ppo"
    """Who chooses. DQN serves single tasks, and the joint one as pairs; SAC serves mixtures."""
    actions: Literal["groups", "mixture", "block", "pairs"] | None = None
    """What it chooses: "groups", the environment's own actions, one by one; "mixture", at once how an update's samples
    are spread over the groups; "block", all of an update's groups at once (slow, unless samples_per_action is large);
    "pairs", in the joint task, both groups by one number. By default groups, for SAC mixture."""
    hidden: int = 16
    """Units of the networks' hidden layer."""
    model_from: Path | None = None
    """model.zip of a run of the same algorithm and actions with whose networks to begin."""

    @property
    def view(self) -> str:
        """Which actions it chooses."""
        return self.actions or ("mixture" if self.algorithm == "sac" else "groups")

    @property
    def algorithm_name(self) -> str:
        """The algorithm, and its actions where they are not the environment's."""
        return self.algorithm if self.view == "groups" else f"{self.algorithm}-{self.view}"


_VIEWS: Mapping[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "groups": lambda env: env,
    "mixture": MixtureAction,
    "block": ActionBlock,
    "pairs": FlatJointAction,
}


def main(config: Config) -> dict[str, Any]:
    """Train one run to its end, or go on with it, and sum it up in its folder.

    Args:
        config: Its options.

    Returns:
        What summary.json holds.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    with job.Recorder(config) as run:
        env = _VIEWS[config.view](run)
        path = run.folder.path / MODEL
        if config.resume:
            model = load_model(config.algorithm, path, env)
        else:
            model = make_model(config.algorithm, env, seed=config.seed, hidden=config.hidden)
            if config.model_from is not None:
                start_from(model, config.model_from)

        def save() -> dict[str, Any]:
            _save(model, path)
            return {}  # the zip has it all

        run.begin(save)
        updates = run.world.config.total_updates - len(run.folder.rows)
        if not run.over:
            model.learn(updates * steps_of_an_update(env), _goes_on, reset_num_timesteps=not config.resume)
        summary = run.finish()
    return summary


def _goes_on(local: dict[str, Any], _: dict[str, Any]) -> bool:
    """Stop learning where the run diverged, and so ended before its time; called after every step."""
    return not local["infos"][0].get("diverged", False)


def _save(model: BaseAlgorithm, path: Path) -> None:
    """Write the model, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        model.save(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except job.ERRORS as error:
        sys.exit(f"error: {error}")
