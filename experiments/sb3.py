"""The main job with an algorithm of Stable-Baselines3 instead of ours: PPO, A2C, DQN or SAC.

    python experiments/sb3.py --algorithm ppo
    python experiments/sb3.py --algorithm a2c --task spatiotemporal --actions mixture
    python experiments/sb3.py --algorithm dqn --task temporal

The run folder is that of `experiments/reinforce.py`, with `model.zip` beside the checkpoint: what
`agents.sb3.load_model` loads, written after every update. `--resume` continues both from the last update, but not bit
for bit: an action that was drawn and not taken is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from experiments.common import main_job
from experiments.common.options import JobOptions, run_script
from permenv.wrappers import ActionBlock, FlatJointAction, MixtureAction

MODEL = "model.zip"


@dataclass(frozen=True, kw_only=True)
class Config(JobOptions):
    """The options."""

    algorithm: Literal["ppo", "a2c", "dqn", "sac"] = "ppo"
    """The algorithm. DQN chooses groups of a single task, or pairs of the joint one; SAC chooses mixtures."""
    actions: Literal["groups", "mixture", "block", "pairs"] | None = None
    """Its actions: "groups", the environment's own, one by one; "mixture", the distribution of an update's samples over
    the groups; "block", all groups of an update at once (slow, unless samples_per_action is large); "pairs", both
    groups of the joint task as one number. By default groups, for SAC mixture."""
    hidden: int = 16
    """Units of the networks' hidden layer."""
    model_from: Path | None = None
    """model.zip of a run of the same algorithm and actions with whose networks to begin."""

    @property
    def view(self) -> str:
        """The view of the actions."""
        return self.actions or ("mixture" if self.algorithm == "sac" else "groups")

    @property
    def algorithm_name(self) -> str:
        """The algorithm, and its actions where they are not the environment's."""
        return self.algorithm if self.view == "groups" else f"{self.algorithm}-{self.view}"


VIEWS: Mapping[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "groups": lambda env: env,
    "mixture": MixtureAction,
    "block": ActionBlock,
    "pairs": FlatJointAction,
}


def main(config: Config) -> dict[str, Any]:
    """Train one run to its end, or continue it, and sum it up in its folder.

    Args:
        config: Its options.

    Returns:
        What summary.json holds.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    from agents.sb3 import load_model, make_model, save, start_from, steps_of_an_update  # slow to import

    with main_job.make_recorder(config) as run:
        queries = main_job.begin(run, config)
        env = VIEWS[config.view](run)
        path = run.folder.path / MODEL
        if config.resume:
            model = load_model(config.algorithm, path, env)
        else:
            model = make_model(config.algorithm, env, seed=config.seed, hidden=config.hidden)
            if config.model_from is not None:
                start_from(model, config.model_from)

        def write() -> dict[str, Any]:
            save(model, path)
            return {}  # the zip holds everything

        run.start(write, {task: query.name for task, query in queries.items()})
        updates = config.env.total_updates - len(run.folder.rows)
        if not run.over:
            model.learn(updates * steps_of_an_update(env), _goes_on, reset_num_timesteps=not config.resume)
        summary = main_job.finish(run, config, queries)
    return summary


def _goes_on(local: dict[str, Any], _: dict[str, Any]) -> bool:
    """Stop learning when the run has diverged and so ended early; called after every step."""
    return not local["infos"][0].get("diverged", False)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
