"""A run of self-supervised training as a plain object, without Gymnasium and without an agent.

The run owns everything that changes: the network in training, X_val, the last validation, the groups of permutations
and the records of all validations. The caller decides when to iterate and when to validate.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from permenv import checkpoint
from permenv.checkpoint import CheckpointError
from permenv.config import Config, ConfigurationError
from permenv.device import resolve_device
from permenv.distributed import Ranks, current
from permenv.grouping import draw_members, group_members, group_permutations, observe
from permenv.minibatches import MiniBatches
from permenv.networks import eval_mode
from permenv.records import PHASES, Record
from permenv.run_schema import run_schema
from permenv.saved_run import precision_of, read_run, trunk_weights
from permenv.schema import shown
from permenv.setup import make_tasks, prepare
from permenv.streams import Purpose, stream
from permenv.tasks import Task
from permenv.torch_state import default_torch_state
from permenv.training import Trainer
from permenv.validation import Validation, validate

# a checkpoint may be continued with other values of these: they do not change what the next iteration does
_FREE_TO_CHANGE = ("total_updates",)

_SPENT_ON = ("training", "validation", "grouping")

INTERRUPTED = (
    "an exception ended an iteration or a validation of this run halfway, so that it can neither go on nor be saved or "
    "forked: continue an earlier checkpoint, or begin another run"
)
"""What is said of a run whose weights have moved, while what counts them has not."""


class Pretraining:
    """A network that learns to recognise permutations of its data, and what is known about it.

    Example:
        >>> run = permenv.Pretraining.create("tiny", images="path/to/images", seed=0)
        >>> while run.iteration < 1500:
        ...     losses = run.iterate()  # random permutations
        >>> run.validate()
        >>> run.records[-1].errors["spatial"]

    Args:
        config: All numbers of the run.
        tasks: By name, what is shuffled.
        device: Where the network lives.
        seed: Decides everything that is drawn: initial weights, X_val, permutations, samples, augmentation, clustering.
        trunk: Weights that the trunk starts from, see `read_trunk`; None for random ones.

    Attributes:
        config: All numbers of the run.
        tasks: By name, what is shuffled.
        device: Where the network lives.
        seed: Decides everything that is drawn; see `permenv.streams`. A fork whose seed is changed draws other data
            from then on.
        trainer: The network in training.
        held_out: By task, (|X_val|, k) int64, X_val; the first column is the number of the image or clip.
        validation: By task, the last `Validation`: s, what was recognised, E.
        groups: By task, (|Ψ|,) int64, the group of each permutation, 0 the hardest.
        records: Every validation so far.
        losses: By task, the cross-entropy of the last iteration; log |Ψ|, that of a uniform guess, before the first.
        choices: (tasks, |C|) int64, how often each group was chosen since the last validation.
        diverged: Whether a loss or a validation was not finite.
        seconds: Wall-clock seconds spent by this object on "training", "validation" and "grouping"; a fork begins at 0.
        ranks: The processes that train it together, those that this one had joined when the run was made. All
            methods that move the run are called by all of them.

    Raises:
        ConfigurationError: If the seed is no integer of at least 0, the backbone does not fit the pieces, an
            untrained network's output is not finite, or several ranks cannot divide the run.
    """

    @default_torch_state()
    def __init__(
        self,
        config: Config,
        tasks: Mapping[str, Task],
        device: str | torch.device,
        *,
        seed: int,
        trunk: Mapping[str, torch.Tensor] | None = None,
    ):
        self.config = config
        self.tasks = dict(tasks)
        self.device = resolve_device(device)
        self.ranks: Ranks = current()
        self.seed: int = _checked_seed(seed)
        self.seconds: dict[str, float] = dict.fromkeys(_SPENT_ON, 0.0)
        weights_seed = int(stream(seed, Purpose.WEIGHTS).integers(2**63))
        self.trainer: Trainer = _new_trainer(config, tasks, self.device, weights_seed, self.ranks)
        if trunk is not None:
            self.trainer.start_from(trunk)
        self.losses: dict[str, float] = dict.fromkeys(self.tasks, math.log(config.num_permutations))
        self.choices: np.ndarray = np.zeros((len(self.tasks), config.num_groups), dtype=np.int64)
        self.records: list[Record] = []
        self.diverged: bool = False
        self._is_consistent: bool = True
        self._hold_out(
            {
                name: each.hold_out(stream(seed, Purpose.VALIDATION_SET, task=number))
                for number, (name, each) in enumerate(self.tasks.items())
            }
        )
        if not self.validate("reset"):
            cause = "backbone" if trunk is None else "weights of the given trunk"
            raise ConfigurationError(f"the output of the network before training is not finite: check the {cause}")

    @classmethod
    def create(
        cls,
        preset: str = "tiny",
        task: str = "spatial",
        *,
        seed: int | None = None,
        device: str | torch.device = "auto",
        **options: Any,
    ) -> Pretraining:
        """Make a run with its data.

        Args:
            preset: A name in `permenv.PRESETS`.
            task: A name in `permenv.registered_tasks()`.
            seed: Decides the run; None for a random one.
            device: "auto", "cpu" or "cuda".
            **options: Data (`images`, `videos`) and any field of `permenv.Config`, as for `gym.make`.

        Raises:
            ConfigurationError: If an option is unknown, it or the seed is out of range, or the run does not fit into
                memory.
            DataError: If data cannot be used.
        """
        seed = secrets.randbits(63) if seed is None else _checked_seed(seed)  # before the data, which may take minutes
        config, chosen, data = prepare(preset, task, device, options)
        tasks = make_tasks(task, config, chosen, data)
        return cls(config, tasks, chosen, seed=seed)

    # What is known

    @property
    def iteration(self) -> int:
        """SGD iterations done."""
        return self.trainer.iteration

    @property
    def permutations(self) -> dict[str, np.ndarray]:
        """By task, (|Ψ|, n) int64, Ψ."""
        return {name: task.permutations for name, task in self.tasks.items()}

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """By task, (iteration, E) of every validation so far."""
        return {name: [(record.iteration, record.errors[name]) for record in self.records] for name in self.tasks}

    @property
    def diverged_at(self) -> int | None:
        """The iteration at which the run diverged, or None.

        It is the first that was not done: the one whose loss was not finite, or the one after the validation that was
        not finite. So it lies after all records.
        """
        return self.iteration + 1 if self.diverged else None

    def error_curve(self, task: str | None = None) -> tuple[list[int], list[float]]:
        """E in the course of the run.

        Args:
            task: Whose E; None for the mean over the tasks.

        Returns:
            The iterations of all validations, and E at each; of a run that diverged also `diverged_at`, with E = 1.
        """
        iterations = [record.iteration for record in self.records]
        errors = [record.error if task is None else record.errors[task] for record in self.records]
        if self.diverged_at is not None:
            return [*iterations, self.diverged_at], [*errors, 1.0]
        return iterations, errors

    @property
    def observation(self) -> np.ndarray:
        """ŝ of the last validation, (|C|, 2) float32; of a joint task (tasks, |C|, 2)."""
        return self.records[-1].observation

    @default_torch_state()
    def network(self, task: str, pieces: torch.Tensor) -> torch.Tensor:
        """Apply Φ, as it is validated, to shuffled pieces.

        Args:
            task: Name of the task whose head is used.
            pieces: (B, n, *piece) float32, permuted and normalised, on the run's device.

        Returns:
            (B, |Ψ|) float32 logits, without gradient; `trainer.network` is the module itself.
        """
        with torch.no_grad(), eval_mode(self.trainer.eval_network) as network:
            return network(task, pieces)

    # What moves it

    @default_torch_state()
    def iterate(self, groups: np.ndarray | None = None) -> dict[str, float]:
        """Take one SGD step on a mini-batch of each task.

        Args:
            groups: (A, tasks) int, A a divisor of the batch size B: each row decides the groups of B / A samples per
                task. None draws all permutations with equal probability.

        Returns:
            By task, the cross-entropy before the step. If one is not finite, the step was not taken and `diverged` is
            set.

        Raises:
            RuntimeError: If the run has diverged, or see `require_consistent`.
            ValueError: If `groups` has another shape, or there is no such group; nothing has changed then.
        """
        self.require_consistent()
        self._require_finite()
        if groups is not None:
            groups = self._checked(groups)
        start = time.perf_counter()
        batches, chosen = {}, np.zeros_like(self.choices)
        for number, (name, minibatches) in enumerate(self._minibatches.items()):
            labels, drawn = self._draw_labels(name, None if groups is None else groups[:, number], number)
            np.add.at(chosen[number], drawn, 1)
            batches[name] = minibatches.make(self.seed, self.iteration, labels)
        for minibatches in self._minibatches.values():  # to be read while the network is trained
            minibatches.announce(self.seed, self.iteration, self.config.batch_size)
        self._is_consistent = False
        self.losses = self.trainer.step(batches)
        self.choices += chosen
        self.seconds["training"] += time.perf_counter() - start
        self.diverged = not all(map(math.isfinite, self.losses.values()))
        self._is_consistent = True
        return dict(self.losses)

    @default_torch_state()
    def validate(self, phase: str = "update") -> bool:
        """Validate the network on all permutations of X_val, group the permutations again, and add a record.

        Args:
            phase: What the validation ends, see `Record`.

        Returns:
            Whether all predictions are finite. If not, `diverged` is set and the last validation stays.

        Raises:
            RuntimeError: If the run has diverged, the ranks do not replay the same run, or see `require_consistent`.
            ValueError: If the phase is unknown.
        """
        self.require_consistent()
        self._require_finite()
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r}: choose one of {', '.join(PHASES)}")
        self._require_same_run()
        start = time.perf_counter()
        if self.device.type == "cuda":  # what it has still to do is part of the training
            torch.cuda.synchronize(self.device)
        self.seconds["training"] += time.perf_counter() - start
        start = time.perf_counter()
        network = self.trainer.eval_network
        found = {
            name: validate(network, name, self._validation_pieces[name], task.permutations, self.ranks)
            for name, task in self.tasks.items()
        }
        self.seconds["validation"] += time.perf_counter() - start
        self.diverged = not all(each.finite for each in found.values())
        if self.diverged:
            return False
        self._is_consistent = False
        start = time.perf_counter()
        self.validation = found
        seeds = [int(self._stream(Purpose.GROUPS, number).integers(2**31)) for number in range(len(found))]
        self._set_groups(
            {
                # another processor might group otherwise
                name: self.ranks.broadcast(group_permutations(each.ratios, self.config.num_groups, own_seed))
                for (name, each), own_seed in zip(found.items(), seeds, strict=True)
            }
        )
        self.seconds["grouping"] += time.perf_counter() - start
        self.records.append(
            Record(
                iteration=self.iteration,
                phase=phase,
                errors={name: each.error for name, each in found.items()},
                cross_entropies={name: each.cross_entropy for name, each in found.items()},
                observation=observe(
                    {name: each.ratios for name, each in found.items()}, self.groups, self.config.num_groups
                ),
                choices=self.choices,
            )
        )
        self.choices = np.zeros_like(self.choices)
        self._is_consistent = True
        return True

    def require_consistent(self) -> None:
        """Check that no exception, such as that of Ctrl-C, has ended an iteration or a validation halfway.

        Raises:
            RuntimeError: If one has: the weights may have moved, while what counts them has not.
        """
        if not self._is_consistent:
            raise RuntimeError(INTERRUPTED)

    # Fork, save, restore

    @default_torch_state()
    def fork(self) -> Pretraining:
        """Copy the run: both continue identically, given the same groups, and neither affects the other.

        The data and X_val, which nothing changes, are shared.

        Raises:
            ConfigurationError: If the backbone cannot be copied.
            RuntimeError: See `require_consistent`.
        """
        self.require_consistent()
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)  # all that moves is replaced below
        twin.trainer = self.trainer.copy()
        twin.validation, twin.groups, twin._members = copy.deepcopy((self.validation, self.groups, self._members))
        twin.records, twin.choices = copy.deepcopy((self.records, self.choices))
        twin.losses, twin.seconds = dict(self.losses), dict.fromkeys(_SPENT_ON, 0.0)
        twin._minibatches = {name: each.fork() for name, each in self._minibatches.items()}
        return twin

    @classmethod
    def from_state(
        cls, config: Config, tasks: Mapping[str, Task], device: torch.device, state: Mapping[str, Any]
    ) -> Pretraining:
        """Make a run that continues where `state_dict` was taken, see `load_state_dict`.

        Where the configuration says precision="auto", it continues in the precision in which it began: on another
        device "auto" may stand for another one.

        Args:
            config: All numbers of the run, those of the state but for `total_updates`.
            tasks: By name, what is shuffled: the data of the state.
            device: Where the network lives.
            state: What `state_dict` returned or a file holds of it. Its tensors are copied.

        Raises:
            CheckpointError: If it is the state of another configuration, or is no state of such a run at all; the
                message names what does not fit.
            ConfigurationError: If the network cannot be made, or several ranks cannot divide the run.
        """
        if config.precision == "auto":
            config = dataclasses.replace(config, precision=precision_of(state) or "auto")
        run = cls._blank(config, tasks, device)
        run_schema(run.identity, run.tasks, config.num_groups, run.trainer.state_schema()).check(state, "run")
        run._continue(state)
        return run

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "tasks": self.tasks, "device": self.device, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(self.from_state(**state).__dict__)

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must have in common for one to continue the other's state: data and numbers."""
        fields = {name: value for name, value in self.config.as_dict().items() if name not in _FREE_TO_CHANGE}
        fields["precision"] = self.trainer.precision  # "auto" is another one on another device
        return {"data": {name: task.data.fingerprint for name, task in self.tasks.items()}, **fields}

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, and the run's identity: a tree that `permenv.checkpoint` writes.

        Raises:
            RuntimeError: See `require_consistent`.
        """
        self.require_consistent()
        return {
            "identity": self.identity,
            "seed": self.seed,
            "trainer": self.trainer.state_dict(),
            "records": [dataclasses.asdict(record) for record in self.records],
            "losses": dict(self.losses),
            "choices": self.choices.copy(),
            "diverged": self.diverged,
            "tasks": {
                name: {
                    "permutations": task.permutations,
                    "held_out": self.held_out[name],
                    "ratios": self.validation[name].ratios,
                    "correct": self.validation[name].correct,
                    "groups": self.groups[name],
                }
                for name, task in self.tasks.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the run that `state_dict` described; its tensors are copied.

        Raises:
            CheckpointError: If it is the state of another configuration, or is no state of such a run at all; the
                message names what does not fit, and this run is unchanged then.
        """
        run = self.from_state(self.config, self.tasks, self.device, state)
        run.seconds = self.seconds
        self.__dict__.update(run.__dict__)

    def save(self, path: str | Path) -> None:
        """Write the run to one file, atomically.

        Raises:
            OSError: If the file cannot be written; a file of that name is unchanged then.
            RuntimeError: See `require_consistent`; nothing is written then.
        """
        checkpoint.write(path, {"run": self.state_dict()})

    def load(self, path: str | Path) -> None:
        """Continue the run that `save`, an environment or a training job wrote.

        Raises:
            CheckpointError: If the file is damaged or holds a run of another configuration; this run is unchanged then.
        """
        tree = read_run(path)
        with checkpoint.naming(path):
            self.load_state_dict(tree["run"])

    # Parts of the above

    @classmethod
    @default_torch_state()
    def _blank(cls, config: Config, tasks: Mapping[str, Task], device: torch.device) -> Pretraining:
        """Make a run that only lacks a state."""
        run = cls.__new__(cls)
        run.config, run.tasks, run.device = config, dict(tasks), device
        run._is_consistent = True
        run.seconds = dict.fromkeys(_SPENT_ON, 0.0)
        run.ranks = current()
        run.trainer = _new_trainer(config, tasks, device, 0, run.ranks)
        return run

    @default_torch_state()
    def _continue(self, state: Mapping[str, Any]) -> None:
        """Take on a state that fits."""
        self.trainer.load_state_dict(state["trainer"])
        self.seed = state["seed"]
        tasks = state["tasks"]
        self._hold_out({name: np.array(tasks[name]["held_out"]) for name in self.tasks})
        self.records = [Record(**record) for record in state["records"]]
        self.losses = dict(state["losses"])
        self.choices = np.array(state["choices"])
        self.diverged = state["diverged"]
        last = self.records[-1]
        self.validation = {
            name: Validation(
                np.array(saved["ratios"]), np.array(saved["correct"]), last.errors[name], last.cross_entropies[name]
            )
            for name, saved in tasks.items()
        }
        self._set_groups({name: np.array(saved["groups"]) for name, saved in tasks.items()})

    def _require_finite(self) -> None:
        if self.diverged:
            raise RuntimeError(
                f"the run diverged at iteration {self.diverged_at}: lower learning_rate={self.config.learning_rate}, "
                f"or load an earlier checkpoint"
            )

    def _require_same_run(self) -> None:
        """Check that all ranks have made the same choices, on which they have trained without asking each other."""
        if self.ranks.size > 1:
            self.ranks.require_same("seed", self.seed)
            self.ranks.require_same("configuration or other data", self.identity)
            self.ranks.require_same("choice of groups", (self.iteration, self.choices.tolist()))

    def _checked(self, groups: np.ndarray) -> np.ndarray:
        """Return groups as an int64 array; refuse what `iterate` cannot use."""
        batch_size, num_tasks, num_groups = self.config.batch_size, len(self.tasks), self.config.num_groups
        array = np.asarray(groups)
        if array.ndim != 2 or array.shape[1] != num_tasks or not len(array) or batch_size % len(array):
            raise ValueError(
                f"groups of shape {array.shape}: pass (A, {num_tasks}), a row for each action and a column for each "
                f"task, with A a divisor of batch_size={batch_size}"
            )
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= num_groups:
            raise ValueError(f"groups {array.tolist()}: pass integers from 0 to {num_groups - 1}")
        return array.astype(np.int64)

    def _stream(self, purpose: Purpose, task: int) -> np.random.Generator:
        return stream(self.seed, purpose, self.iteration, task)

    def _draw_labels(self, task: str, groups: np.ndarray | None, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the permutations of a mini-batch, (B,) int64; also return the groups to be counted as chosen."""
        batch_size, generator = self.config.batch_size, self._stream(Purpose.LABELS, number)
        if groups is None:
            labels = generator.integers(len(self.groups[task]), size=batch_size)
            return labels, self.groups[task][labels]
        return draw_members(self._members[task], groups.repeat(batch_size // len(groups)), generator), groups

    def _hold_out(self, samples: dict[str, np.ndarray]) -> None:
        self.held_out = samples
        self._minibatches = {
            name: MiniBatches(task, number, samples[name], self.ranks)
            for number, (name, task) in enumerate(self.tasks.items())
        }
        shards = {name: each[self.ranks.shard(len(each))] for name, each in samples.items()}
        self._validation_pieces = {name: task.pieces(shards[name]) for name, task in self.tasks.items()}
        for name, pieces in self._validation_pieces.items():
            task = self.tasks[name]
            expected = (len(shards[name]), task.num_pieces, *task.piece_shape)
            if tuple(pieces.shape) != expected or pieces.dtype != torch.float32:
                raise ConfigurationError(
                    f"task {name!r}: pieces() returned {pieces.dtype} of shape {tuple(pieces.shape)}; return "
                    f"torch.float32 of shape {expected}, (samples, pieces, *piece_shape)"
                )

    def _set_groups(self, groups: dict[str, np.ndarray]) -> None:
        self.groups = groups
        self._members = {name: group_members(each, self.config.num_groups) for name, each in groups.items()}


@default_torch_state()
def read_trunk(path: str | Path, config: Config, tasks: Mapping[str, Task]) -> dict[str, torch.Tensor]:
    """Read the trunk of a saved run, of whatever task, and check that it fits.

    Args:
        path: Checkpoint of the run.
        config: Numbers of the run that is to start from it.
        tasks: What that run shuffles.

    Returns:
        The averaged weights if there are any, else the live ones, with batch statistics.

    Raises:
        CheckpointError: If the file is damaged or holds no run, its trunk is another one, or is not finite.
    """
    saved = read_run(path)["run"]
    like = Trainer(config, {}, _piece_shape(tasks), torch.device("cpu"), 0)  # without heads, for the trunk alone
    ours = config.as_dict()["backbone"]
    with checkpoint.naming(path):
        trunk = trunk_weights(saved)
        theirs = saved["identity"].get("backbone")
        if theirs != ours:
            raise CheckpointError(
                f"its trunk is backbone={shown(theirs)}, this run's backbone={ours!r}: use the checkpoint's backbone"
            )
        like.trunk_schema().check(trunk, "run/trainer/trunk")
        if not all(value.isfinite().all() for value in trunk.values()):
            raise CheckpointError("its trunk is not finite, its run diverged: use an earlier checkpoint")
    return trunk


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ConfigurationError(f"seed={seed!r}: must be an integer of at least 0")
    return int(seed)


def _new_trainer(config: Config, tasks: Mapping[str, Task], device: torch.device, seed: int, ranks: Ranks) -> Trainer:
    return Trainer(config, {name: task.head for name, task in tasks.items()}, _piece_shape(tasks), device, seed, ranks)


def _piece_shape(tasks: Mapping[str, Task]) -> tuple[int, ...]:
    return next(iter(tasks.values())).piece_shape
