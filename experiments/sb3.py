"""The main job with an algorithm of Stable-Baselines3 instead of ours: PPO, A2C, DQN or SAC.

    python experiments/sb3.py --algorithm ppo
    python experiments/sb3.py --algorithm a2c --task spatiotemporal --actions mixture
    python experiments/sb3.py --algorithm dqn --task temporal

The run folder is that of `experiments/reinforce.py`; its checkpoint holds the model too, and `agents.sb3.load_model`
loads it. `--resume` continues to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import tyro

from experiments.common.script import run_script
from experiments.common.training import main_job
from experiments.common.training.loggers import Logger
from experiments.common.training.options import JobOptions
from permenv import checkpoint
from permenv.wrappers import PHASE_WRAPPERS, FlatJointAction

ACTION_WRAPPERS: Mapping[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "groups": lambda env: env,
    **PHASE_WRAPPERS,
    "pairs": FlatJointAction,
}
"""By name, the action wrappers of a model; "groups" leaves the environment its own actions."""

if TYPE_CHECKING:
    Actions = str
else:
    Actions = tyro.extras.literal_type_from_choices(ACTION_WRAPPERS)


@dataclass(frozen=True, kw_only=True)
class Config(JobOptions):
    """The options."""

    algorithm: Literal["ppo", "a2c", "dqn", "sac"] = "ppo"
    """The algorithm. DQN chooses groups of a single task, or pairs of the joint one; SAC chooses mixtures."""
    actions: Actions | None = None
    """Its actions: "groups", the environment's own, one by one; "mixture", the distribution of an update's samples over
    the groups; "pool", how much of Ψ is in play, easiest first; "block", all groups of an update at once (slow, unless
    samples_per_action is large); "pairs", both groups of the joint task as one number. By default groups, for SAC
    mixture."""
    hidden: int = 16
    """Units of the networks' hidden layer."""
    model_from: Path | None = None
    """Checkpoint of a run of the same algorithm and actions with whose networks to begin."""

    @property
    def action_wrapper(self) -> str:
        """Name of the action wrapper."""
        return self.actions or ("mixture" if self.algorithm == "sac" else "groups")

    @property
    def algorithm_name(self) -> str:
        """The algorithm, and its actions where they are not the environment's."""
        return self.algorithm if self.action_wrapper == "groups" else f"{self.algorithm}-{self.action_wrapper}"


def main(config: Config, loggers: Sequence[Logger] = ()) -> dict[str, Any]:
    """Train one run to its end, or continue it, and sum it up in its folder.

    Args:
        config: Its options.
        loggers: More loggers than `config.log` names, see `experiments/common/training/loggers.py`.

    Returns:
        What summary.json holds.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    from agents.sb3 import make_model, start_from, steps_of_an_update  # slow to import
    from agents.sb3_state import AfterUpdates

    with main_job.torch_settings(config), main_job.make_recorder(config, loggers) as run:
        env = ACTION_WRAPPERS[config.action_wrapper](run)
        model = make_model(config.algorithm, env, seed=config.seed, hidden=config.hidden)
        if run.saved_agent is None and config.model_from is not None:
            start_from(model, config.model_from)
        queries = main_job.begin(run, config)
        if run.saved_agent is not None:
            with checkpoint.naming(run.folder.checkpoint):
                model.load_state_dict(run.saved_agent)
        run.start(model.state_dict, {task: query.name for task, query in queries.items()})
        updates = config.env.total_updates - len(run.folder.rows)
        if not run.over:
            callback = AfterUpdates(run.checkpoint)
            model.learn(updates * steps_of_an_update(env), callback, reset_num_timesteps=run.saved_agent is None)
        summary = main_job.finish(run, config, queries)
    return summary


if __name__ == "__main__":
    run_script(main, Config, __doc__)
