"""The base class of all agents, and the transitions they learn from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from permenv import checkpoint
from permenv.checkpoint import CheckpointError
from permenv.schema import Anything, Fields, GeneratorState, Schema, Where, equal, shown

Action = int | np.ndarray  # a group; joint task: (T,), one group per task; or what another action space holds
Tree = dict[str, Any]  # nested dicts and lists of tensors, arrays and JSON-able values


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of the environment, from which an agent learns.

    The attributes are described for the bare environment; under wrappers, observation, action and reward are those of
    the wrappers.

    Attributes:
        observation: ŝ on which the action was taken.
        action: The chosen group; joint task: (T,), one group per task.
        reward: r_t if the step ended an update, else 0; joint task: the mean over the tasks.
        next_observation: ŝ after the step.
        terminated: Whether the run ended early because the network diverged, or under `permenv.wrappers.FiniteHorizon`
            because all its updates are done.
        truncated: Whether the run ended because all its updates are done.
        info: At least "validated" (bool), whether the step ended with a validation, and "phase": "update" if the
            action belongs to an update and is credited with its reward, "free" if it belongs to the free iterations
            and is not. Joint task: also "task_rewards", r_t of each task by its name, in the order of the
            observation's rows.
    """

    observation: np.ndarray
    action: Action
    reward: SupportsFloat
    next_observation: np.ndarray
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


class Agent(ABC):
    """Acts on what it observes, and may learn from the consequences.

    `agents.rollout` runs an agent in an environment: it alternates `act`, `env.step` and `learn`.

    An agent draws from its own generators and leaves the global random states unchanged.

    A subclass that changes while it acts or learns adds what changes to `state_dict` and `load_state_dict`, which call
    those of its base class. Otherwise a run that is resumed goes on with an agent that has learned nothing.

    Args:
        observation_space: Of the observations it acts on.
        action_space: Of its actions.
        seed: Seeds everything the agent draws, >= 0.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, *, seed: int) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._generator = np.random.default_rng(seed)
        self._version = 0

    @abstractmethod
    def act(self, observation: np.ndarray) -> Action:
        """Choose an action.

        Args:
            observation: In `observation_space`: of the environment itself ŝ, (|C|, 2) float32; joint task (T, |C|, 2).

        Returns:
            In `action_space`: of the environment itself a group, an int in [0, |C|); joint task (T,) ints, one group
            per task. Under a wrapper whose actions are a Box, a float array of its shape.

        Raises:
            ValueError: If the observation is not in the observation space.
        """

    def learn(self, transition: Transition) -> dict[str, float]:
        """Learn from one step of the environment; the default does nothing.

        Args:
            transition: The step, whose observations and action have the shapes that `act` takes and returns. `rollout`
                passes every step once, in order, those of the free iterations included.

        Returns:
            Metrics to log by name if the policy was updated, else an empty dict.
        """
        return {}

    @property
    def version(self) -> int:
        """Number of changes of the policy; the same version and observation give the same distribution of actions."""
        return self._version

    def state_dict(self) -> Tree:
        """Return everything that changes, as copies: a nested dict of tensors, arrays and JSON-able values."""
        return {"signature": self._signature(), "generator": self._generator.bit_generator.state}

    def state_schema(self) -> dict[str, Schema]:
        """Return what `state_dict` holds, by key; a subclass adds the keys that it adds there.

        A key that a subclass does not declare here must be there, but may hold anything.
        """
        names = (type(self._generator.bit_generator).__name__,)
        return {"signature": _Signature(self._signature()), "generator": GeneratorState(names)}

    def state_conditions(self) -> dict[str, Callable[[Tree], bool]]:
        """Return what the parts of a state must do together, in words that follow "must", and whether they do."""
        return {}

    def _whole_schema(self) -> Schema:
        undeclared = dict.fromkeys(self.state_dict(), Anything())
        return Where(Fields({**undeclared, **self.state_schema()}), self.state_conditions())

    def load_state_dict(self, state: Tree) -> None:
        """Continue exactly where `state_dict` was taken, given the same constructor arguments.

        Raises:
            CheckpointError: If the state belongs to another kind of agent or to other sizes, or is none at all; the
                message names what does not fit, and this agent is unchanged then.
        """
        self._whole_schema().check(state, "agent")
        self._generator.bit_generator.state = state["generator"]
        self._version += 1

    @classmethod
    def require_state(cls) -> None:
        """Refuse a class that says how it learns, but not what of it is saved.

        A class that overrides `learn`, or a `Learner`'s `update` or `_update`, is to override `state_dict` and
        `load_state_dict` as well, or a subclass of it is.

        Raises:
            ValueError: If the state is that of a class which does not know what was learned.
        """

        def depth(method: str) -> int:
            return next((level for level, kind in enumerate(cls.__mro__) if method in vars(kind)), len(cls.__mro__))

        for method in ("learn", "update", "_update"):
            if depth(method) < max(depth("state_dict"), depth("load_state_dict")):
                raise ValueError(
                    f"{cls.__mro__[depth(method)].__name__} has a {method} of its own, but not its own state_dict and "
                    f"load_state_dict: what it learns would be lost when a run is resumed. Define both; they call "
                    f"those of the base class and add what changes, if anything does."
                )

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file, atomically: an existing file is kept or replaced as a whole.

        Raises:
            OSError: If the file cannot be written; a file of that name is then as it was.
            TypeError, ValueError: If the `state_dict` of a subclass holds what is no tensor, array or JSON-able value,
                or a key that contains "/".
        """
        checkpoint.write(path, {"agent": self.state_dict()})

    def load(self, path: str | Path) -> None:
        """Load what `save` wrote.

        Raises:
            CheckpointError: If there is no such file, or it is damaged, contains no agent, or one of another kind or
                other sizes; this agent is unchanged then.
        """
        tree = checkpoint.read(path, "agent")
        with checkpoint.naming(path):
            self.load_state_dict(tree["agent"])

    def _signature(self) -> Tree:
        """Return what must be equal for one agent to continue from the state of another."""
        return {"agent": type(self).__name__}

    def _as_numbers(self, observation: np.ndarray) -> np.ndarray:
        """Check the shape of an observation and return it as float64."""
        observation = np.asarray(observation, dtype=np.float64)
        if observation.shape != self.observation_space.shape:
            raise ValueError(
                f"The observation has shape {observation.shape}, this agent was built for "
                f"{self.observation_space.shape}. Build the agent with the environment's own spaces."
            )
        return observation


@dataclass(frozen=True)
class _Signature(Schema):
    """What must be equal for one agent to continue from the state of another."""

    ours: Tree

    def check(self, value: Any, place: str) -> None:
        if not equal(value, self.ours):
            raise CheckpointError(
                f"A state of {shown(value)} does not fit an agent of {self.ours}. Build the agent as the saved one was "
                "built."
            )


def require(name: str, value: float | str, satisfied: bool, required: str) -> None:
    """Refuse an option that is out of its range.

    Raises:
        ValueError: If `satisfied` is False.
    """
    if not satisfied:
        raise ValueError(f"{name} is {value}, it must be {required}.")


def in_update(info: dict[str, Any]) -> bool:
    """Return whether the action of a step belongs to an update rather than to the free iterations before it.

    Raises:
        ValueError: If `info` lacks "phase" or "validated".
    """
    if info.get("phase") not in ("update", "free") or "validated" not in info:
        raise ValueError(
            f"info['phase'] must be 'update' or 'free' and info['validated'] given, got {info}. "
            "Pass the info that `env.step` returned."
        )
    return info["phase"] == "update"
