"""The state of models of Stable-Baselines3: what it consists of, how it is saved and restored, and what they draw.

Stable-Baselines3 saves a model by pickling it, and what is unpickled can execute code. Here a state is a tree of
tensors and numbers, which `permenv.checkpoint` writes.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.save_util import recursive_getattr

from agents.base import Tree
from agents.networks import copies
from agents.randomness import OwnRandomness
from permenv import CheckpointError, ConfigurationError, checkpoint

_COUNTERS = (
    *("num_timesteps", "_n_updates", "_episode_num", "_n_calls"),
    *("exploration_rate", "_current_progress_remaining"),
)
_CONTENTS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")  # of a replay buffer


class Algorithm(BaseAlgorithm):
    """Base of the four algorithms: draws from its own random states, and is saved without pickling anything."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.randomness = OwnRandomness()
        super().__init__(*arguments, **options)
        if not self.verbose and self.tensorboard_log is None:
            self.set_logger(Logger(None, []))  # the default logger creates a folder in /tmp for each learn()

    def _setup_model(self) -> None:
        with self.randomness.in_use():
            super()._setup_model()  # type: ignore[safe-super] # of the algorithm, next in the MRO

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the model's own random states, its actions and its environment, see Stable-Baselines3."""
        with self.randomness.in_use():
            super().set_random_seed(seed)

    def learn(self, *arguments: Any, **options: Any) -> Any:
        """Learn, see Stable-Baselines3."""
        with self.randomness.in_use():
            return super().learn(*arguments, **options)  # type: ignore[safe-super]

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Choose actions, see Stable-Baselines3."""
        with self.randomness.in_use():
            return super().predict(*arguments, **options)

    def state_dict(self) -> Tree:
        """Return everything that changes: a tree of tensors and numbers that `permenv.checkpoint` writes.

        The tensors are not copied. Taken between a training step and the next action, it is complete; the steps since
        the last training step of PPO and A2C are not in it.
        """
        buffer: ReplayBuffer | None = getattr(self, "replay_buffer", None)
        return {
            "signature": self._signature(),
            "networks": {name: _tensors_of(each) for name, each in self._learned().items()},
            "counters": {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)},
            "replay_buffer": None if buffer is None else _contents(buffer),
            "random": self.randomness.state_dict(),
            "action_space": self.action_space.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where `state_dict` was taken, in a model that was made with the same arguments.

        The environment is reset before the first step.

        Raises:
            CheckpointError: If it is the state of another algorithm, of other sizes or of something else; the model is
                then to be thrown away.
        """
        buffer: ReplayBuffer | None = getattr(self, "replay_buffer", None)
        with _reading():
            self.load_networks(state)
            for name, value in state["counters"].items():
                if name not in _COUNTERS or type(value) is not type(getattr(self, name)):
                    raise ValueError(f"{name} = {value!r}")
                setattr(self, name, value)
            if buffer is not None:
                _fill(buffer, state["replay_buffer"])
            self.randomness.load_state_dict(state["random"])
            self.action_space.np_random.bit_generator.state = state["action_space"]
        self._last_obs = None  # so that learn() resets the environment

    def load_networks(self, state: Tree) -> None:
        """Continue with the networks and optimisers of a state, and nothing else of it.

        Raises:
            CheckpointError: See `load_state_dict`.
        """
        with _reading():
            theirs = state["signature"]
            if theirs["algorithm"] != self._signature()["algorithm"]:
                raise CheckpointError(
                    f"it is a model of {theirs['algorithm']}, not of {self._signature()['algorithm']}: choose the "
                    f"algorithm that it was saved with"
                )
            if theirs != self._signature():
                raise ValueError(f"it has {theirs}, this model {self._signature()}")
            for name, each in self._learned().items():
                _load_tensors(each, state["networks"][name])

    def save(self, path: str | Path) -> None:  # type: ignore[override]  # all is saved
        """Write the state to one safetensors file, atomically; see `load_model`."""
        checkpoint.write(path, {"agent": self.state_dict()})

    @classmethod
    def load(cls, *arguments: Any, **options: Any) -> Any:
        """Refuse: Stable-Baselines3 unpickles what it loads, which can execute code."""
        raise ConfigurationError(f"{cls.__name__}.load unpickles: load what save() wrote with agents.sb3.load_model")

    def _learned(self) -> dict[str, Any]:
        """Return the networks, the optimisers and the learned numbers by their names."""
        modules, variables = self._get_torch_save_params()
        return {name: recursive_getattr(self, name) for name in (*modules, *variables)}

    def _signature(self) -> Tree:
        """Return what must be equal for one model to continue from the state of another."""
        return {
            "algorithm": type(self).__name__.lower(),
            "observations": list(self.observation_space.shape or ()),
            "actions": str(self.action_space),
        }


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn what any wrong content raises into a `CheckpointError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"it is a model of other sizes or of another version: make this model with the same arguments "
            f"({' '.join(str(error).split())})"
        ) from error


def _tensors_of(learned: Any) -> Tree:
    """Return the tensors of a network, of an optimiser by the number of the parameter, or of a learned number."""
    if isinstance(learned, torch.optim.Optimizer):
        return {str(number): values for number, values in learned.state_dict()["state"].items()}
    return {"value": learned} if isinstance(learned, torch.Tensor) else dict(learned.state_dict())


def _load_tensors(learned: Any, tensors: Tree) -> None:
    """Load what `_tensors_of` returned.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RuntimeError: If it does not fit.
    """
    if isinstance(learned, torch.optim.Optimizer):
        groups = learned.state_dict()["param_groups"]
        parameters = [parameter for group in learned.param_groups for parameter in group["params"]]
        for number, values in tensors.items():
            if any(value.shape not in ((), parameters[int(number)].shape) for value in values.values()):
                raise ValueError(f"the optimiser's values of parameter {number} have another shape")
        learned.load_state_dict(
            {"state": {int(number): copies(values) for number, values in tensors.items()}, "param_groups": groups}
        )
    elif isinstance(learned, torch.Tensor):
        with torch.no_grad():
            learned.copy_(tensors["value"].reshape(learned.shape))
    else:
        learned.load_state_dict(tensors)


def _contents(buffer: ReplayBuffer) -> Tree:
    """Return the transitions of a replay buffer."""
    arrays = {name: getattr(buffer, name)[: buffer.size()] for name in _CONTENTS}
    return {"position": buffer.pos, "full": buffer.full, **arrays}


def _fill(buffer: ReplayBuffer, contents: Tree) -> None:
    """Load what `_contents` returned; of a longer or shorter buffer the latest transitions, the oldest first.

    Raises:
        ValueError, TypeError, KeyError: If it does not fit.
    """
    position, full = contents["position"], contents["full"]
    count, size = len(contents["rewards"]), buffer.buffer_size
    if not (0 <= position < count if full else position == count):
        raise ValueError(f"position {position} among {count} transitions")
    for name in _CONTENTS:
        array, given = getattr(buffer, name), contents[name]
        if given.shape != (count, *array.shape[1:]) or given.dtype != array.dtype:
            raise ValueError(
                f"{name} of the replay buffer: {given.dtype} {given.shape}, not {array.dtype} {array.shape}"
            )
        if count != size:
            given = np.roll(given, -position if full else 0, axis=0)[-size:]
        array[: len(given)] = given
    if count != size:
        position, full = min(count, size) % size, count > size
    buffer.pos, buffer.full = position, full


class AfterUpdates(BaseCallback):
    """Calls a function where a model has learned and has not acted since; stops where a run has diverged.

    There the state of the model is complete, so a run that is saved there continues to the same numbers.

    Args:
        function: What to call: before each rollout, and at the end.
    """

    def __init__(self, function: Callable[[], None]):
        super().__init__()
        self._function = function

    def _on_rollout_start(self) -> None:
        self._function()

    def _on_training_end(self) -> None:
        self._function()

    def _on_step(self) -> bool:
        return not self.locals["infos"][0].get("diverged", False)
