"""Learn a policy across many training runs: each episode is a new network and a new validation set.

    python experiments/across_runs.py
    python experiments/across_runs.py --imitate 0.1 0.5
    python experiments/across_runs.py --algorithm ppo --actions mixture --history 3 --hidden 16

Before each update of the policy, `episodes_per_update` runs of fresh seeds are played in parallel processes. The policy
sees a summary of the last validation, or the states of the last few, and chooses once a phase; its return is E_0 - E_T.
With `imitate` it begins as a curriculum that is fixed in advance, and learns to do better.
What it is worth on seeds that it has not seen is measured by

    python experiments/leaderboard.py --policies runs/across-pgpe-pool-seed0

The run folder holds config.json, metrics.csv (a row per update of the policy), TensorBoard logs and
checkpoint.safetensors, the policy. It can be killed at any time, and `--resume` continues: to the same numbers with our
algorithms, with other episodes with Stable-Baselines3.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

import permenv
from agents import EpisodicAgent, Trajectory, collect
from agents.episodic import Step
from experiments.common.agent_runs import require_curriculum
from experiments.common.files import as_json
from experiments.common.learned import ACTION_WRAPPERS, LEARNERS, algorithm_in, wrap
from experiments.common.machine import machine, machines_of, note_machine
from experiments.common.options import EnvOptions, Preset, require_at_least
from experiments.common.script import run_script
from experiments.common.sweeps.processes import (
    end_with_parent,
    interrupts_for_this_process_only,
    make_executor,
)
from experiments.common.training.loggers import TensorBoardLogger
from experiments.common.training.run_folder import RunFolder, check_same_job
from permenv import CheckpointError, PermShuffleEnv, checkpoint
from permenv.device import resolve_device
from permenv.wrappers import FiniteHorizon
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    Actions = str
else:
    Actions = tyro.extras.literal_type_from_choices(ACTION_WRAPPERS)

_SEEDS = 1_000_000  # of the episodes: from here on, apart from those of tuning and of reports
_DEMONSTRATIONS = 500_000  # added to the seed of the first episode; those of the curriculum to imitate begin there
_RECENT = 5  # updates of the policy whose mean the progress bar shows


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options."""

    preset: Preset = "nano"
    device: str = "cpu"
    """auto, cpu or cuda."""
    algorithm: Literal["pgpe", "gaussian", "ppo", "a2c", "sac"] = "pgpe"
    """Ours, with noise in the policy's parameters ("pgpe") or in its actions ("gaussian", REINFORCE on whole episodes),
    or one of Stable-Baselines3."""
    actions: Actions = "pool"
    """What the policy chooses, once a phase: "pool", how much of Ψ, easiest first, is in play; "mixture", the
    distribution of the samples over the groups."""
    history: int = 0
    """Number of states that it observes, those of the last validations; 0 for a summary of the last one."""
    hidden: int = 0
    """Units of its hidden layer; 0 for a linear policy."""
    imitate: tuple[float, float] | None = None
    """The curriculum with which the policy begins, as of `agents.EasiestFirst`: the share of Ψ in its first pool, and
    the share of the iterations after which it is all of Ψ. By default the policy begins with actions of 0: half of Ψ,
    or all permutations with equal probability."""
    deviation: float | None = None
    """Of the noise of "pgpe" in each parameter; by default that of the algorithm."""
    learning_rate: float | None = None
    """Of Adam; by default that of the algorithm."""
    discount: float = 0.97
    """γ of a phase: below 1, an early reduction of the error is worth more than a late one."""
    episodes: int = 240
    """Training runs to learn from."""
    episodes_per_update: int = 8
    """Training runs between two updates of the policy."""
    seed: int = 0
    """Decides the policy's initial weights, its actions and the seeds of its episodes."""
    processes: int = os.cpu_count() or 1
    """Runs at once, a process of one thread each; 0 plays them one after the other in this process."""
    out: Path | None = None
    """Run folder; by default runs/across-ALGORITHM-ACTIONS-seedSEED."""
    resume: bool = False
    """Continue the run in `out`."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the numbers.

        Raises:
            ConfigurationError: If an option is unknown or out of range.
        """
        super().__post_init__()
        require_at_least(self, seed=0, processes=0, history=0, hidden=0, episodes=1, episodes_per_update=1)
        if not 0 <= self.discount <= 1:
            raise permenv.ConfigurationError(f"--discount {self.discount}: must lie in [0, 1]")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise permenv.ConfigurationError(f"--learning-rate {self.learning_rate}: must be above 0")
        if self.deviation is not None and (self.algorithm != "pgpe" or not self.deviation > 0):
            raise permenv.ConfigurationError(
                f"--deviation {self.deviation} --algorithm {self.algorithm}: must be above 0, and is an option of pgpe"
            )
        if self.imitate is not None:
            self._check_curriculum(*self.imitate)
        if self.algorithm == "pgpe" and (self.episodes % 2 or self.episodes_per_update % 2):
            raise permenv.ConfigurationError(
                f"--episodes {self.episodes} --episodes-per-update {self.episodes_per_update}: pgpe plays pairs of "
                f"runs; make both even"
            )

    def _check_curriculum(self, start: float, growth: float) -> None:
        require_curriculum("--imitate", start, growth)
        if self.actions != "pool" or self.algorithm not in LEARNERS:
            raise permenv.ConfigurationError(
                f"--imitate {start} {growth} --actions {self.actions} --algorithm {self.algorithm}: a curriculum is "
                f"imitated with --actions pool and --algorithm {' or '.join(LEARNERS)}"
            )

    @property
    def saved(self) -> str | None:
        """What was saved so far."""
        return f"{self.folder} holds the policy up to its last update" if RunFolder.holds_run(self.folder) else None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"across-{self.algorithm}-{self.actions}-seed{self.seed}"

    @property
    def first_episode(self) -> int:
        """Seed of the first episode; those of the others follow."""
        return _SEEDS * (1 + self.seed)


