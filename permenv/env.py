"""`PermShuffle-v0`: a network that learns to undo shuffling, as a Markov decision process."""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from permenv import checkpoint, render
from permenv.checkpoint import CheckpointError
from permenv.config import TASKS, Config, ConfigurationError, make_config
from permenv.data import DataError, StillImages, embedded_scenes, image_folder
from permenv.networks import evaluating
from permenv.permutations import maximally_different
from permenv.reward import extrapolated_error, reward
from permenv.state import HIGHEST_RATIO, LOWEST_RATIO, draw_members, group_members, group_permutations, summarise
from permenv.training import Trainer, resolve_device
from permenv.validation import Validation

# a checkpoint may go on under another value of these: they do not change what the next iteration does
_FREE_TO_CHANGE = ("total_updates",)


@dataclass
class _Progress:
    """Where a run stands, but for the network, the groups and the generator.

    Attributes:
        actions: (B / m,) int64, the groups chosen for the mini-batch that is being filled.
        phase: Of the last action, "free" or "update".
        loss: Of the last SGD iteration.
        baseline_error: E^BL of the last validation.
        num_actions: How many of `actions` are taken.
        iterations_in_cycle: SGD iterations since the last update was completed.
        update: Updates completed.
        diverged: Whether a loss or a validation was not finite.
        history: (iteration, E) of every validation.
    """

    actions: np.ndarray
    phase: str
    loss: float
    baseline_error: float = 1.0
    num_actions: int = 0
    iterations_in_cycle: int = 0
    update: int = 0
    diverged: bool = False
    history: list[tuple[int, float]] = dataclasses.field(default_factory=list)


