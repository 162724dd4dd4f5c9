"""An episode: choices of groups fill mini-batches, and each update is rewarded (section 3.2, Eq. 7).

This is the decision process itself. `permenv.env` gives it Gymnasium's interface; `permenv.pretraining` trains.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from permenv.checkpoint import CheckpointError
from permenv.config import Config
from permenv.pretraining import INTERRUPTED, Pretraining
from permenv.records import mean
from permenv.reward import extrapolate, reward
from permenv.schema import FLAG, INT64, Array, Fields, ListOf, Number, OneOf, Schema, Where, below


class Episode:
    """One run of training, driven by choices of groups.

    Args:
        run: The run; it has been validated at least once.

    Attributes:
        run: The run of training.
        phase: What the last choice counted for: "free" iterations or an "update".
        rewards: r_t of all completed updates, and of a divergence; joint task: the means over the tasks.
        task_rewards: By task, the reward of the last choice; 0 where it ended no update.
        validated: Whether the last choice ended with a validation.
    """

    def __init__(self, run: Pretraining):
        self.run = run
        self.phase = self._next_phase
        self.rewards: list[float] = []
        self.task_rewards = dict.fromkeys(run.tasks, 0.0)
        self.validated = True
        self._baseline_errors = dict(run.records[-1].errors)
        self._choices = np.zeros((run.config.actions_per_iteration, len(run.tasks)), dtype=np.int64)
        self._num_choices = 0
        self._is_consistent = True

    @property
    def is_over(self) -> bool:
        """Whether the run has diverged or completed its updates."""
        return self.run.diverged or self.updates >= self.run.config.total_updates

    @property
    def updates(self) -> int:
        """Completed updates."""
        return len(self.rewards) - self.run.diverged

    @property
    def next_validation(self) -> int | None:
        """The iteration of the next validation; None where the run is over."""
        return None if self.is_over else self.run.records[-1].iteration + _iterations(self._next_phase, self.run.config)

    def choose(self, groups: np.ndarray) -> bool:
        """Decide the groups of the next `samples_per_action` samples; train and validate where that is due.

        Args:
            groups: (tasks,) int, a group per task.

        Returns:
            Whether the choice completed a mini-batch, so that an SGD iteration ran.

        Raises:
            RuntimeError: See `require_consistent`.
        """
        self.require_consistent()
        phase = self._next_phase
        self._choices[self._num_choices] = groups
        completes = self._num_choices + 1 == len(self._choices)
        self._is_consistent = False
        if completes:
            self._iterate()
        self.phase = phase
        self.task_rewards = dict.fromkeys(self.run.tasks, 0.0)
        self.validated = False
        self._num_choices = 0 if completes else self._num_choices + 1
        if completes:
            self._validate()
        self._is_consistent = True
        return completes

    def info(self) -> dict[str, Any]:
        """What `env.step` returns as info, see `PermShuffleEnv`."""
        run, last = self.run, self.run.records[-1]
        errors, cross_entropies = dict(last.errors), dict(last.cross_entropies)
        if run.diverged:
            errors = dict.fromkeys(run.tasks, 1.0)
            cross_entropies = dict.fromkeys(run.tasks, math.log(run.config.num_permutations))
        return {
            "validated": self.validated,
            "phase": self.phase,
            "update": self.updates,
            "iteration": run.iteration,
            "loss": sum(run.losses.values()),
            "error": mean(errors),
            "baseline_error": mean(self._baseline_errors),
            "task_losses": dict(run.losses),
            "task_errors": errors,
            "task_cross_entropies": cross_entropies,
            "task_baseline_errors": dict(self._baseline_errors),
            "task_rewards": dict(self.task_rewards),
            "diverged": run.diverged,
        }

    def require_consistent(self) -> None:
        """Check that no exception, such as that of Ctrl-C, has ended an iteration or a validation halfway.

        Raises:
            RuntimeError: If one has, see `Pretraining.require_consistent`.
        """
        self.run.require_consistent()
        if not self._is_consistent:
            raise RuntimeError(INTERRUPTED)

    def require_schedule(self) -> None:
        """Check that the run was moved by `choose` alone: a state of another run could not be continued.

        Raises:
            CheckpointError: If not.
            RuntimeError: See `require_consistent`.
        """
        self.require_consistent()
        if not self._is_in_time(self.run):
            raise CheckpointError(
                "run.iterate() or run.validate() was called on this environment's run, which moved it away from the "
                "episode's schedule: it cannot be saved. Call them on env.fork().run, or save the run with run.save()"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves beside the run: a tree that `permenv.checkpoint` writes.

        Raises:
            RuntimeError: See `require_consistent`.
        """
        self.require_consistent()
        return {
            "phase": self.phase,
            "rewards": list(self.rewards),
            "baseline_errors": dict(self._baseline_errors),
            "choices": self._choices.copy(),
            "num_choices": self._num_choices,
            "validated": self.validated,
            "task_rewards": dict(self.task_rewards),
        }

    @classmethod
    def state_schema(cls, run: Pretraining) -> Schema:
        """What `state_dict` of an episode of this run returns."""
        config, last, tasks = run.config, run.records[-1], len(run.tasks)
        by_task = Fields(dict.fromkeys(run.tasks, Number(float)))
        parts = Fields(
            {
                "phase": OneOf(("free", "update")),
                "rewards": ListOf(Number(float)),
                "baseline_errors": by_task,
                "choices": Array(INT64, (config.actions_per_iteration, tasks), below(config.num_groups)),
                "num_choices": Number(int, below(config.actions_per_iteration)),
                "validated": FLAG,
                "task_rewards": by_task,
            }
        )
        next_phase = _phase_after(last.phase, config)
        phase = {True: last.phase if last.phase != "reset" else next_phase, False: next_phase}  # by "validated"
        updates = sum(record.phase == "update" for record in run.records) + run.diverged
        since = run.iteration - last.iteration
        in_time = cls._is_in_time(run)
        return Where(
            parts,
            {
                "belong to a run that was validated after each phase, and only then": lambda _: in_time,
                f"hold {updates} rewards, one of each update": lambda state: len(state["rewards"]) == updates,
                "be in the phase that the records lead to": lambda state: state["phase"] == phase[state["validated"]],
                "have validated just now where no choice was made since, and only there": lambda state: (
                    state["validated"] == (since == state["num_choices"] == 0 and not run.diverged)
                ),
            },
        )

    @classmethod
    def from_state(cls, run: Pretraining, state: dict[str, Any]) -> Episode:
        """Continue the episode that `state_dict` described, with its run. It fits `state_schema`."""
        episode = cls(run)
        episode.phase = state["phase"]
        episode.rewards = list(state["rewards"])
        episode._baseline_errors = dict(state["baseline_errors"])
        episode._choices = np.array(state["choices"])
        episode._num_choices = state["num_choices"]
        episode.validated = state["validated"]
        episode.task_rewards = dict(state["task_rewards"])
        return episode

    @staticmethod
    def _is_in_time(run: Pretraining) -> bool:
        """Whether a run was validated after each phase of an episode, and only then."""
        last, config = run.records[-1], run.config
        since = run.iteration - last.iteration
        return _are_in_time(run) and since < _iterations(_phase_after(last.phase, config), config) + run.diverged

    @property
    def _next_phase(self) -> str:
        return _phase_after(self.run.records[-1].phase, self.run.config)

    def _iterate(self) -> None:
        """Take an SGD iteration; what raises before the network has moved, such as unreadable data, changes nothing."""
        before = self.run.iteration
        try:
            self.run.iterate(self._choices)
        except BaseException:
            self._is_consistent = self.run.iteration == before and not self.run.diverged
            raise

    def _validate(self) -> None:
        """Validate after an iteration where that is due, and judge what has ended."""
        run, config = self.run, self.run.config
        if run.diverged:  # the step was not taken
            self._judge(run.history, run.iteration + 1)
            return
        if run.iteration - run.records[-1].iteration < _iterations(self.phase, config):
            return
        history = run.history
        self.validated = run.validate(self.phase)
        self._judge(history, run.iteration)

    def _judge(self, history: dict[str, list[tuple[int, float]]], iteration: int) -> None:
        """Read the baselines at an iteration; where an update or a divergence ends there, add its reward (Eq. 7)."""
        run = self.run
        self._baseline_errors = {task: extrapolate(past, iteration) for task, past in history.items()}
        if self.phase == "free" and not run.diverged:
            return
        errors = dict.fromkeys(run.tasks, 1.0) if run.diverged else run.records[-1].errors
        self.task_rewards = {task: reward(baseline, errors[task]) for task, baseline in self._baseline_errors.items()}
        self.rewards.append(mean(self.task_rewards))


def _phase_after(phase: str, config: Config) -> str:
    """Free iterations lie between an update and the next one."""
    return "free" if config.free_iterations and phase != "free" else "update"


def _iterations(phase: str, config: Config) -> int:
    """SGD iterations of a phase."""
    return config.free_iterations if phase == "free" else config.iterations_per_update


def _are_in_time(run: Pretraining) -> bool:
    """Whether the records are those of an episode."""
    return all(
        after.phase == _phase_after(before.phase, run.config)
        and after.iteration - before.iteration == _iterations(after.phase, run.config)
        for before, after in itertools.pairwise(run.records)
    )