def main(config: Config) -> list[dict[str, float]]:
    """Train the policy.

    Returns:
        The rows of metrics.csv.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    settings = as_json(config)
    with contextlib.closing(RunFolder(config.folder, config.resume, [TensorBoardLogger()])) as folder:
        env = _make_env(config)  # reports what is wrong with the options or the data
        settings["data"] = {name: task.data.fingerprint for name, task in base_env_of(env).tasks.items()}
        saved = folder.read()
        if saved:
            before = {**saved["job"]["settings"], "algorithm": algorithm_in(saved["job"]["settings"])}
            # a replay buffer has a column for each environment
            may_change = ("episodes", "out", "resume", *(() if config.algorithm == "sac" else ("processes",)))
            check_same_job(settings, (*may_change, "images", "videos", "data"), before, folder.path)
            if before.get("data") != settings["data"]:
                raise CheckpointError(
                    f"the policy in {folder.path} was trained on other data: name the same ones with --images or "
                    f"--videos, or train another policy with --out"
                )
        folder.start(saved["job"]["rows"] if saved else [], settings)
        machines = saved["job"].get("machines", []) if saved else []
        now = machine(resolve_device(config.device), threads=1 if config.processes else None)
        if not saved or len(folder.rows) * config.episodes_per_update < config.episodes:
            note_machine(machines, now, len(folder.rows), folder.path)
        folder.json("config", {**settings, **machines_of(machines)})
        log = _Log(config, folder, {"settings": settings, "machines": machines})
        with log.bar:
            (_ours if config.algorithm in LEARNERS else _sb3)(config, log, saved)
    return folder.rows


class _Log:
    """What both kinds of training report: a row of metrics and a checkpoint after each update of the policy.

    Attributes:
        bar: Counts the episodes.
        path: The checkpoint.
    """

    def __init__(self, config: Config, folder: RunFolder, job: dict[str, Any]):
        self._folder, self._job = folder, job
        self.path = folder.checkpoint
        self.bar = tqdm(total=config.episodes, initial=self.played, unit="run")
        self._start = time.perf_counter()

    @property
    def played(self) -> int:
        """Episodes that have been learned from."""
        return int(self._folder.rows[-1]["episodes"]) if self._folder.rows else 0

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint.

        Args:
            state: "agent", the policy's state, and whatever the job needs to continue.
        """
        agent = state.pop("agent")
        self._folder.save({}, agent, {**self._job, **state})

    def update(self, errors: list[tuple[float, float]], metrics: dict[str, float], state: dict[str, Any]) -> None:
        """Write what an update of the policy learned from, and the policy's state after it.

        Args:
            errors: Of each episode, E at half of the run and at its end.
            metrics: More columns.
            state: See `save`.
        """
        now = time.perf_counter()
        half, end = np.mean(errors, axis=0)
        row = {
            "update": len(self._folder.rows) + 1,
            "episodes": self.played + len(errors),
            "error_half": float(half),
            "error_end": float(end),
            **metrics,
            "seconds": now - self._start,
        }
        self._start = now
        self._folder.append(row)
        self.save(state)
        self.bar.set_postfix_str(f"E {np.mean([each['error_end'] for each in self._folder.rows[-_RECENT:]]):.3f}")


def _ours(config: Config, log: _Log, saved: dict[str, Any] | None) -> None:
    """Play the episodes of an update in parallel, and learn from them in this process."""
    agent = _make_agent(config, _make_env(config))
    with make_executor(config.processes) as executor:
        if saved:
            with checkpoint.naming(log.path):
                agent.load_state_dict(saved["agent"])
        elif config.imitate is not None:
            first = config.first_episode + _DEMONSTRATIONS
            seeds = range(first, first + config.episodes_per_update)
            agent.imitate([job.result() for job in [executor.submit(_demonstrate, config, seed) for seed in seeds]])
        log.save({"agent": agent.state_dict()})
        while log.played < config.episodes:
            first = config.first_episode + log.played
            count = min(config.episodes_per_update, config.episodes - log.played)
            state = agent.state_dict()
            jobs = [executor.submit(_episode, config, state, seed) for seed in range(first, first + count)]
            for job in jobs:
                job.add_done_callback(lambda _: log.bar.update())
            trajectories, errors = zip(*(job.result() for job in jobs), strict=True)
            metrics = agent.update(trajectories)
            log.update(list(errors), metrics, {"agent": agent.state_dict()})


