"""`PermShuffle-v0`: a network that learns to undo shuffling, as a Markov decision process."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure

from permenv import checkpoint, render
from permenv.checkpoint import CheckpointError
from permenv.config import Config, ConfigurationError, make_config
from permenv.networks import evaluating
from permenv.reward import extrapolated_error, reward
from permenv.state import HIGHEST_RATIO, LOWEST_RATIO, draw_members, group_members, group_permutations, summarise
from permenv.tasks import Task, make_tasks
from permenv.training import Batch, Trainer, resolve_device, spare_threads, trunk_of
from permenv.validation import Validation, validate

# a checkpoint may go on under another value of these: they do not change what the next iteration does
_FREE_TO_CHANGE = ("total_updates",)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One validation, as a run remembers it.

    Attributes:
        iteration: SGD iterations before it.
        phase: What it ended: "update", "free" iterations, or "reset".
        errors: By task, E.
        cross_entropies: By task, mean of -log y_l over all (permutation, sample) pairs, in nats.
        observation: ŝ, as an observation.
        choices: (tasks, |C|) int64, how often each group was chosen since the validation before.
    """

    iteration: int
    phase: str
    errors: dict[str, float]
    cross_entropies: dict[str, float]
    observation: np.ndarray
    choices: np.ndarray


@dataclass
class _Progress:
    """Where a run stands, but for the network, the groups and the generator.

    Attributes:
        actions: (B / m, tasks) int64, the groups chosen for the mini-batches that are being filled.
        choices: (tasks, |C|) int64, how often full mini-batches chose each group since the last validation.
        phase: Of the last action, "free" or "update".
        losses: By task, of the last SGD iteration.
        baseline_errors: By task, E^BL of the last validation.
        records: All validations.
        rewards: r_t of all completed updates.
        num_actions: How many of `actions` are taken.
        iterations_in_cycle: SGD iterations since the last update was completed.
        update: Updates completed.
        diverged: Whether a loss or a validation was not finite.
    """

    actions: np.ndarray
    choices: np.ndarray
    phase: str
    losses: dict[str, float]
    baseline_errors: dict[str, float]
    records: list[Record]
    rewards: list[float] = field(default_factory=list)
    num_actions: int = 0
    iterations_in_cycle: int = 0
    update: int = 0
    diverged: bool = False


