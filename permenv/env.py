"""`PermShuffle-v0`: a network that learns to undo shuffling, as a Markov decision process."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from permenv import checkpoint
from permenv.checkpoint import CheckpointError
from permenv.config import ConfigurationError, Range
from permenv.episode import Episode
from permenv.grouping import HIGHEST_RATIO, LOWEST_RATIO, preload
from permenv.pretraining import Pretraining, read_trunk
from permenv.records import Record, mean
from permenv.saved_run import read_run
from permenv.schema import Anything, Either, Fields, GeneratorState, Number, OneOf
from permenv.setup import make_tasks, prepare
from permenv.streams import restored
from permenv.validation import Validation

if TYPE_CHECKING:
    from permenv.window import Renderer


_SEED = Either(OneOf((None,)), Number(int, Range(-1)))  # Gymnasium's -1 is a seed that it does not know
_PARTS = Fields(
    {
        "run": Anything(),
        "episode": Anything(),
        "random": Fields({"seed": _SEED, "generator": GeneratorState()}),
    },
    {"agent": Anything(), "job": Anything()},
)
"""A state; the file of a training job also holds what belongs to others. Run and episode have schemas of their own."""


class PermShuffleEnv(gym.Env[np.ndarray, np.int64 | np.ndarray]):
    r"""Choose the permutations that a convolutional network trains on.

    ## Description
    A network Φ learns, without labels, to recognise how its input was shuffled: the nine tiles of an image (task
    "spatial"), eight frames of a video ("temporal"), or both on one shared trunk ("spatiotemporal", the joint task). It
    classifies which of |Ψ| permutations was applied; each ordering task has its own Ψ. Every `iterations_per_update`
    SGD iterations the network is validated, on samples held out of training, under all permutations. The permutations
    are then grouped by difficulty, and the observation describes each group's size and difficulty. The agent chooses
    the groups from which the permutations of the next training samples are drawn. The environment implements Büchler,
    Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning", ECCV 2018; equation and
    section numbers are that paper's.

    ## Action Space
    `Discrete(num_groups)`: the group, hardest first, from which permutations are drawn uniformly for the next
    `samples_per_action` random training samples. When B / m actions have filled a mini-batch of B, one SGD iteration
    runs. For an empty group, the easiest group that is not empty is used.

    Joint task: `MultiDiscrete([num_groups] * tasks)`, one group per ordering task, the spatial one first; an iteration
    trains on a mini-batch of each.

    ## Observation Space
    `Box(float32, (num_groups, 2))`: ŝ of Eq. 10, one row per group.

    | Column | Meaning                                                               | Min | Max |
    |--------|-----------------------------------------------------------------------|-----|-----|
    | 0      | fraction \|c_j\| / \|Ψ\| of the permutations in the group; sums to 1 | 0   | 1   |
    | 1      | median over group and X_val of (y_l + 1) / (y_p + 1) (Eq. 3); above 1: recognised | 0.5 | 2   |

    Rows are sorted by column 1, ascending. The observation changes only at a validation. Joint task: (tasks,
    num_groups, 2), one ŝ per ordering task.

    ## Rewards
    The step that ends an update returns r_t = E^BL - E (Eq. 7). E is the share of (permutation, sample) pairs that are
    not recognised (Eq. 6); E^BL is the straight line through the last two validations, read at this iteration
    (appendix E; flat before there are two). The validation that ends free iterations returns 0: it only renews ŝ and
    the line. A step in which the network diverges returns E^BL - 1, also in the middle of an update and in free
    iterations; E^BL is read at the iteration of the loss or validation that was not finite. All other steps return 0.
    Joint task: the mean of the tasks' rewards, which are in `info`.

    With equally spaced validations r_t = g_t - g_(t-1), where g_t = E_t - E_(t+1) is the error reduction of update t.
    The undiscounted return therefore telescopes to the last update's error reduction; it does *not* measure how much
    was learned in the episode. So do not compare algorithms by their episodic return. Learn with γ = 0 per update
    (each update is credited with its own reward, as `agents.Reinforce` does), or with
    `permenv.wrappers.ErrorReduction`, whose undiscounted return is E_0 - E_T, and a γ near 1.

    `permenv.wrappers` has other actions, observations and rewards for the same run.

    ## Starting State
    `reset(seed=...)` draws new weights, a new X_val and all later randomness from the seed. Every draw has a generator
    of its own, keyed by the seed, its purpose, the iteration and the task, so no choice changes another draw. The
    network is validated, so the first observation is that of an untrained network, with an error near 1 - 1 / |Ψ|. Ψ
    depends on `permutation_seed`, not on the seed. `reset(options={"checkpoint": path})` continues a run that
    `save(path)` wrote. `reset(options={"trunk": path})` begins a new run with the trunk of such a run, of whatever
    task: the paper's S&T (section 4.3) is a spatial run followed by a temporal one with its trunk.

    ## Episode End
    One episode is one training run. It is truncated after `total_updates` updates. It is terminated when a loss or
    a validation is not finite: then E = 1, `info["diverged"]` is True and the last finite observation is repeated.

    ## Info
    `validated` (bool, this step ended with a validation), `phase` ("update" or "free": the kind of iteration that this
    step's action contributed to), `update` (updates completed), `iteration`, `loss` (of the last SGD
    iteration; log |Ψ|, that of a uniform guess, before the first; the tasks' sum), `error` and `baseline_error` (E and
    E^BL of the last validation; the tasks' means), `task_losses`, `task_errors`, `task_baseline_errors` and
    `task_rewards` (the same by task; rewards as in the step's), `task_cross_entropies` (of the last validation, in
    nats; log |Ψ| where the run diverged), `diverged`.

    ## Arguments
    Any field of `permenv.config.Config` is a keyword: `gym.make("PermShuffle-v0", num_permutations=300)`.

    | Argument      | Default     | Meaning                                                                        |
    |---------------|-------------|--------------------------------------------------------------------------------|
    | `preset`      | `"tiny"`    | "nano" (half a minute of a CPU core; many permutations for a small network),   |
    |               |             | "tiny" (minutes on a laptop) or "paper" (every number of the paper)            |
    | `task`        | `"spatial"` | "spatial", "temporal", "spatiotemporal", or a task of your own                 |
    | `images`      | `None`      | a folder of images, an (N, H, W, 3) uint8 array, a map-style dataset or        |
    |               |             | `permenv.StillImages`; None for the embedded scenes                            |
    | `videos`      | `None`      | a folder of videos or of folders of frames, a list of (F, H, W, 3) uint8       |
    |               |             | arrays, a map-style dataset or `permenv.VideoClips`; None for the embedded     |
    |               |             | clips                                                                          |
    | `device`      | `"auto"`    | "auto", "cpu" or "cuda"                                                        |
    | `render_mode` | `None`      | None, "rgb_array", or "human": a window that follows the run                   |

    Arrays of the right size are not copied: do not change them while the environment is in use. A task registered by
    `permenv.register_task` has a keyword of its own for its data.

    `samples_per_action` m is 1 by default, so that every sample of a mini-batch has its own choice. The more samples
    share a group, the fewer classes a mini-batch contains, and the less is learned: after 600 iterations under a policy
    that draws all permutations with equal probability, E was 0.56, 0.60, 0.94 and 0.99 (chance) for m = 1, 4, 16 and 64
    (mean of 3 seeds, tiny preset; `experiments/studies/defaults.py`). A policy tilted to the hard groups from the first
    iteration on, with odds of e² between the hardest and the easiest, learned little even at m = 1: E 0.87.

    ## Determinism
    A seed determines the trajectory: bit for bit on the same kind of CPU with the same versions and number of threads,
    whatever else the process does. Global random states are neither read nor changed, and the caller's torch state
    (`no_grad`, `inference_mode`, autocast, default dtype and device, float32 matmul precision) has no effect. The
    exception is a `backbone` of your own that draws random numbers in its forward pass, as dropout does.

    On a GPU some of torch's algorithms add in an order that changes, so that runs, forks and restored runs agree up to
    rounding. After `torch.use_deterministic_algorithms(True)`, with CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment,
    they agree bit for bit, and are slower.

    ## Vector Environments
    `gym.make_vec("PermShuffle-v0", num_envs=M)` trains M networks, in this process or ("async") in one process each. In
    a process started by another, torch uses one thread, or, if it was spawned, the number in OMP_NUM_THREADS. With a
    GPU use `vector_kwargs={"context": "spawn"}`.

    `reset(seed=3, options={"checkpoint": path})` continues the same run in all of them; the runs after it differ, as
    their seeds do. Without a seed these would be the same runs too.

    ## Version History
    - v0: since permenv 0.2.0 a seed gives another trajectory than in 0.1.0, under the same rules: every draw has a
      generator of its own, and faster operations round differently. From 0.2.0 on, trajectories stay as they are.

    Attributes:
        config: All numbers of the run.
        tasks: By name, what is shuffled: a `permenv.Task` with its `data` and Ψ.
        permutations: By task, (|Ψ|, n) int64, Ψ.
        device: Where the network lives.
        run: The run of training, a `permenv.Pretraining`: network, X_val, last validation, groups.
        episode: The decision process on it, a `permenv.episode.Episode`: completed updates, the next validation.
        records: Every validation since the run began, see `permenv.records.Record`.
        rewards: r_t of every update since the run began, and of a divergence.
        validation: By task, the last `Validation`: s, what was recognised, E.
        groups: By task, (|Ψ|,) int64, the group of each permutation.

    Raises:
        ConfigurationError: If an argument is unknown or out of range, the run does not fit into memory, or no window
            can be opened for "human".
        DataError: If data cannot be used.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        preset: str = "tiny",
        task: str = "spatial",
        device: str | torch.device = "auto",
        render_mode: str | None = None,
        **options: Any,
    ):
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigurationError(
                f"render_mode={render_mode!r}: choose None or one of {self.metadata['render_modes']}"
            )
        self._arguments = {"preset": preset, "task": task, "device": device, **options}
        self.task = task
        self.render_mode = render_mode
        self.config, self.device, data = prepare(preset, task, device, options)
        preload()
        # before the data, which may take minutes to read
        self._renderer = _make_renderer(f"PermShuffle: {task}", render_mode)
        self.tasks = make_tasks(task, self.config, self.device, data)
        self.permutations = {name: each.permutations for name, each in self.tasks.items()}
        bounds = np.array([[0, LOWEST_RATIO], [1, HIGHEST_RATIO]], dtype=np.float32)
        num_groups, num_tasks = self.config.num_groups, len(self.tasks)
        shape = (num_groups, 2) if num_tasks == 1 else (num_tasks, num_groups, 2)
        self.observation_space = spaces.Box(np.broadcast_to(bounds[0], shape), np.broadcast_to(bounds[1], shape))
        self.action_space = (
            spaces.Discrete(num_groups) if num_tasks == 1 else spaces.MultiDiscrete([num_groups] * num_tasks)
        )
        self._episode: Episode | None = None

    # Gymnasium's API

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a training run, or continue a saved one.

        Args:
            seed: Decides the run, as `Pretraining.create(seed=...)` does; None draws a seed from the environment's
                generator.
            options: {"checkpoint": path} continues where `save(path)` was called. A seed decides then only what comes
                from `np_random`: the seeds of later resets, and what wrappers such as `MixtureAction` draw; without
                one these continue as saved too. A run that had completed its updates goes on if `total_updates` is
                larger now. Otherwise, and if it had diverged, it can be looked at, but `step` raises an error.
                {"trunk": path} begins a new run with the trunk of a saved run.

        Returns:
            Observation and info.

        Raises:
            ConfigurationError: If an option is unknown or no path, or both are given.
            CheckpointError: If the checkpoint is damaged, of another configuration, or no checkpoint of such a run at
                all, or has another trunk; the current run is unchanged then.
        """
        options = _checked_options(options)
        seeded = None if seed is None else np_random(seed)
        if "checkpoint" in options:
            path = options["checkpoint"]
            tree = read_run(path)
            with checkpoint.naming(path):
                self.load_state_dict(tree)
        else:
            trunk = read_trunk(options["trunk"], self.config, self.tasks) if "trunk" in options else None
            run_seed = int(self.np_random.integers(2**63)) if seed is None else seed
            self._episode = Episode(Pretraining(self.config, self.tasks, self.device, seed=run_seed, trunk=trunk))
        if seeded is not None:
            self._np_random, self._np_random_seed = seeded
        if self.render_mode == "human":
            self.render()
        return self.run.observation.copy(), self.episode.info()

    def step(self, action: np.int64 | int | np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the permutations of the next `samples_per_action` training samples.

        Args:
            action: A group, 0 to |C| - 1; in a joint task (tasks,) ints, a group for each.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            gymnasium.error.InvalidAction: If there is no such group; nothing has changed then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
            RuntimeError: If an exception, such as that of Ctrl-C, has ended a step after the network had moved: then
                the run can neither go on nor be saved or forked.
        """
        groups, episode = self._as_groups(action), self.episode
        if episode.is_over:
            raise gym.error.ResetNeeded(_over(episode))
        trained = episode.choose(groups)
        if trained and self.render_mode == "human":  # at every iteration: a window has events to answer
            self.render()
        diverged = episode.run.diverged
        truncated = not diverged and episode.is_over
        return episode.run.observation.copy(), mean(episode.task_rewards), diverged, truncated, episode.info()

    def render(self) -> np.ndarray | None:
        """Show the run as of its last validation, see `permenv.render.dashboard`.

        `metadata["render_fps"]` is for a picture per validation. `RecordVideo` keeps one per step, and an update of the
        tiny preset has 3200: put it over a wrapper whose step is a phase (`permenv.wrappers`), or raise its `fps`.

        Returns:
            "rgb_array": (H, W, 3) uint8, read-only and the same array until the picture changes, so that a video of
            many steps holds few pictures; copy it to draw on it. "human": None, the window shows it; after `reset` and
            at every validation this happens automatically.
        """
        if self._renderer is None:
            gym.logger.warn("render() does nothing without a render mode: gym.make(..., render_mode='rgb_array')")
            return None
        return self._renderer.show(self.episode)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._renderer is not None:
            self._renderer.close()
        super().close()

    # What researchers look at

    @property
    def episode(self) -> Episode:
        """The decision process on the run of training.

        Raises:
            gymnasium.error.ResetNeeded: If none has begun.
        """
        if self._episode is None:
            raise gym.error.ResetNeeded("no training run has begun: call reset() first")
        return self._episode

    @property
    def run(self) -> Pretraining:
        """The run of training.

        Raises:
            gymnasium.error.ResetNeeded: If none has begun.
        """
        return self.episode.run

    @property
    def records(self) -> list[Record]:
        """Every validation since the run began, the one at its beginning first."""
        return list(self.run.records)

    @property
    def rewards(self) -> list[float]:
        """r_t of every update since the run began, and of a divergence."""
        return list(self.episode.rewards)

    @property
    def validation(self) -> dict[str, Validation]:
        """By task, the last `Validation`: s, what was recognised, E."""
        return self.run.validation

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """By task, (|Ψ|,) int64, the group of each permutation."""
        return self.run.groups

    def network(self, task: str, pieces: torch.Tensor) -> torch.Tensor:
        """Apply Φ to shuffled pieces, see `Pretraining.network`."""
        return self.run.network(task, pieces)

    # Fork, save, restore

    def fork(self) -> PermShuffleEnv:
        """Copy the run: both continue identically, given the same actions, and neither affects the other.

        The data and X_val, which nothing changes, are shared. The copy of a run with a window has none.

        Raises:
            gymnasium.error.ResetNeeded: If no run has begun.
            ConfigurationError: If the backbone cannot be copied.
            RuntimeError: If an exception ended a step halfway, see `step`.
        """
        episode = self.episode
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)  # all that moves is replaced below
        twin.action_space, twin.observation_space = copy.deepcopy((self.action_space, self.observation_space))
        twin._renderer = None if self._renderer is None else self._renderer.without_window()
        twin._continue(episode.run.fork(), episode.state_dict(), self._random_state())
        return twin

    def save(self, path: str | Path) -> None:
        """Write the whole run to one file, atomically: `reset(options={"checkpoint": path})` continues it.

        Raises:
            gymnasium.error.ResetNeeded: If no run has begun.
            CheckpointError, RuntimeError: See `state_dict`; nothing is written then.
            OSError: If the file cannot be written; a file of that name is unchanged then.
        """
        checkpoint.write(path, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, and the run's identity: a tree that `permenv.checkpoint` writes.

        Raises:
            gymnasium.error.ResetNeeded: If no run has begun.
            CheckpointError: If the run was trained or validated by itself, beside `step`, so that it is no episode.
            RuntimeError: If an exception ended a step halfway, see `step`.
        """
        episode = self.episode
        episode.require_schedule()
        return {"run": episode.run.state_dict(), "episode": episode.state_dict(), "random": self._random_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the run that `state_dict` described; its tensors are copied.

        Raises:
            CheckpointError: If it is a run of another configuration, or is no state of such a run at all; the message
                names what does not fit, and this run is unchanged then.
        """
        if isinstance(state, dict) and state.keys() == {"run"}:
            raise CheckpointError(
                "the checkpoint is of a run without an environment: load it with Pretraining.load, or begin from its "
                "trunk with options={'trunk': path}"
            )
        _PARTS.check(state, "checkpoint")
        run = Pretraining.from_state(self.config, self.tasks, self.device, state["run"])
        Episode.state_schema(run).check(state["episode"], "episode")
        self._continue(run, state["episode"], state["random"])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": self._arguments,
            "render_mode": self.render_mode,
            "spec": self.spec,
            "spaces": (self.action_space, self.observation_space),  # their generators too
            "state": None if self._episode is None else self.state_dict(),
            "random": (self._np_random, self._np_random_seed),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(render_mode=state["render_mode"], **state["arguments"])  # type: ignore[misc]
        self.spec = state["spec"]
        self.action_space, self.observation_space = state["spaces"]
        if state["state"] is not None:
            self.load_state_dict(state["state"])
        self._np_random, self._np_random_seed = state["random"]

    def _random_state(self) -> dict[str, Any]:
        return {"seed": self._np_random_seed, "generator": self.np_random.bit_generator.state}

    def _continue(self, run: Pretraining, episode: dict[str, Any], random: dict[str, Any]) -> None:
        self._episode = Episode.from_state(run, episode)
        self._np_random, self._np_random_seed = restored(random["generator"]), random["seed"]

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


def _over(episode: Episode) -> str:
    """Say why an episode takes no step, and what to do; it may have been restored from a checkpoint."""
    run = episode.run
    if run.diverged:
        return (
            f"the training run diverged at iteration {run.diverged_at}: begin another one with reset(), or continue an "
            f"earlier checkpoint"
        )
    return (
        f"the training run is over, it has completed all of its updates: begin another one with reset(), without a "
        f"checkpoint of this one, or raise total_updates={run.config.total_updates} to continue it"
    )


def _make_renderer(title: str, mode: str | None) -> Renderer | None:
    if mode is None:
        return None
    from permenv.window import Renderer  # matplotlib takes its time to import

    return Renderer(title, mode)


def _checked_options(options: Any) -> dict[str, Any]:
    """Return reset options as a dict; refuse what has no keys, and values that are no paths."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigurationError(f"reset options {options!r}: pass a dict such as {{'checkpoint': path}}")
    for name, value in options.items():
        if name not in ("checkpoint", "trunk"):
            raise ConfigurationError(f"unknown reset option {name!r}; there are 'checkpoint' and 'trunk'")
        if not isinstance(value, str | os.PathLike):
            raise ConfigurationError(
                f"reset option {name!r} is {value!r}: pass the path of a checkpoint, or leave it out"
            )
    if len(options) > 1:
        raise ConfigurationError("reset options 'checkpoint' and 'trunk': a saved run has its trunk; pass one of them")
    return options