class PermShuffleEnv(gym.Env[np.ndarray, np.int64]):
    r"""Choose the permutations that a convolutional network trains on.

    ## Description
    The world is a network Φ that learns, without labels, to put the nine shuffled tiles of an image back in order: it
    names which of |Ψ| permutations was applied. Every `iterations_per_update` SGD iterations it is validated on
    images held out of training, under all permutations; the permutations are then grouped by how hard they are, and
    the agent is told each group's size and difficulty. The agent chooses the groups from which the next training
    samples are permuted. It implements Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep
    Reinforcement Learning", ECCV 2018; equation and section numbers are that paper's.

    ## Action Space
    `Discrete(num_groups)`: the group, hardest first, from which permutations are drawn uniformly for the next
    `samples_per_action` random training images. When B / m actions have filled a mini-batch of B, one SGD iteration
    runs. An empty group stands for the easiest one that is not empty.

    ## Observation Space
    `Box(float32, (num_groups, 2))`: ŝ of Eq. 10, one row a group.

    | Column | Meaning                                                               | Min | Max |
    |--------|-----------------------------------------------------------------------|-----|-----|
    | 0      | fraction \|c_j\| / \|Ψ\| of the permutations in the group, sums to 1 | 0   | 1   |
    | 1      | median over group and X_val of (y_l + 1) / (y_p + 1) (Eq. 3); above 1: recognised | 0.5 | 2   |

    Rows ascend in column 1. The observation changes only at a validation.

    ## Rewards
    The step that ends an update returns r_t = E^BL - E (Eq. 7): E is the share of (permutation, image) pairs not
    recognised (Eq. 6), E^BL the straight line through the last two validations read at this iteration (appendix E;
    flat before there are two). All other steps return 0, the validation that ends the free iterations too: it only
    renews ŝ and the line.

    ## Starting State
    `reset(seed=...)` draws new weights, a new X_val and all later randomness from the seed; the network is validated,
    so the first observation is that of an untrained network, with an error near 1 - 1 / |Ψ|. Ψ depends on
    `permutation_seed` alone. `reset(options={"checkpoint": path})` continues a run that `save(path)` wrote.

    ## Episode End
    One episode is one training run. It is truncated after `total_updates` updates. It is terminated when the loss or
    the validation is not finite: then E = 1, `info["diverged"]` is True and the last finite observation is repeated.

    ## Info
    `validated` (bool, this step ended with a validation), `phase` ("update", or "free" while the actions of the free
    iterations are taken: for which of the two this step's action counted), `update` (updates completed), `iteration`,
    `loss` (of the last SGD iteration; log |Ψ|, that of a uniform guess, before the first), `error` and
    `baseline_error` (E and E^BL of the last validation), `task_errors` and `task_rewards` (the same by task; rewards
    as in the step's), `diverged`.

    ## Arguments
    Any field of `permenv.config.Config` is a keyword: `gym.make("PermShuffle-v0", num_permutations=300)`.

    | Argument      | Default     | Meaning                                                                        |
    |---------------|-------------|--------------------------------------------------------------------------------|
    | `preset`      | `"tiny"`    | "tiny" (minutes on a laptop) or "paper" (every number of the paper)            |
    | `task`        | `"spatial"` | what is shuffled                                                               |
    | `images`      | `None`      | a folder of images, or None for the embedded scenes                            |
    | `videos`      | `None`      | for tasks with videos; the spatial task has none                               |
    | `device`      | `"auto"`    | "auto", "cpu" or "cuda"                                                        |
    | `render_mode` | `None`      | None or "rgb_array"                                                            |

    `samples_per_action` is 1, so that every sample of a mini-batch has a permutation of its own choice. The more
    samples share a group, the more a mini-batch drills a few classes, and the less is learned: after 600 iterations
    under a policy that draws all permutations alike, E was 0.55, 0.58, 0.86 and 0.99 (chance) for m = 1, 4, 16 and 64
    (mean of 3 seeds, tiny preset; `experiments/defaults.py`). A policy that leans to the hard groups from the first
    iteration on, with odds of e² between the hardest and the easiest, learned little even at m = 1: E 0.88.

    ## Determinism
    One seed is one trajectory, bit for bit on a CPU with the same number of threads, whatever else the process does.
    Nothing reads or moves a global random state; a `backbone` of your own that draws numbers in its forward pass
    (dropout) is the exception.

    ## Version History
    - v0: first version.

    Attributes:
        config: All numbers of the run.
        data: The images, and their labels where they have any (for evaluation only).
        validation: By task, the last `Validation`: s, what was recognised, E.
        groups: By task, (|Ψ|,) int64, the group of each permutation.
        permutations: By task, (|Ψ|, n) int64, Ψ.
        seconds: Wall-clock spent by this object on "training", "validation" and "grouping".
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's

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
        if task not in TASKS:
            raise ConfigurationError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
        if videos is not None:
            raise ConfigurationError(f"videos={str(videos)!r}: task {task!r} shuffles stills; pass images instead")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigurationError(
                f"render_mode={render_mode!r}: choose None or one of {self.metadata['render_modes']}"
            )
        self._arguments = {"preset": preset, "task": task, "images": images, "device": device, **overrides}
        self.task = task
        self.render_mode = render_mode
        self.config: Config = make_config(preset, **overrides)
        self.device = resolve_device(device)
        self.data: StillImages = _load_images(images, self.config).to(self.device)
        if self.config.num_validation >= len(self.data):
            raise DataError(
                f"num_validation={self.config.num_validation}, but {self.data.name} has only {len(self.data)} images "
                f"and at least one must be left for training: lower num_validation or add images"
            )
        psi = maximally_different(self.config.num_pieces, self.config.num_permutations, self.config.permutation_seed)
        self.permutations = {task: psi}
        bounds = np.array([[0, LOWEST_RATIO], [1, HIGHEST_RATIO]], dtype=np.float32)
        shape = (self.config.num_groups, 2)
        self.observation_space = spaces.Box(np.broadcast_to(bounds[0], shape), np.broadcast_to(bounds[1], shape))
        self.action_space = spaces.Discrete(self.config.num_groups)
        self.seconds = {"training": 0.0, "validation": 0.0, "grouping": 0.0}
        self._progress: _Progress | None = None

    # Gymnasium's API

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a training run, or continue a saved one.

        Args:
            seed: Decides the run; None goes on drawing from the environment's generator.
            options: {"checkpoint": path} continues where `save(path)` was called, whatever the seed.

        Returns:
            Observation and info.

        Raises:
            ConfigurationError: If an option is unknown.
            CheckpointError: If the checkpoint is damaged or of another configuration; the run is then as it was.
        """
        options = options or {}
        unknown = options.keys() - {"checkpoint"}
        if unknown:
            raise ConfigurationError(f"unknown reset option {unknown.pop()!r}; the only one is 'checkpoint'")
        if "checkpoint" in options:  # which brings its own generator, so the seed is not asked
            path = options["checkpoint"]
            tree = checkpoint.read(path)
            if "environment" not in tree:
                raise CheckpointError(f"{path} holds no environment: name a file that env.save() or a run wrote")
            self.load_state_dict(tree["environment"])
        else:
            super().reset(seed=seed)
            self._begin()
        return self._observation.copy(), self._info(self._begun(), validated=True)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the permutations of the next `samples_per_action` training samples.

        Args:
            action: A group, 0 to |C| - 1.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            gymnasium.error.InvalidAction: If there is no such group; nothing has changed then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        group = self._as_group(action)
        now = self._progress
        if now is None or self._is_over(now):
            raise gym.error.ResetNeeded("the training run has not begun or is over: call reset() first")
        now.phase = self._next_phase(now)
        now.actions[now.num_actions] = group
        now.num_actions += 1
        gain, validated = 0.0, False
        if now.num_actions == len(now.actions):
            now.num_actions = 0
            gain, validated = self._iterate(now)
        truncated = not now.diverged and self._is_over(now)
        return self._observation.copy(), gain, now.diverged, truncated, self._info(now, validated, gain)

    def render(self) -> np.ndarray | None:
        """Draw the run so far as an (H, W, 3) uint8 picture in the render mode "rgb_array"."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing without a render mode: gym.make(..., render_mode='rgb_array')")
            return None
        return render.to_array(render.run_figure(self.history, self._observation))

    # what researchers look at

    @property
    def history(self) -> list[tuple[int, float]]:
        """(iteration, E) of every validation since the run began."""
        return self._begun().history

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

    @property
    def training_indices(self) -> np.ndarray:
        """Indices into `data` that training draws from: all but X_val."""
        return np.setdiff1d(np.arange(len(self.data)), self.validation_indices)

    # fork, save, restore

    def fork(self) -> PermShuffleEnv:
        """Copy the run: given the same actions, both continue identically; neither touches the other.

        The data, which nothing changes, is shared.
        """
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)  # loading a state replaces all that moves, and only reads the rest
        twin.seconds = dict(self.seconds)
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
        now, current = self._begun(), self.validation[self.task]
        return {
            "identity": self._identity(),
            "generator": self.np_random.bit_generator.state,
            "generator_seed": self._np_random_seed,
            "trainer": self.trainer.state_dict(),
            "permutations": self.permutations[self.task],
            "validation_indices": self.validation_indices,
            "ratios": current.ratios,
            "correct": current.correct,
            "error": current.error,
            "groups": self.groups[self.task],
            "progress": dataclasses.asdict(now),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the run that `state_dict` described; its tensors are copied.

        Raises:
            CheckpointError: If it is a run of another configuration; this one is then as it was.
        """
        self._check_identity(state["identity"])
        trainer = self._new_trainer(seed=0)
        trainer.load_state_dict(state["trainer"])
        self.trainer = trainer
        self.np_random = np.random.default_rng()
        self.np_random.bit_generator.state = state["generator"]
        self._np_random_seed = state["generator_seed"]
        self._hold_out(np.array(state["validation_indices"]))
        current = Validation(np.array(state["ratios"]), np.array(state["correct"]), state["error"])
        self._look_at(current, np.array(state["groups"]))
        progress = dict(state["progress"])
        progress["actions"] = np.array(progress["actions"])
        progress["history"] = [(iteration, error) for iteration, error in progress["history"]]
        self._progress = _Progress(**progress)

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

    def _begin(self) -> None:
        config = self.config
        self.trainer = self._new_trainer(seed=int(self.np_random.integers(2**31)))
        self._hold_out(self.np_random.choice(len(self.data), config.num_validation, replace=False))
        none_taken = np.zeros(config.actions_per_iteration, dtype=np.int64)
        now = _Progress(actions=none_taken, phase="", loss=math.log(config.num_permutations))
        now.phase = self._next_phase(now)
        current = self._validate()
        self._regroup(current)
        now.baseline_error = current.error
        now.history.append((0, current.error))
        self._progress = now

    def _iterate(self, now: _Progress) -> tuple[float, bool]:
        """One SGD iteration on the full mini-batch and, where one is due, a validation: (reward, validated)."""
        start = time.perf_counter()
        labels = draw_members(self._members, now.actions.repeat(self.config.samples_per_action), self.np_random)
        samples = self._trainable[self.np_random.integers(len(self._trainable), size=len(labels))]
        now.loss = self.trainer.step(self.data.take(samples, self.device), labels, self.np_random)
        self.seconds["training"] += time.perf_counter() - start
        if not math.isfinite(now.loss):
            return self._diverge(now, self.trainer.iteration + 1), False  # the step was not taken
        now.iterations_in_cycle += 1
        if now.iterations_in_cycle == self.config.free_iterations:
            return self._close_phase(now, credited=False)
        if now.iterations_in_cycle == self.config.free_iterations + self.config.iterations_per_update:
            return self._close_phase(now, credited=True)
        return 0.0, False

    def _close_phase(self, now: _Progress, credited: bool) -> tuple[float, bool]:
        current = self._validate()
        if not current.finite:
            return self._diverge(now, self.trainer.iteration), False
        now.baseline_error = extrapolated_error(now.history, self.trainer.iteration)
        now.history.append((self.trainer.iteration, current.error))
        self._regroup(current)
        if not credited:
            return 0.0, True
        now.iterations_in_cycle = 0
        now.update += 1
        return reward(now.baseline_error, current.error), True

    def _diverge(self, now: _Progress, iteration: int) -> float:
        """End the run with the worst error; the last observation stays."""
        now.diverged = True
        now.baseline_error = extrapolated_error(now.history, iteration)
        return reward(now.baseline_error, 1.0)

    def _validate(self) -> Validation:
        start = time.perf_counter()
        current = self.trainer.validate(self._validation_pieces)
        self.seconds["validation"] += time.perf_counter() - start
        return current

    def _regroup(self, current: Validation) -> None:
        start = time.perf_counter()
        seed = int(self.np_random.integers(2**31))
        self._look_at(current, group_permutations(current.ratios, self.config.num_groups, seed))
        self.seconds["grouping"] += time.perf_counter() - start

    def _look_at(self, current: Validation, groups: np.ndarray) -> None:
        self.validation = {self.task: current}
        self.groups = {self.task: groups}
        self._members = group_members(groups, self.config.num_groups)
        self._observation = summarise(current.ratios, groups, self.config.num_groups)

    def _hold_out(self, indices: np.ndarray) -> None:
        self.validation_indices = indices
        self._trainable = self.training_indices
        self._validation_pieces = self.trainer.validation_pieces(self.data.take(indices, self.device))

    def _new_trainer(self, seed: int) -> Trainer:
        return Trainer(self.config, self.permutations[self.task], self.device, seed)

    def _as_group(self, action: np.int64 | int) -> int:
        try:
            group = operator.index(action)
        except TypeError:
            group = -1
        if not 0 <= group < self.config.num_groups:
            raise gym.error.InvalidAction(
                f"action {action!r} is not a group: pass an integer from 0 to {self.config.num_groups - 1}"
            )
        return group

    def _begun(self) -> _Progress:
        if self._progress is None:
            raise gym.error.ResetNeeded("no training run has begun: call reset() first")
        return self._progress

    def _is_over(self, now: _Progress) -> bool:
        return now.diverged or now.update >= self.config.total_updates

    def _next_phase(self, now: _Progress) -> str:
        return "free" if now.iterations_in_cycle < self.config.free_iterations else "update"

    def _info(self, now: _Progress, validated: bool, gain: float = 0.0) -> dict[str, Any]:
        error = 1.0 if now.diverged else now.history[-1][1]
        return {
            "validated": validated,
            "phase": now.phase,
            "update": now.update,
            "iteration": self.trainer.iteration,
            "loss": now.loss,
            "error": error,
            "baseline_error": now.baseline_error,
            "task_errors": {self.task: error},
            "task_rewards": {self.task: gain},
            "diverged": now.diverged,
        }

    def _identity(self) -> dict[str, Any]:
        numbers = self.config.as_dict()
        for name in _FREE_TO_CHANGE:
            del numbers[name]
        return {"task": self.task, "data": self.data.fingerprint, **numbers}

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


def _load_images(folder: str | Path | None, config: Config) -> StillImages:
    if folder is None:
        return embedded_scenes(config.num_scenes, config.image_size, config.scenes_seed)
    return image_folder(folder, config.image_size)
