"""What agents that learn from whole episodes share: their policy's network, the episodes, and how these are played."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from agents.base import Agent, Transition, Tree, require
from agents.networks import (
    EPSILON,
    RunningScale,
    adam_schema,
    adam_state,
    copies,
    has_stepped,
    load_adam_state,
    policy_network,
    tensors_schema,
)
from agents.rollout import rollout
from permenv.schema import Schema

Step = tuple[np.ndarray, np.ndarray, float]  # observation, action, reward


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What an agent that learns across runs learns from: one episode of S >= 1 steps.

    Attributes:
        observations: (S, ...) float64, those acted on.
        actions: (S, ...) float64, as drawn: not clipped.
        rewards: (S,) float64.
        perturbation: (n,) float64, what the agent added to its n parameters in this episode (`Pgpe`); else empty.

    Raises:
        ValueError: If it has no steps, the lengths differ, or a number is not finite.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    perturbation: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        arrays = {"observations": self.observations, "actions": self.actions, "rewards": self.rewards}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or not len(self.rewards):
            raise ValueError(f"A trajectory has {lengths}. Give one of each for every step, of one step at least.")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"The {name} {array.tolist()} must be finite. End the run when the network diverges.")

    @classmethod
    def of(cls, steps: Sequence[Step], perturbation: np.ndarray | None = None) -> "Trajectory":
        """Stack the steps of an episode."""
        observations, actions, rewards = zip(*steps, strict=True)
        more = {} if perturbation is None else {"perturbation": perturbation.copy()}
        return cls(np.stack(observations), np.stack(actions), np.array(rewards, dtype=np.float64), **more)


class EpisodicAgent(Agent):
    """An agent that learns from whole episodes: a policy that is learned across runs and then frozen.

    The mean of its actions is a network of the observation, flattened and standardised, whose outputs are all 0 at
    first. Actions are not clipped here; the wrappers clip. All computation is in float64.

    An observation is standardised entry by entry with the mean and the deviation of all observations so far, and
    clipped to ±5 deviations. An entry that never varied is 0. Mean and deviation change only in `update`, before its
    gradient step: a frozen policy uses stored numbers, however many processes it acts in. (Each change also moves the
    policy a little after its actions were drawn, the less the more observations there have been.)

    It can begin with the actions of a policy that is known to be good (`imitate`), and improve on them.

    A subclass defines how it explores (`act`, `reseed`) and learns (`update`).

    Args:
        observation_space: Box, of any shape.
        action_space: Box of floats, of any shape. Its bounds are not used.
        seed: Seeds the weights of the first layer and the actions, >= 0.
        hidden: Units of the hidden layer, with tanh; 0 for means that are linear in the standardised observation.
        learning_rate: Adam's, > 0.
        discount: γ per step, in [0, 1].

    Attributes:
        deterministic: Whether `act` leaves the noise out, for evaluation. False at first; it may be changed at any time
            and is not part of the state.

    Raises:
        ValueError: If a space is not supported or an option is out of its range.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        seed: int,
        hidden: int,
        learning_rate: float,
        discount: float,
    ) -> None:
        boxes = self._box(observation_space, "observation"), self._box(action_space, "action")
        require("hidden", hidden, hidden >= 0, "at least 0")
        require("learning_rate", learning_rate, learning_rate > 0, "above 0")
        require("discount", discount, 0 <= discount <= 1, "in [0, 1]")
        super().__init__(observation_space, action_space, seed=seed)
        self.hidden = hidden
        self.discount = discount
        self.deterministic = False
        self._observation_box, self._action_box = boxes
        inputs, outputs = (math.prod(box.shape) for box in boxes)
        self.network = policy_network(inputs, hidden, outputs, seed)
        self._parameters = {**dict(self.network.named_parameters()), **self._more_parameters(outputs)}
        self._scale = RunningScale(inputs)
        self._adam = torch.optim.Adam(self._parameters.values(), lr=learning_rate, eps=EPSILON)

    def _more_parameters(self, outputs: int) -> dict[str, nn.Parameter]:
        """Return what is learned besides the network, by name."""
        return {}

    @abstractmethod
    def reseed(self, seed: int) -> int:
        """Begin the episode of this seed: draw from now on what it draws, whatever was drawn before.

        Args:
            seed: >= 0.

        Returns:
            The seed with which the environment is to be reset. Its generator draws other numbers than the agent's.
        """

    @abstractmethod
    def update(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Improve the policy by one step of Adam, and return metrics to log.

        Raises:
            ValueError: If the episodes are not those of this policy.
        """

    def imitate(self, episodes: Sequence[Trajectory]) -> None:
        """Begin with the policy that played these episodes, before the first update.

        The mean and the deviation by which observations are standardised are those of the episodes. The weights of the
        network's last layer are those with which its outputs have the least squared distance to the actions, and of
        these the smallest.

        Args:
            episodes: At least one. Their actions may be outside the bounds, to which the wrappers clip: a rule that
                is linear until it reaches a bound, such as a growing pool, is then imitated exactly.

        Raises:
            ValueError: If there is no episode, their observations or actions have another shape, or this agent has
                learned or imitated already.
        """
        if self._version:
            raise ValueError(f"{type(self).__name__} has learned or imitated already. Imitate before the first update.")
        observations, actions = self._check(episodes)
        self._scale.add(observations)
        last = self.network.last
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            features = self.network[:-1](torch.as_tensor(self._scale(observations))).numpy()  # [steps, features]
            ones = np.ones((len(features), 1))
            solution = np.linalg.lstsq(np.hstack([features, ones]), actions, rcond=None)[0]  # [features + 1, entries]
            last.weight.copy_(torch.as_tensor(solution[:-1].T))
            last.bias.copy_(torch.as_tensor(solution[-1]))
        self._version += 1

    def mean(self, observation: np.ndarray) -> np.ndarray:
        """Return the mean action.

        Args:
            observation: Of the shape of the observation space.

        Returns:
            float64, of the shape of the action space; it may be outside its bounds.

        Raises:
            ValueError: If the observation has another shape or is not finite.
        """
        return self._mean_of(self.network, observation)

    def trajectory(self, steps: Sequence[Step]) -> Trajectory:
        """Return the episode that this agent has just played, from its steps."""
        return Trajectory.of(steps)

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        return {
            **super().state_dict(),
            "parameters": copies(self._parameters),
            "adam": adam_state(self._adam, self._parameters),
            "scale": self._scale.state_dict(),
        }

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {
            **super().state_schema(),
            "parameters": tensors_schema(self._parameters),
            "adam": adam_schema(self._parameters),
            "scale": self._scale.state_schema(),
        }

    def state_conditions(self) -> dict[str, Callable[[Tree], bool]]:
        """Return what the parts of the state do together, see `Agent.state_conditions`."""
        return {
            "have seen observations if Adam has taken a step": lambda state: (
                state["scale"]["count"] > 0 or not has_stepped(state["adam"])
            )
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state["parameters"][name])
        load_adam_state(self._adam, self._parameters, state["adam"])
        self._scale.load_state_dict(state["scale"])

    def _signature(self) -> Tree:
        shapes = {"observation": list(self._observation_box.shape), "action": list(self._action_box.shape)}
        return {**super()._signature(), **shapes, "hidden": self.hidden}

    def _mean_of(self, network: nn.Module, observation: np.ndarray) -> np.ndarray:
        """Check an observation and return the mean action of a network; see `mean`."""
        observation = self._as_numbers(observation)
        if not np.isfinite(observation).all():
            raise ValueError(
                f"Nothing in an observation may be NaN or infinite, got {observation.tolist()}. "
                "Pass the environment's observation as it is."
            )
        with torch.no_grad():
            means = network(torch.as_tensor(self._scale(observation.reshape(1, -1))))
        return means.numpy().reshape(self._action_box.shape)

    def _check(self, episodes: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray]:
        """Return the observations and the actions of all episodes, [steps, entries] each."""
        if not episodes:
            raise ValueError("There are no episodes to learn from. Give at least one.")
        return (
            _flat(self._observation_box, [episode.observations for episode in episodes]),
            _flat(self._action_box, [episode.actions for episode in episodes]),
        )

    @classmethod
    def _box(cls, space: gym.Space, role: str) -> gym.spaces.Box:
        if not isinstance(space, gym.spaces.Box) or space.dtype.kind != "f":
            raise ValueError(
                f"The {role} space is {space}, {cls.__name__} needs a Box of floats. Put a wrapper over the "
                "environment: for the actions permenv.wrappers.PoolAction or MixtureAction, for the observations any "
                "that returns a Box."
            )
        return space


def collect(env: gym.Env[Any, Any], agent: EpisodicAgent, seed: int) -> Trajectory:
    """Play one episode, without learning from it.

    Args:
        env: The environment.
        agent: Acts; it is reseeded, and otherwise unchanged.
        seed: Of the episode, >= 0: what the agent draws, and with which seed the environment is reset (see `reseed`).
            Together with the policy it determines the episode.

    Returns:
        The episode, for the agent's `update`.
    """
    steps: list[Step] = []
    run = agent.reseed(seed)
    rollout(env, agent, seed=run, learn=False, on_step=lambda transition: steps.append(step_of(transition)))
    return agent.trajectory(steps)


def step_of(transition: Transition) -> Step:
    """Return what a trajectory keeps of a transition."""
    observation, action = (np.array(each, dtype=np.float64) for each in (transition.observation, transition.action))
    return observation, action, float(transition.reward)


def _flat(space: gym.spaces.Box, episodes: Sequence[np.ndarray]) -> np.ndarray:
    """Stack the observations or the actions of all episodes, [steps, entries]."""
    for array in episodes:
        if array.shape[1:] != space.shape:
            raise ValueError(
                f"The steps of a trajectory have shape {array.shape[1:]}, this agent was built for {space}. "
                "Collect it in the agent's environment."
            )
    return np.concatenate([array.reshape(len(array), -1) for array in episodes])