def _sb3(config: Config, log: _Log, saved: dict[str, Any] | None) -> None:
    """Let an algorithm of Stable-Baselines3 play and learn, from environments in processes of their own."""
    from stable_baselines3.common.callbacks import BaseCallback  # slow to import

    from agents import sb3_across

    # whole runs between two updates of the policy, the same number in each environment
    num_envs = max(n for n in range(1, max(1, config.processes) + 1) if config.episodes_per_update % n == 0)
    phases = config.env.total_updates * config.env.phases_per_update
    with interrupts_for_this_process_only():
        model = sb3_across.make_vector_model(
            config.algorithm,
            [functools.partial(_ReportingErrors.make, config)] * num_envs,
            steps=phases * config.episodes_per_update,
            seed=config.seed,
            first_episode=config.first_episode + log.played,
            hidden=config.hidden,
            discount=config.discount,
            processes=bool(config.processes),
            **({} if config.learning_rate is None else {"learning_rate": config.learning_rate}),
        )
    environments = model.get_env()
    assert environments is not None

    def state() -> dict[str, Any]:
        return {"agent": model.state_dict(), "scale": sb3_across.scale_of(model)}

    if saved:
        with checkpoint.naming(log.path):
            model.load_state_dict(saved["agent"])
            sb3_across.load_scale(model, saved["job"].get("scale"))
    log.save(state())

    class Report(BaseCallback):
        """Collects the episodes; when the model has learned from them, before the next ones, writes a row."""

        def _init_callback(self) -> None:
            self.errors: list[tuple[float, float]] = []

        def _on_step(self) -> bool:
            found = [info["errors"] for info in self.locals["infos"] if "errors" in info]
            self.errors += found
            log.bar.update(len(found))
            # runs that diverge have fewer phases: what ends here is a batch begun after the last one to learn from
            return log.played < config.episodes

        def _on_rollout_start(self) -> None:
            self._write()

        def _on_training_end(self) -> None:
            self._write()

        def _write(self) -> None:
            if self.errors:
                log.update(self.errors, {}, state())
                self.errors.clear()

    model.learn((config.episodes - log.played) * phases, Report(), reset_num_timesteps=saved is None)
    environments.close()  # not where the script is stopped: it would wait for the ends of their phases


class _ReportingErrors(gym.Wrapper[Any, Any, Any, Any]):
    """Adds E at half of the run and at its end to the info of the last step, since SB3 begins the next run at once."""

    @classmethod
    def make(cls, config: Config) -> gym.Env:
        if config.processes:  # this is one of them
            end_with_parent()
        return cls(FiniteHorizon(wrap(config.make(), config.actions, config.history)))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            base_env = self.unwrapped
            assert isinstance(base_env, PermShuffleEnv)
            info = {**info, "errors": errors_of(base_env.run)}
        return observation, reward, terminated, truncated, info


@functools.cache
def _make_env(config: Config) -> gym.Env:
    """Make the environment once a process: the data and Ψ take longer than an iteration."""
    return wrap(config.make(), config.actions, config.history)


def _make_agent(config: Config, env: gym.Env) -> EpisodicAgent:
    given = {"learning_rate": config.learning_rate, "deviation": config.deviation}
    options = {name: value for name, value in given.items() if value is not None}
    return LEARNERS[config.algorithm](
        env.observation_space,
        env.action_space,
        seed=config.seed,
        hidden=config.hidden,
        discount=config.discount,
        **options,
    )


def _episode(config: Config, state: dict[str, Any], seed: int) -> tuple[Trajectory, tuple[float, float]]:
    """Play one run with the policy of that state; also return E at half of the updates and at the end."""
    env = _make_env(config)
    agent = _make_agent(config, env)
    agent.load_state_dict(state)
    trajectory = collect(env, agent, seed)
    return trajectory, errors_of(env.unwrapped.run)  # type: ignore[attr-defined]


def _demonstrate(config: Config, seed: int) -> Trajectory:
    """Play one run with the curriculum to imitate."""
    assert config.imitate is not None
    start, growth = config.imitate
    env = _make_env(config)
    tasks = env.action_space.shape or ()
    steps: list[Step] = []
    observation, _ = env.reset(seed=seed)
    done = False
    while not done:
        share = start + (1 - start) * float(observation[-1]) / growth  # beyond all of Ψ too: linear in the progress
        action = np.full(tasks, env.get_wrapper_attr("action_of")(share), np.float64)
        after, reward, terminated, truncated, _ = env.step(action)
        steps.append((np.array(observation, np.float64), action, float(reward)))
        observation, done = after, terminated or truncated
    return Trajectory.of(steps)


def errors_of(run: permenv.Pretraining) -> tuple[float, float]:
    """Return E at half of a run that is over and at its end, see `Pretraining.error_curve`."""
    iterations, errors = run.error_curve()
    return float(np.interp(run.config.total_iterations / 2, iterations, errors)), errors[-1]


if __name__ == "__main__":
    run_script(main, Config, __doc__)
