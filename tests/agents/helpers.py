"""What the tests of the agents share: bandits that behave like the environment, builders of all agents, comparisons."""

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import (
    DifficultyProportional,
    EasiestFirst,
    Exp3,
    FixedGroup,
    GroupAgent,
    HardestFirst,
    InversePolicy,
    Lookahead,
    RandomPolicy,
    Reinforce,
    Transition,
    Ucb,
    UniformGroups,
)

FRACTIONS = np.array([0.1, 0.2, 0.0, 0.3, 0.4])  # group 2 is empty
JOINT_FRACTIONS = np.stack([FRACTIONS, [0.25, 0.25, 0.3, 0.0, 0.2]])  # of the second task, group 3 is
GROUPS = len(FRACTIONS)
TASKS = ("spatial", "temporal")
BEST = {"early": 0, "late": 3}  # the bandit's best group in either context
OTHER_BEST = {"early": 4, "late": 1}  # that of the joint bandit's second task


def spaces_of(*tasks: int) -> tuple[gym.spaces.Box, gym.Space]:
    """Return the observation and the action space of a single task, or of a joint task with that many tasks."""
    low, high = (np.broadcast_to(np.float32(bound), (*tasks, GROUPS, 2)) for bound in ([0, 0.5], [1, 2]))
    action_space = gym.spaces.MultiDiscrete([GROUPS] * tasks[0]) if tasks else gym.spaces.Discrete(GROUPS)
    return gym.spaces.Box(low, high), action_space


SINGLE, JOINT = spaces_of(), spaces_of(2)


# Environments


class Target(gym.Env):
    """Steps with a target that the observation tells; the reward falls with the action's squared distance from it.

    The free step of an update comes first. Its action sets half of what the update's action is worth.
    """

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, targets: dict[float, float], steps: int = 1, noise: float = 0.1):
        self.targets, self.num_steps, self.noise = targets, steps, noise

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.earlier = 0, 0.0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        last = self.steps == self.num_steps
        distance = float(np.clip(action, -1, 1)[0]) - self.targets[self.context]
        self.earlier -= distance**2
        reward = 0.01 * (self.earlier + self.noise * self.np_random.normal()) if last else 0.0
        info = {"validated": True, "phase": "update" if last else "free", "error": -self.earlier}
        return self.observe(), reward, False, last, info

    def observe(self) -> np.ndarray:
        self.context = float(self.np_random.choice(list(self.targets)))
        return np.array([self.context, 0.3], np.float32)


BANDIT = {0.0: 0.4}
CONTEXTS = {0.9: 0.5, 1.1: -0.5}


class Bandit(gym.Env):
    """A contextual bandit with the environment's interface: free steps, then K credited ones with one reward."""

    observation_space, action_space = SINGLE
    free_steps, update_steps, num_updates = 3, 8, 6
    config = SimpleNamespace(total_updates=num_updates)

    def __init__(self, fractions: np.ndarray = FRACTIONS, best: dict[str, int] = BEST):
        self.fractions, self.best = fractions, best

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.hits, self.error = 0, 0, 1.0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        period = self.free_steps + self.update_steps
        phase = "free" if self.steps % period < self.free_steps else "update"
        self.steps += 1
        validated = self.steps % period in (0, self.free_steps)
        self.hits += phase == "update" and action == self.best[self.context]
        reward = 0.0
        if validated and phase == "update":
            reward = 0.01 * (self.hits / self.update_steps + 0.1 * self.np_random.normal())
            self.hits = 0
            self.error = 0.5 - reward
        observation = self.observe() if validated else self.observation
        truncated = self.steps == period * self.num_updates
        return observation, reward, False, truncated, {"validated": validated, "phase": phase, "error": self.error}

    def fork(self) -> "Bandit":
        return copy.deepcopy(self)

    def observe(self) -> np.ndarray:
        """Draw the next context and return an observation that tells it."""
        self.context = "early" if self.np_random.random() < 0.5 else "late"
        median = {"early": 0.6, "late": 1.6}[self.context] + self.np_random.uniform(-0.1, 0.1, GROUPS)
        self.observation = np.stack([self.fractions, median], axis=1).astype(np.float32)
        return self.observation