class PermShuffleEnv(gym.Env[np.ndarray, np.int64 | np.ndarray]):
    r"""Choose the permutations that a convolutional network trains on.

    ## Description
    The world is a network Φ that learns, without labels, to put what was shuffled back in order: the nine tiles of an
    image (task "spatial"), eight frames of a video ("temporal"), or both on one shared trunk ("spatiotemporal"). It
    names which of |Ψ| permutations was applied; each task has its own Ψ. Every `iterations_per_update` SGD iterations
    it is validated on samples held out of training, under all permutations; the permutations are then grouped by how
    hard they are, and the agent is told each group's size and difficulty. The agent chooses the groups from which the
    next training samples are permuted. It implements Büchler, Brattoli, Ommer, "Improving Spatiotemporal
    Self-Supervision by Deep Reinforcement Learning", ECCV 2018; equation and section numbers are that paper's.

    ## Action Space
    `Discrete(num_groups)`: the group, hardest first, from which permutations are drawn uniformly for the next
    `samples_per_action` random training samples. When B / m actions have filled a mini-batch of B, one SGD iteration
    runs. An empty group stands for the easiest one that is not empty.

    "spatiotemporal": `MultiDiscrete([num_groups, num_groups])`, a group of spatial and one of temporal permutations for
    the next `samples_per_action` images and as many clips; an iteration trains on a mini-batch of each.

    ## Observation Space
    `Box(float32, (num_groups, 2))`: ŝ of Eq. 10, one row a group.

    | Column | Meaning                                                               | Min | Max |
    |--------|-----------------------------------------------------------------------|-----|-----|
    | 0      | fraction \|c_j\| / \|Ψ\| of the permutations in the group, sums to 1 | 0   | 1   |
    | 1      | median over group and X_val of (y_l + 1) / (y_p + 1) (Eq. 3); above 1: recognised | 0.5 | 2   |

    Rows ascend in column 1. The observation changes only at a validation. "spatiotemporal": (2, num_groups, 2), the
    spatial task's ŝ and the temporal one's.

    ## Rewards
    The step that ends an update returns r_t = E^BL - E (Eq. 7): E is the share of (permutation, sample) pairs not
    recognised (Eq. 6), E^BL the straight line through the last two validations read at this iteration (appendix E;
    flat before there are two). All other steps return 0, the validation that ends the free iterations too: it only
    renews ŝ and the line. "spatiotemporal": the mean of the two tasks' rewards, which are in `info`.

    Other actions, observations and rewards of the same run are views of it: `permenv.wrappers`.

    ## Starting State
    `reset(seed=...)` draws new weights, a new X_val and all later randomness from the seed; the network is validated,
    so the first observation is that of an untrained network, with an error near 1 - 1 / |Ψ|. Ψ depends on
    `permutation_seed` alone. `reset(options={"checkpoint": path})` continues a run that `save(path)` wrote;
    `reset(options={"trunk": path})` begins a new run with the trunk of such a run, of whatever task: the paper's S&T
    (section 4.3) is a spatial run and then a temporal one with its trunk.

    ## Episode End
    One episode is one training run. It is truncated after `total_updates` updates. It is terminated when a loss or
    a validation is not finite: then E = 1, `info["diverged"]` is True and the last finite observation is repeated.

    ## Info
    `validated` (bool, this step ended with a validation), `phase` ("update", or "free" while the actions of the free
    iterations are taken: for which of the two this step's action counted), `update` (updates completed), `iteration`,
    `loss` (of the last SGD iteration; log |Ψ|, that of a uniform guess, before the first; the tasks' sum), `error` and
    `baseline_error` (E and E^BL of the last validation; the tasks' means), `task_losses`, `task_errors`,
    `task_baseline_errors` and `task_rewards` (the same by task; rewards as in the step's), `task_cross_entropies` (of
    the last validation, in nats; log |Ψ| where the run diverged), `diverged`.

    ## Arguments
    Any field of `permenv.config.Config` is a keyword: `gym.make("PermShuffle-v0", num_permutations=300)`.

    | Argument      | Default     | Meaning                                                                        |
    |---------------|-------------|--------------------------------------------------------------------------------|
    | `preset`      | `"tiny"`    | "tiny" (minutes on a laptop) or "paper" (every number of the paper)            |
    | `task`        | `"spatial"` | "spatial", "temporal" or "spatiotemporal"                                      |
    | `images`      | `None`      | a folder of images, or None for the embedded scenes                            |
    | `videos`      | `None`      | a folder of videos or of folders of frames, or None for the embedded clips     |
    | `device`      | `"auto"`    | "auto", "cpu" or "cuda"                                                        |
    | `render_mode` | `None`      | None, "rgb_array", or "human": a window that follows the run                   |

    `samples_per_action` is 1, so that every sample of a mini-batch has a permutation of its own choice. The more
    samples share a group, the more a mini-batch drills a few classes, and the less is learned: after 600 iterations
    under a policy that draws all permutations alike, E was 0.55, 0.58, 0.86 and 0.99 (chance) for m = 1, 4, 16 and 64
    (mean of 3 seeds, tiny preset; `experiments/defaults.py`). A policy that leans to the hard groups from the first
    iteration on, with odds of e² between the hardest and the easiest, learned little even at m = 1: E 0.88.

    ## Determinism
    One seed is one trajectory, bit for bit on a CPU with the same number of threads, whatever else the process does.
    Nothing reads or moves a global random state; a `backbone` of your own that draws numbers in its forward pass
    (dropout) is the exception.

    ## Many At Once
    `gym.make_vec("PermShuffle-v0", num_envs=M)` trains M networks, in this process or ("async") in one each. In a
    process that another one has started torch uses one thread, or, where it was spawned, as many as OMP_NUM_THREADS
    says. On a GPU spawn them: `vector_kwargs={"context": "spawn"}`.

    ## Version History
    - v0: first version.

    Attributes:
        config: All numbers of the run.
        tasks: By name, what is shuffled: a `permenv.tasks.Task` with its `data` and Ψ.
        validation: By task, the last `Validation`: s, what was recognised, E.
        validation_samples: By task, (|X_val|, k) int64, X_val; the first column is the number of the image or clip.
        groups: By task, (|Ψ|,) int64, the group of each permutation.
        records: Every validation since the run began, see `Record`.
        rewards: r_t of every update since the run began.
        permutations: By task, (|Ψ|, n) int64, Ψ.
        seconds: Wall-clock spent by this object on "training", "validation" and "grouping".
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        preset: str = "tiny",
        task: str = "spatial",
        images: str | Path | None = None,
        videos: str | Path | None = None,
        device: str | torch.device = "auto",
        render_mode: str | None = None,
        **overrides: Any,
    ):
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigurationError(
                f"render_mode={render_mode!r}: choose None or one of {self.metadata['render_modes']}"
            )
        self._arguments = {"preset": preset, "task": task, "images": images, "videos": videos, "device": device}
        self._arguments |= overrides
        self.task = task
        self.render_mode = render_mode
        self.config: Config = make_config(preset, task, **overrides)
        self.device = resolve_device(device)
        spare_threads()
        # before the data, which may take minutes to read
        self._window = render.Window(f"PermShuffle: {task}") if render_mode == "human" else None
        self.tasks: dict[str, Task] = make_tasks(task, self.config, images, videos, self.device)
        self.permutations = {name: each.permutations for name, each in self.tasks.items()}
        bounds = np.array([[0, LOWEST_RATIO], [1, HIGHEST_RATIO]], dtype=np.float32)
        num_groups = self.config.num_groups
        shape = (num_groups, 2) if len(self.tasks) == 1 else (len(self.tasks), num_groups, 2)
        self.observation_space = spaces.Box(np.broadcast_to(bounds[0], shape), np.broadcast_to(bounds[1], shape))
        self.action_space = (
            spaces.Discrete(num_groups)
            if len(self.tasks) == 1
            else spaces.MultiDiscrete([num_groups] * len(self.tasks))
        )
        self._no_gains = dict.fromkeys(self.tasks, 0.0)
        self.seconds = {"training": 0.0, "validation": 0.0, "grouping": 0.0}
        self._progress: _Progress | None = None
        self._drawn: tuple[_Progress, tuple[int, bool], np.ndarray] | None = None

    # Gymnasium's API

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a training run, or continue a saved one.

        Args:
            seed: Decides the run; None goes on drawing from the environment's generator.
            options: {"checkpoint": path} continues where `save(path)` was called, whatever the seed;
                {"trunk": path} begins a new run with the trunk of such a run.

        Returns:
            Observation and info.

        Raises:
            ConfigurationError: If an option is unknown, or both are given.
            CheckpointError: If the checkpoint is damaged or of another configuration, or its trunk is another one; the
                run is then as it was.
        """
        options = options or {}
        unknown = options.keys() - {"checkpoint", "trunk"}
        if unknown:
            raise ConfigurationError(f"unknown reset option {unknown.pop()!r}; there are 'checkpoint' and 'trunk'")
        if len(options) > 1:
            raise ConfigurationError(
                "reset options 'checkpoint' and 'trunk': a saved run has its trunk; pass one of them"
            )
        if "checkpoint" in options:  # which brings its own generator, so the seed is not asked
            self.load_state_dict(_saved_environment(options["checkpoint"]))
        else:
            trunk = self._trunk_in(options["trunk"]) if "trunk" in options else None
            super().reset(seed=seed)
            self._begin(trunk)
        if self._window is not None:
            self.render()
        return self._observation.copy(), self._info(self._begun(), validated=True, gains=self._no_gains)

    def step(self, action: np.int64 | int | np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the permutations of the next `samples_per_action` training samples.

        Args:
            action: A group, 0 to |C| - 1; for several tasks (tasks,) ints, a group of each.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            gymnasium.error.InvalidAction: If there is no such group; nothing has changed then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        groups = self._as_groups(action)
        now = self._progress
        if now is None or self._is_over(now):
            raise gym.error.ResetNeeded("the training run has not begun or is over: call reset() first")
        now.phase = self._next_phase(now)
        now.actions[now.num_actions] = groups
        now.num_actions += 1
        gains, validated = self._no_gains, False
        if now.num_actions == len(now.actions):
            now.num_actions = 0
            gains, validated = self._iterate(now)
            if self._window is not None:  # not only where the picture changes: a window has events to answer
                self.render()
        truncated = not now.diverged and self._is_over(now)
        info = self._info(now, validated, gains)
        return self._observation.copy(), _mean(gains), now.diverged, truncated, info

    def render(self) -> np.ndarray | None:
        """Show the run as of its last validation, see `permenv.render.dashboard_figure`.

        `metadata["render_fps"]` is for a picture a validation. `RecordVideo` keeps one a step, and an update of the
        tiny preset has 3200 steps: record a view whose step is a phase (`permenv.wrappers`), or pass it a higher `fps`.

        Returns:
            "rgb_array": (H, W, 3) uint8, read-only and the same array until the picture changes, so that a video of
            many steps holds few pictures; `.copy()` is yours to draw on. "human": None, the window shows it; after
            `reset` and at every validation it does so without being asked.
        """
        if self.render_mode is None:
            gym.logger.warn("render() does nothing without a render mode: gym.make(..., render_mode='rgb_array')")
            return None
        now = self._begun()
        if self.render_mode == "rgb_array":
            return self._picture(now)
        if self._window is not None:
            self._window.show(self._picture(now))
        return None

    def dashboard(self) -> Figure:
        """The run as of its last validation as a figure, see `permenv.render.dashboard_figure`."""
        now = self._begun()
        config, records, last = self.config, now.records, now.records[-1]
        chosen_from = records[max(len(records) - 2, 0)].observation.reshape(len(self.tasks), -1, 2)
        observations = last.observation.reshape(len(self.tasks), -1, 2)
        cycle = config.free_iterations + config.iterations_per_update
        place = last.iteration % cycle
        following = last.iteration - place + (config.free_iterations if place < config.free_iterations else cycle)
        rng = np.random.default_rng(len(records))  # its own: a picture draws nothing that the run would draw
        panels = {}
        for row, (name, task) in enumerate(self.tasks.items()):
            samples, label = self.validation_samples[name][:1], rng.integers(config.num_permutations, size=1)
            panels[name] = render.Panel(
                history=self.history[name],
                credited=[record.phase == "update" for record in records],
                next_validation=None if self._is_over(now) else following,
                diverged=max(self.trainer.iteration, last.iteration + 1) if now.diverged else None,
                observation=observations[row],
                choices=last.choices[row],
                sizes=chosen_from[row, :, 0],
                answers=render.ask(task, functools.partial(self.network, name), samples, label),
            )
        error = 1.0 if now.diverged else _mean(last.errors)
        gain = f"{now.rewards[-1]:+.3f}" if now.rewards else "–"
        status = (
            f"update {now.update} of {config.total_updates}   iteration {last.iteration}   error {error:.3f}   "
            f"last reward {gain}"
        )
        return render.dashboard_figure(f"PermShuffle: {self.task}", status, panels, config.total_updates * cycle)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None
        super().close()

    # what researchers look at

    @property
    def records(self) -> list[Record]:
        """Every validation since the run began, the one at its beginning first."""
        return list(self._begun().records)

    @property
    def rewards(self) -> list[float]:
        """r_t of every update since the run began."""
        return list(self._begun().rewards)

    @property
    def choices(self) -> np.ndarray:
        """(tasks, |C|) int64, how often full mini-batches chose each group since the last validation."""
        return self._begun().choices.copy()

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """By task, (iteration, E) of every validation since the run began."""
        records = self._begun().records
        return {name: [(record.iteration, record.errors[name]) for record in records] for name in self.tasks}

    def network(self, task: str, pieces: torch.Tensor) -> torch.Tensor:
        """Ask Φ, as validation sees it, which permutation was applied.

        Args:
            task: Whose head.
            pieces: (B, n, 3, h, w) float32, permuted and normalised, on the environment's device.

        Returns:
            (B, |Ψ|) float32 logits, without gradient; `trainer.network` is the module itself.
        """
        with torch.no_grad(), evaluating(self.trainer.evaluated) as network:
            return network(task, pieces)

    # fork, save, restore

    def fork(self) -> PermShuffleEnv:
        """Copy the run: given the same actions, both continue identically; neither touches the other.

        The data, which nothing changes, is shared.
        """
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)  # loading a state replaces all that moves, and only reads the rest
        twin.seconds = dict(self.seconds)
        twin._window = None  # it shows this run
        twin.load_state_dict(self.state_dict())
        return twin

    def save(self, path: str | Path) -> None:
        """Write the whole run to one file, atomically: `reset(options={"checkpoint": path})` continues it.

        Raises:
            gymnasium.error.ResetNeeded: If no run has begun.
            OSError: If the file cannot be written; a file of that name is then as it was.
        """
        checkpoint.write(path, {"environment": self.state_dict()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, and what it must not be mixed up with: a tree that `permenv.checkpoint` writes.

        Raises:
            gymnasium.error.ResetNeeded: If no run has begun.
        """
        now = self._begun()
        return {
            "identity": self._identity(),
            "generator": self.np_random.bit_generator.state,
            "generator_seed": self._np_random_seed,
            "trainer": self.trainer.state_dict(),
            "progress": dataclasses.asdict(now),
            "tasks": {
                name: {
                    "permutations": self.permutations[name],
                    "validation_samples": self.validation_samples[name],
                    "ratios": self.validation[name].ratios,
                    "correct": self.validation[name].correct,
                    "groups": self.groups[name],
                }
                for name in self.tasks
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the run that `state_dict` described; its tensors are copied.

        Raises:
            CheckpointError: If it is a run of another configuration; this one is then as it was.
        """
        self._check_identity(state["identity"])
        trainer = self._new_trainer(seed=0)
        try:
            trainer.load_state_dict(state["trainer"])
        except RuntimeError as error:  # a backbone of one's own that was changed, but not its name
            raise CheckpointError(f"the checkpoint has another network under the same names: {error}") from error
        self.trainer = trainer
        self.np_random = np.random.default_rng()
        self.np_random.bit_generator.state = state["generator"]
        self._np_random_seed = state["generator_seed"]
        tasks = state["tasks"]
        self._hold_out({name: np.array(tasks[name]["validation_samples"]) for name in self.tasks})
        progress = copy.deepcopy(state["progress"])
        progress["records"] = [Record(**record) for record in progress["records"]]
        self._progress = now = _Progress(**progress)
        last = now.records[-1]
        self.validation = {
            name: Validation(
                np.array(saved["ratios"]), np.array(saved["correct"]), last.errors[name], last.cross_entropies[name]
            )
            for name, saved in tasks.items()
        }
        self._look_at({name: np.array(saved["groups"]) for name, saved in tasks.items()})

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": self._arguments,
            "render_mode": self.render_mode,
            "spec": self.spec,
            "run": None if self._progress is None else self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(render_mode=state["render_mode"], **state["arguments"])  # type: ignore[misc]
        self.spec = state["spec"]
        if state["run"] is not None:
            self.load_state_dict(state["run"])

    # the run

    def _begin(self, trunk: dict[str, torch.Tensor] | None) -> None:
        config = self.config
        self.trainer = self._new_trainer(seed=int(self.np_random.integers(2**31)))
        if trunk is not None:
            self.trainer.start_from(trunk)
        self._hold_out({name: task.hold_out(self.np_random) for name, task in self.tasks.items()})
        if not self._validate():
            raise ConfigurationError("what the untrained network predicts is not finite: check the backbone")
        self._regroup()
        now = _Progress(
            actions=np.zeros((config.actions_per_iteration, len(self.tasks)), dtype=np.int64),
            choices=np.zeros((len(self.tasks), config.num_groups), dtype=np.int64),
            phase="",
            losses=dict.fromkeys(self.tasks, math.log(config.num_permutations)),
            baseline_errors={name: current.error for name, current in self.validation.items()},
            records=[],
        )
        now.phase = self._next_phase(now)
        self._remember(now, "reset")
        self._progress = now

    def _iterate(self, now: _Progress) -> tuple[dict[str, float], bool]:
        """One SGD iteration on the full mini-batches and, where one is due, a validation: (rewards, validated)."""
        start = time.perf_counter()
        np.add.at(now.choices, (np.arange(len(self.tasks)), now.actions), 1)
        chosen = now.actions.repeat(self.config.samples_per_action, axis=0)  # [B, tasks]
        batches = {}
        for column, (name, task) in enumerate(self.tasks.items()):
            labels = draw_members(self._members[name], chosen[:, column], self.np_random)
            samples = task.draw(self._trainable[name], len(labels), self.np_random)
            batches[name] = Batch(task.training_pieces(samples, labels, self.np_random), labels)
        now.losses = self.trainer.step(batches)
        self.seconds["training"] += time.perf_counter() - start
        if not all(map(math.isfinite, now.losses.values())):
            return self._diverge(now, self.trainer.iteration + 1), False  # the step was not taken
        now.iterations_in_cycle += 1
        if now.iterations_in_cycle == self.config.free_iterations:
            return self._close_phase(now, credited=False)
        if now.iterations_in_cycle == self.config.free_iterations + self.config.iterations_per_update:
            return self._close_phase(now, credited=True)
        return self._no_gains, False

    def _close_phase(self, now: _Progress, credited: bool) -> tuple[dict[str, float], bool]:
        if not self._validate():
            return self._diverge(now, self.trainer.iteration), False
        history, gains = self.history, {}
        for name, current in self.validation.items():
            now.baseline_errors[name] = extrapolated_error(history[name], self.trainer.iteration)
            gains[name] = reward(now.baseline_errors[name], current.error)
        self._regroup()
        self._remember(now, now.phase)
        if not credited:
            return self._no_gains, True
        now.iterations_in_cycle = 0
        now.update += 1
        now.rewards.append(_mean(gains))
        return gains, True

    def _remember(self, now: _Progress, phase: str) -> None:
        now.records.append(
            Record(
                iteration=self.trainer.iteration,
                phase=phase,
                errors={name: current.error for name, current in self.validation.items()},
                cross_entropies={name: current.cross_entropy for name, current in self.validation.items()},
                observation=self._observation.copy(),
                choices=now.choices,
            )
        )
        now.choices = np.zeros_like(now.choices)

    def _diverge(self, now: _Progress, iteration: int) -> dict[str, float]:
        """End the run with the worst errors; the last observation stays."""
        now.diverged = True
        now.baseline_errors = {name: extrapolated_error(past, iteration) for name, past in self.history.items()}
        gains = {name: reward(baseline, 1.0) for name, baseline in now.baseline_errors.items()}
        now.rewards.append(_mean(gains))
        return gains

    def _validate(self) -> bool:
        """Validate all tasks; where a score is not finite, return False and keep what was known before."""
        start = time.perf_counter()
        found = {
            name: validate(self.trainer.evaluated, name, self._validation_pieces[name], self.permutations[name])
            for name in self.tasks
        }
        self.seconds["validation"] += time.perf_counter() - start
        finite = all(current.finite for current in found.values())
        if finite:
            self.validation = found
        return finite

    def _regroup(self) -> None:
        start = time.perf_counter()
        num_groups = self.config.num_groups
        groups = {}
        for name, current in self.validation.items():
            groups[name] = group_permutations(current.ratios, num_groups, int(self.np_random.integers(2**31)))
        self._look_at(groups)
        self.seconds["grouping"] += time.perf_counter() - start

    def _look_at(self, groups: dict[str, np.ndarray]) -> None:
        num_groups = self.config.num_groups
        self.groups = groups
        self._members = {name: group_members(groups[name], num_groups) for name in self.tasks}
        states = [summarise(self.validation[name].ratios, groups[name], num_groups) for name in self.tasks]
        self._observation = np.stack(states).reshape(self.observation_space.shape)

    def _hold_out(self, samples: dict[str, np.ndarray]) -> None:
        self.validation_samples = samples
        self._trainable = {name: task.trainable(samples[name]) for name, task in self.tasks.items()}
        self._validation_pieces = {name: task.validation_pieces(samples[name]) for name, task in self.tasks.items()}

    def _trunk_in(self, path: str | Path) -> dict[str, torch.Tensor]:
        """The trunk of a saved run, checked to be of our kind before anything of this run is touched."""
        saved = _saved_environment(path)
        theirs, ours = saved["identity"]["backbone"], self._identity()["backbone"]
        if theirs != ours:
            raise CheckpointError(
                f"{path} has the trunk backbone={theirs!r}, this environment backbone={ours!r}: make the environment "
                f"with the checkpoint's backbone"
            )
        trunk = trunk_of(saved["trainer"])
        try:
            self._new_trainer(seed=0).start_from(trunk)
        except RuntimeError as error:  # a backbone of one's own that was changed, but not its name
            raise CheckpointError(f"{path} has another trunk under the same name {ours!r}: {error}") from error
        if not all(value.isfinite().all() for value in trunk.values()):
            raise CheckpointError(f"{path} has a trunk that is not finite, its run diverged: use an earlier checkpoint")
        return trunk

    def _new_trainer(self, seed: int) -> Trainer:
        return Trainer(self.config, {name: task.head for name, task in self.tasks.items()}, self.device, seed)

    def _as_groups(self, action: np.int64 | int | np.ndarray) -> np.ndarray:
        """The chosen group of each task, (tasks,) int64."""
        try:
            groups = np.asarray(action)
        except ValueError:  # lists of different lengths
            groups = np.empty(0)
        if groups.shape == self.action_space.shape and groups.dtype.kind in "iu":
            groups = groups.reshape(len(self.tasks)).astype(np.int64)
            if ((groups >= 0) & (groups < self.config.num_groups)).all():
                return groups
        expected = "an integer" if len(self.tasks) == 1 else f"{len(self.tasks)} integers, one for each task,"
        raise gym.error.InvalidAction(
            f"action {action!r} is not a group: pass {expected} from 0 to {self.config.num_groups - 1}"
        )

    def _begun(self) -> _Progress:
        if self._progress is None:
            raise gym.error.ResetNeeded("no training run has begun: call reset() first")
        return self._progress

    def _is_over(self, now: _Progress) -> bool:
        return now.diverged or now.update >= self.config.total_updates

    def _next_phase(self, now: _Progress) -> str:
        return "free" if now.iterations_in_cycle < self.config.free_iterations else "update"

    def _info(self, now: _Progress, validated: bool, gains: dict[str, float]) -> dict[str, Any]:
        last = now.records[-1]
        errors, cross_entropies = dict(last.errors), dict(last.cross_entropies)
        if now.diverged:
            errors = dict.fromkeys(self.tasks, 1.0)
            cross_entropies = dict.fromkeys(self.tasks, math.log(self.config.num_permutations))
        return {
            "validated": validated,
            "phase": now.phase,
            "update": now.update,
            "iteration": self.trainer.iteration,
            "loss": sum(now.losses.values()),
            "error": _mean(errors),
            "baseline_error": _mean(now.baseline_errors),
            "task_losses": dict(now.losses),
            "task_errors": errors,
            "task_cross_entropies": cross_entropies,
            "task_baseline_errors": dict(now.baseline_errors),
            "task_rewards": dict(gains),
            "diverged": now.diverged,
        }

    def _picture(self, now: _Progress) -> np.ndarray:
        """The run's picture, drawn again only where a validation, a divergence or another run has changed it."""
        moment = len(now.records), now.diverged
        if self._drawn is None or self._drawn[0] is not now or self._drawn[1] != moment:
            picture = render.to_array(self.dashboard())
            picture.flags.writeable = False
            self._drawn = now, moment, picture
        return self._drawn[2]

    def _identity(self) -> dict[str, Any]:
        numbers = self.config.as_dict()
        for name in _FREE_TO_CHANGE:
            del numbers[name]
        data = {name: task.data.fingerprint for name, task in self.tasks.items()}
        return {"task": self.task, "data": data, **numbers}

    def _check_identity(self, saved: dict[str, Any]) -> None:
        ours = self._identity()
        different = [name for name in ours | saved if ours.get(name) != saved.get(name)]
        if different:
            name = different[0]
            raise CheckpointError(
                f"the checkpoint is of another configuration: it has {name}={saved.get(name)!r}, this environment "
                f"{name}={ours.get(name)!r} ({len(different)} differences: {', '.join(different)}); "
                f"make the environment with the checkpoint's values"
            )


def _saved_environment(path: str | Path) -> dict[str, Any]:
    tree = checkpoint.read(path)
    if "environment" not in tree:
        raise CheckpointError(f"{path} holds no environment: name a file that env.save() or a run wrote")
    return tree["environment"]


def _mean(by_task: dict[str, float]) -> float:
    return sum(by_task.values()) / len(by_task)
