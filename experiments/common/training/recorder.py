"""What a training run leaves in its folder, whichever algorithm trains.

```python
with Recorder(env, folder, settings=options) as run:
    agent = ...
    run.reset(seed=0)
    run.start(agent.state_dict)
    observation, _ = run.reset()
    while not run.over:
        observation, reward, terminated, truncated, info = run.step(agent.act(observation))
        ...  # learn
        run.checkpoint()
    run.finish(run.summary())
```

The files are described in `experiments/common/training/run_folder.py`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from experiments.common.files import as_json
from experiments.common.machine import machine, machines_of, note_machine
from experiments.common.training.loggers import Logger
from experiments.common.training.run_folder import check_same_job, open_folder
from permenv import PermShuffleEnv, StillImages, VideoClips
from permenv.permutations import hamming_statistics


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Records one training run: a row an update, a checkpoint after every update, pictures at the end.

    Any wrappers may be below it or above it. Observations and rewards pass through unchanged.

    The first `reset` begins the run, or restores the one that is to be resumed. Later ones return the current
    observation: libraries reset when they please, Stable-Baselines3 before its first step, with a seed of its own, and
    again after the last one.

    Args:
        env: `PermShuffle-v0` under any wrappers.
        folder: Where to write, see `RunFolder`. Nothing is written before `start`.
        resume: Whether to continue the run that is in the folder.
        settings: The options of the job, for config.json. A resumed run must have the same.
        may_change: The names of those that may differ.
        loggers: Where metrics and pictures go as well. They also get the error of the untrained network.

    Attributes:
        base_env: `env.unwrapped`.
        folder: The run folder.
        saved_agent: The algorithm's state in the checkpoint of the resumed run, else None.
        notes: What the script wants to find again when the run is resumed; JSON-able, saved with every checkpoint.
        over: Whether the run has ended.

    Raises:
        CheckpointError, ConfigurationError, RunFolderError: If the folder cannot be used; the message names the remedy.
    """

    def __init__(
        self,
        env: gym.Env,
        folder: Path,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        may_change: tuple[str, ...] = (),
        loggers: Sequence[Logger] = (),
    ):
        super().__init__(env)
        assert isinstance(env.unwrapped, PermShuffleEnv)
        self.base_env = env.unwrapped
        self.folder = open_folder(folder, resume, loggers)
        self.saved_agent: dict[str, Any] | None = None
        self.notes: dict[str, Any] = {}
        self.over = False
        self._settings = as_json(settings or {})
        self._saved = self.folder.read("notes", "seconds", "policy", "error_first")
        if self._saved is not None:
            check_same_job(self._settings, may_change, self._saved["job"]["settings"], folder)
            self.saved_agent = self._saved["agent"]
            self.notes = self._saved["job"]["notes"]
        self._job: dict[str, Any] = {"seconds": 0.0, "policy": 0.0}
        self._observation: Any = None
        self._is_due = False
        self._bar: tqdm[None] | None = None
        self._summary: dict[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the run or restore it, the first time; then return the current observation and info."""
        if self._observation is None and self._saved is None:
            self._observation, self._info = self.env.reset(seed=seed, options=options or {})
            self._job["error_first"] = self._info["error"]
        elif self._saved is not None:
            self._observation, self._info = self.env.reset(options={"checkpoint": self.folder.checkpoint})
            self._job, self._saved = self._saved["job"], None
        self._leave()
        return self._observation, self._info

    def start(self, agent_state: Callable[[], dict[str, Any]], queries: Mapping[str, str] | None = None) -> None:
        """Write config.json, Ψ and the first checkpoint; the run's time counts from here.

        Args:
            agent_state: Called for every checkpoint, after the algorithm has learned from the update: returns its
                state.
            queries: By task, the name of the data that its evaluation uses, for config.json.

        Raises:
            ConfigurationError: If a logger cannot be started.
        """
        assert self._observation is not None, "reset() comes first"
        self.base_env.run.ranks.barrier()  # every rank has read what rank 0 is about to replace
        config = self.base_env.config
        self._agent_state = agent_state
        self._job |= {"settings": self._settings, "notes": self.notes}
        self.over = self._info["diverged"] or self._info["update"] >= config.total_updates
        self._machines = self._job.setdefault("machines", [])
        if not self._machines or not self.over:  # a run that is over is trained nowhere else
            note_machine(self._machines, machine(self.base_env.device), self._info["update"], self.folder.path)
        spent = self.base_env.run.seconds  # before the clock starts
        self._earlier = {name: self._job.get(name, 0.0) - spent[name] for name in ("validation", "grouping")}
        settings = {**self._settings, "env": as_json(config.as_dict())}
        self.folder.start(self._job.pop("rows", []), settings, self._first_row())
        self._describe(queries or {})
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines; in a log file there are fewer
        self._bar = tqdm(total=config.total_iterations, initial=self._info["iteration"], unit="it", mininterval=pause)
        self._start = time.perf_counter() - self._job["seconds"]
        self._leave()
        self._save()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; where an update ends, add its row of metrics."""
        self.checkpoint()
        self._enter()
        self._observation, reward, terminated, truncated, self._info = self.env.step(action)
        info = self._info
        self.over = terminated or truncated
        assert self._bar is not None, "start() comes first"
        if info["iteration"] > self._bar.n:
            self._bar.update(info["iteration"] - self._bar.n)
        if info["diverged"] or (info["validated"] and info["phase"] == "update"):
            self._job["seconds"] = time.perf_counter() - self._start
            for name, before in self._earlier.items():
                self._job[name] = before + self.base_env.run.seconds[name]
            self._bar.set_postfix(error=f"{info['error']:.3f}", reward=f"{float(reward):+.4f}", refresh=False)
            self.folder.append(self._row(float(reward)))
            self._is_due = True
        self._leave()
        return self._observation, float(reward), terminated, truncated, info

    def checkpoint(self) -> None:
        """Write the checkpoint if an update has ended since the last one.

        To be called after the algorithm has learned from the update and before it acts again: then the run resumes
        to the same numbers. It is called before the next step at the latest.
        """
        if self._is_due:
            self._enter()
            self._save()
            self._leave()

    def summary(self) -> dict[str, Any]:
        """Return what is known of the run: errors by task, and where the time went."""
        run, rows, times = self.base_env.run, self.folder.rows, self._job
        return {
            "updates": len(rows),
            "iterations": run.iteration,
            "diverged": bool(rows[-1]["diverged"]),
            "error_first": times["error_first"],
            "error_last": rows[-1]["error"],
            "error_best": min(row["error"] for row in rows),
            "tasks": {
                task: {
                    "error_first": run.history[task][0][1],
                    "error_last": rows[-1][f"{task}/error"],
                    "error_best": min(row[f"{task}/error"] for row in rows),
                    "chance": 1 - 1 / len(run.permutations[task]),
                    "permutations": len(run.permutations[task]),
                    "samples": len(run.held_out[task]),
                }
                for task in run.tasks
            },
            "seconds": times["seconds"],
            "seconds_validation": times["validation"],
            "seconds_grouping": times["grouping"],
            "seconds_policy": times["policy"],
            "policy_cost": (times["validation"] + times["grouping"] + times["policy"]) / times["seconds"],
            "folder": str(self.folder.path),
            **machines_of(self._machines),
            "ranks": run.ranks.size,
        }

    def finish(self, summary: Mapping[str, Any], title: str = "PermShuffle") -> None:
        """Write the last checkpoint, the pictures, which have this title, and then summary.json."""
        from experiments.common.reports import figures  # slow to import
        from permenv.render import dashboard

        self.checkpoint()
        self._close_bar()
        base_env, folder = self.base_env, self.folder
        if not base_env.run.ranks.is_first:
            return
        untrained = {task: history[0][1] for task, history in base_env.run.history.items()}
        folder.picture("dashboard", dashboard(title, base_env.episode))
        folder.picture("error", figures.error_figure(title, figures.curves(folder.rows, untrained)))
        for task in base_env.tasks:
            folder.picture(f"choices-{task}", figures.choices_of_run(f"{title}: {task}", folder.rows, task))
            folder.picture(f"shuffles-{task}", figures.examples_of_run(f"{title}: {task}", base_env.run, task, seed=0))
        folder.json("summary", summary)
        self._summary = as_json(summary)

    def close(self) -> None:
        """Close the files, the loggers, the progress bar and the environment."""
        self._close_bar()
        self.folder.close(self._summary)
        super().close()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _save(self) -> None:
        self.folder.save(self.base_env.state_dict(), self._agent_state(), self._job)
        self._is_due = False

    # The time between leaving and entering is the algorithm's; the rows call it "policy".

    def _leave(self) -> None:
        self._left = time.perf_counter()

    def _enter(self) -> None:
        self._job["policy"] += time.perf_counter() - self._left

    def _first_row(self) -> dict[str, float]:
        """Return what is known of the network that the run began with."""
        history = self.base_env.run.history
        errors = {f"{task}/error": past[0][1] for task, past in history.items()}
        return {"update": 0, "iteration": 0, "error": self._job["error_first"], **errors}

    def _row(self, reward: float) -> dict[str, float]:
        """Return the metrics of the update that this step ended."""
        info = self._info
        row = {
            "update": info["update"] + int(info["diverged"]),  # the update that diverged counts
            "iteration": info["iteration"],
            "seconds": round(self._job["seconds"], 3),
            "loss": info["loss"],
            "error": info["error"],
            "baseline_error": info["baseline_error"],
            "reward": reward,
            "diverged": float(info["diverged"]),
        }
        observation, choices = _last_choices(self.base_env)
        states = observation.reshape(*choices.shape, 2)
        for task, counts, state in zip(info["task_errors"], choices, states, strict=True):
            row |= {f"{task}/{name}": value for name, value in _task_columns(info, task, counts, state).items()}
        return row

    def _describe(self, queries: Mapping[str, str]) -> None:
        """Write config.json and each task's Ψ."""
        base_env = self.base_env
        for task, permutations in base_env.permutations.items():
            self.folder.array(f"permutations-{task}", permutations)
        content = {
            "job": self._settings,
            "environment": base_env.config.as_dict(),
            "permutations": {
                task: dataclasses.asdict(hamming_statistics(psi)) for task, psi in base_env.permutations.items()
            },
            "data": {
                name: {
                    "name": task.data.name,
                    **_sizes(task.data),
                    "fingerprint": task.data.fingerprint,
                    "skipped": len(getattr(task.data, "skipped", ())),
                    "held_out": len(np.unique(base_env.run.held_out[name][:, 0])),
                    **({"queries": queries[name]} if name in queries else {}),
                }
                for name, task in base_env.tasks.items()
            },
            **machines_of(self._machines),
        }
        self.folder.json("config", content)


def _last_choices(base_env: PermShuffleEnv) -> tuple[np.ndarray, np.ndarray]:
    """Return ŝ on which the last update's actions were taken, and (tasks, |C|), how often they chose each group."""
    records = base_env.records
    if base_env.run.diverged:  # no validation has recorded them
        return records[-1].observation, base_env.run.choices
    return records[-2].observation, records[-1].choices


def _task_columns(info: dict[str, Any], task: str, counts: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """Return the columns of one task.

    Args:
        info: Of the step that ended the update.
        task: Its name.
        counts: (|C|,), how often the update's actions chose each group.
        state: (|C|, 2), the task's ŝ on which they were taken.

    Returns:
        loss, error, baseline_error, reward, entropy of the choices in nats; of each group, its share of the actions and
        its share of Ψ.
    """
    shares = counts / counts.sum()
    positive = shares[shares > 0]
    return {
        "loss": info["task_losses"][task],
        "error": info["task_errors"][task],
        "baseline_error": info["task_baseline_errors"][task],
        "reward": info["task_rewards"][task],
        "entropy": float((positive * np.log(1 / positive)).sum()),
        **{f"group_{group}": float(share) for group, share in enumerate(shares)},
        **{f"size_{group}": float(share) for group, share in enumerate(state[:, 0])},
    }


def _sizes(data: Any) -> dict[str, int]:
    if isinstance(data, VideoClips):
        return {"clips": len(data), "frames": len(data.frames), "irregular": len(data.irregular)}
    return {"images" if isinstance(data, StillImages) else "items": len(data)}