class JointBandit(gym.Env):
    """Two bandits at once, each with its own groups, contexts and rewards."""

    observation_space, action_space = JOINT
    config = Bandit.config

    def __init__(self, best: dict[str, int] = BEST, other_best: dict[str, int] = OTHER_BEST):
        self.bandits = [Bandit(best=best), Bandit(JOINT_FRACTIONS[1], other_best)]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        for number, bandit in enumerate(self.bandits):
            bandit.reset(seed=None if seed is None else 1000 * seed + number)
        return np.stack([bandit.observation for bandit in self.bandits]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        steps = [bandit.step(group) for bandit, group in zip(self.bandits, action, strict=True)]
        observations, rewards, _, (truncated, _), (info, _) = zip(*steps, strict=True)
        info["task_rewards"] = dict(zip(TASKS, rewards, strict=True))
        info["error"] = float(np.mean([bandit.error for bandit in self.bandits]))
        return np.stack(observations), float(np.mean(rewards)), False, truncated, info

    def fork(self) -> "JointBandit":
        return copy.deepcopy(self)


def observe(seed: int = 0, fractions: np.ndarray = FRACTIONS) -> np.ndarray:
    """Return an observation with random medians."""
    median = np.random.default_rng(seed).uniform(0.5, 2, fractions.shape)
    return np.stack([fractions, median], axis=-1).astype(np.float32)


# Agents


def reinforce(seed: int = 0, spaces: tuple = SINGLE, **options: Any) -> Reinforce:
    return Reinforce(*spaces, seed=seed, **options)


def random_policy(seed: int = 0, spaces: tuple = SINGLE) -> RandomPolicy:
    return RandomPolicy(*spaces, seed=seed)


def inverse(seed: int = 0, spaces: tuple = SINGLE, **options: Any) -> InversePolicy:
    return InversePolicy(tilted(reinforce(seed, spaces)), seed=seed, **options)


def twice_inverse(seed: int = 0, spaces: tuple = SINGLE) -> InversePolicy:
    return InversePolicy(inverse(seed, spaces), seed=seed + 1)


def on_spaces(kind: type[GroupAgent], seed: int = 0, spaces: tuple = SINGLE, **options: Any) -> GroupAgent:
    return kind(*spaces, seed=seed, **options)


def lookahead(seed: int = 0, spaces: tuple = SINGLE) -> Lookahead:
    env = Bandit() if spaces is SINGLE else JointBandit()
    env.reset(seed=seed)
    return Lookahead(env, seed=seed)


BUILDERS = {
    "random": random_policy,
    "uniform": partial(on_spaces, UniformGroups),
    "fixed": partial(on_spaces, FixedGroup, group=1),
    "hardest-first": partial(on_spaces, HardestFirst, updates=10),
    "easiest-first": partial(on_spaces, EasiestFirst, updates=10),
    "difficulty-proportional": partial(on_spaces, DifficultyProportional),
    "exp3": partial(on_spaces, Exp3),
    "ucb": partial(on_spaces, Ucb),
    "lookahead": lookahead,
    "reinforce": reinforce,
    "reinforce-trace": partial(reinforce, discount=0.7, credit="sum"),
    "inverse": inverse,
    "inverse-learning": partial(inverse, policy_learns=True),
    "inverse-inverse": twice_inverse,
}
DRAWING = {name: build for name, build in BUILDERS.items() if name != "lookahead"}
"""Agents whose `act` draws from `probabilities`; Lookahead plays actions that it drew before."""


def for_single_and_joint(builders: dict[str, Any]) -> pytest.MarkDecorator:
    """Return the parametrisation over agents of a single task and of a joint task."""
    return pytest.mark.parametrize(
        "build",
        [
            pytest.param(partial(build, spaces=spaces), id=f"{kind}-{name}")
            for kind, spaces in (("single", SINGLE), ("joint", JOINT))
            for name, build in builders.items()
        ],
    )


each_agent = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
all_agents = for_single_and_joint(BUILDERS)


def fractions_of(agent: GroupAgent) -> np.ndarray:
    """Return the sizes of the groups in the agent's bandit."""
    return FRACTIONS if agent.num_tasks == 1 else JOINT_FRACTIONS


def tilted(agent: Reinforce, scale: float = 1.0) -> Reinforce:
    """Move the agent's last layer away from zero, and so its policy away from the prior."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in agent.network.last.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return agent


def run(agent: GroupAgent, seed: int, steps: int, env: gym.Env | None = None) -> list[Any]:
    """Return the actions of that many steps in the agent's bandit, in as many episodes as needed."""
    if isinstance(agent, Lookahead):
        env = agent.env
    env, actions = env or (Bandit() if agent.num_tasks == 1 else JointBandit()), []
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = agent.act(observation)
        next_observation, reward, terminated, truncated, info = env.step(action)
        agent.learn(Transition(observation, action, reward, next_observation, terminated, truncated, info))
        actions.append(np.asarray(action).tolist())
        observation = env.reset()[0] if truncated else next_observation
    return actions


def feed(agent: GroupAgent, action: int, reward: float = 0.0, **info: Any) -> dict[str, float]:
    """Let the agent learn from one step on a fixed observation; every task takes the action and gets the reward."""
    info = {"validated": False, "phase": "update", "terminated": False, "truncated": False, **info}
    terminated, truncated = info.pop("terminated"), info.pop("truncated")
    observation = observe(fractions=fractions_of(agent))
    if agent.num_tasks > 1:
        action, info = np.full(agent.num_tasks, action), {"task_rewards": dict.fromkeys(TASKS, reward), **info}
    return agent.learn(Transition(observation, action, reward, observation, terminated, truncated, info))


# Comparisons


def assert_equal_trees(first: Any, second: Any) -> None:
    """Compare nested dicts and lists of tensors, arrays and plain values; types and values must be equal."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_trees(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal_trees(one, other)
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        assert np.array_equal(first, second)
    else:
        assert first == second
