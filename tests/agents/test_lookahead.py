"""One-step lookahead on small environments: its plans are exact, and planning does not change the environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import Lookahead, rollout
from tests.agents.helpers import assert_equal_trees
from tests.helpers import global_states

SHARE = 0.5


def small_trunk() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.BatchNorm2d(8), torch.nn.ReLU())


TINY = {
    "backbone": small_trunk,
    "cell_size": 36,
    "piece_size": 32,
    "num_groups": 3,
    "num_permutations": 12,
    "num_validation": 10,
    "batch_size": 4,
    "iterations_per_update": 1,
    "ema_decay": 0.0,  # otherwise the errors of the candidates hardly differ after so few iterations
}
single_and_joint = pytest.mark.parametrize("task", ["spatial", "spatiotemporal"])


@pytest.fixture
def make(make_env):
    """Return a function that makes a tiny environment after a reset, an agent for it and the first observation."""

    def begin(seed: int = 0, agent_seed: int = 0, **overrides: Any) -> tuple[gym.Env, Lookahead, np.ndarray]:
        env = make_env(**{**TINY, **overrides})
        observation, _ = env.reset(seed=seed)
        return env, Lookahead(env, seed=agent_seed, share=SHARE), observation

    return begin


class Forkable(gym.Env):
    """An update of eight steps, whose error is `score` of how often each group was chosen.

    Choosing the group `deadly` three times terminates the run; the error 0 in its info must then be ignored.
    """

    action_space = gym.spaces.Discrete(3)
    observation_space = gym.spaces.Box(np.float32([[0, 0.5]] * 3), np.float32([[1, 2]] * 3))
    observation = np.float32([[0.3, 0.7], [0.3, 1.0], [0.4, 1.5]])

    def __init__(self, score: Any, deadly: int | None = None):
        self.score, self.deadly = score, deadly
        self.actions: list[int] = []

    def fork(self) -> "Forkable":
        twin = Forkable(self.score, self.deadly)
        twin.actions = list(self.actions)
        return twin

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        dead = self.actions.count(self.deadly) >= 3
        done = len(self.actions) == 8
        error = 0.0 if dead else self.score(np.bincount(self.actions, minlength=3)) if done else 0.5
        return self.observation, 0.0, dead, False, {"phase": "update", "validated": done and not dead, "error": error}


def play(env: gym.Env, agent: Lookahead, observation: np.ndarray, updates: int = 1) -> tuple[np.ndarray, list, dict]:
    """Play some updates, or to the end of the run; return the last observation, the actions and the last info."""
    actions = []
    last = rollout(
        env,
        agent,
        observation=observation,
        updates=updates,
        on_step=lambda transition: actions.append(np.asarray(transition.action).tolist()),
    )
    return last.next_observation, actions, last.info


def slow_candidate(env: gym.Env, observation: np.ndarray, task: int, group: int | None, seed: int) -> float:
    """Return the error at the end of the update under one candidate, drawn as `Agent.act` draws."""
    fork, generator = env.unwrapped.fork(), np.random.default_rng(seed)
    while True:
        chances = observation[..., 0].astype(np.float64).reshape(-1, observation.shape[-2])
        chances /= chances.sum(axis=1, keepdims=True)
        if group is not None:
            full = np.flatnonzero(chances[task])
            preferred = group if group in full else full[-1]
            chances[task] = (1 - SHARE) * chances[task] + SHARE * (np.arange(chances.shape[1]) == preferred)
        action = [
            next(i for i, total in enumerate(np.cumsum(row) / np.cumsum(row)[-1]) if total > number)
            for row, number in zip(chances, generator.random(len(chances)), strict=True)
        ]
        observation, _, terminated, _, info = fork.step(np.array(action) if len(action) > 1 else action[0])
        if terminated:
            return 1.0
        if info["validated"] and info["phase"] == "update":
            return info["error"]


@single_and_joint
@pytest.mark.parametrize("free_iterations", [0, 1])
def test_the_errors_of_the_candidates_are_exact_and_the_best_one_is_played(make, task, free_iterations):
    env, agent, observation = make(task=task, free_iterations=free_iterations)
    start, words = env.unwrapped.fork(), np.random.default_rng(0)  # the agent's seed
    fractions = observation[..., 0].reshape(-1, 3)
    candidates = [None, *((task, group) for task, row in enumerate(fractions) for group in range(3) if row[group])]
    expected = {
        candidate: slow_candidate(start, observation, *(candidate or (0, None)), int(words.integers(2**63)))
        for candidate in candidates
    }
    _, _, info = play(env, agent, observation)
    assert agent.errors == expected
    assert info["error"] == min(expected.values())
    assert all(info["error"] <= error for error in agent.errors.values())
    assert agent.gains[None] == 0
    assert max(agent.gains.values()) == expected[None] - info["error"]
    assert len(candidates) == len(fractions) * 3 + 1


def test_every_cycle_reaches_the_lowest_error_of_its_plan(make):
    env, agent, observation = make(iterations_per_update=2)
    best = set()
    for _ in range(4):
        observation, _, info = play(env, agent, observation)
        assert info["error"] == min(agent.errors.values())
        best.add(min(agent.errors, key=agent.errors.get))
    assert len(best) > 1


@single_and_joint
def test_planning_leaves_the_environment_unchanged(make, task):
    env, agent, observation = make(task=task)
    twin = env.unwrapped.fork()
    before, states = env.unwrapped.state_dict(), global_states()
    agent.probabilities(observation)
    assert global_states() == states
    assert_equal_trees(env.unwrapped.state_dict(), before)
    assert_equal_trees(twin.state_dict(), before)
    for _ in range(12):
        action = agent.act(observation)
        one, other = env.step(action), twin.step(action)
        assert np.array_equal(one[0], other[0])
        assert one[1:] == other[1:]
        observation = one[0]
    assert_equal_trees(env.unwrapped.state_dict(), twin.state_dict())


def test_probabilities_are_those_of_the_current_plan(make):
    env, agent, observation = make()
    seen = set()
    for _ in range(2):
        for _ in range(4):  # a free iteration of two actions, an update of two
            probabilities, version = agent.probabilities(observation), agent.version
            best = min(agent.errors, key=agent.errors.get)
            expected = observation[:, 0].astype(float)
            if best is not None:
                expected = (1 - SHARE) * expected + SHARE * np.eye(3)[best[1]]
            np.testing.assert_allclose(probabilities, expected, atol=1e-6)
            seen.add((version, observation.tobytes()))
            action = agent.act(observation)
            assert probabilities[action] > 0
            assert agent.version == version
            observation, *_ = env.step(action)
    assert len(seen) == 4  # two plans, each on ŝ before and after the free iteration
    assert len({version for version, _ in seen}) == 2


def test_the_random_policy_wins_a_tie():
    env = Forkable(score=lambda counts: 0.25)
    agent = Lookahead(env, seed=0)
    np.testing.assert_allclose(agent.probabilities(env.observation), env.observation[:, 0], rtol=1e-6)
    assert set(agent.errors.values()) == {0.25}


def test_it_is_tilted_towards_the_group_that_lowers_the_error():
    env = Forkable(score=lambda counts: 1 - counts[1] / 8)
    agent = Lookahead(env, seed=0)
    _, actions, info = play(env, agent, env.observation)
    assert min(agent.errors, key=agent.errors.get) == (0, 1)
    assert info["error"] == agent.errors[0, 1] == 1 - actions.count(1) / 8
    assert agent.gains[0, 1] == agent.errors[None] - agent.errors[0, 1] > 0


# Divergence and the end


def test_a_fork_that_diverges_counts_as_an_error_of_1():
    env = Forkable(
        score=lambda counts: 0.99 - counts[2] / 100, deadly=2
    )  # the deadly group has low errors until it terminates the run
    agent = Lookahead(env, seed=2)
    _, actions, info = play(env, agent, env.observation)
    assert agent.errors[0, 2] == 1.0
    assert info["error"] == min(agent.errors.values()) < 1
    assert len(actions) == 8


def test_if_every_candidate_diverges_the_first_is_played_to_the_end(make):
    env, agent, observation = make(learning_rate=1e30, iterations_per_update=4)
    _, _, info = play(env, agent, observation)
    assert info["diverged"]
    assert set(agent.errors.values()) == {1.0}
    assert agent.state_dict()["plan"] == []
    assert agent.state_dict()["tilt"] is None


def test_the_plan_is_dropped_at_the_end_of_the_run(make):
    env, agent, observation = make(total_updates=1)
    observation, _, info = play(env, agent, observation, updates=5)
    assert info["update"] == 1
    assert info["error"] == min(agent.errors.values())
    assert agent.state_dict()["plan"] == []
    with pytest.raises(gym.error.ResetNeeded):
        agent.act(observation)
    observation, _ = env.reset(seed=1)
    _, _, info = play(env, agent, observation)
    assert info["error"] == min(agent.errors.values())


# In the middle of a cycle


@single_and_joint
def test_agent_and_environment_restored_in_the_middle_of_a_plan_continue_bit_for_bit(make, task, tmp_path):
    env, agent, observation = make(task=task)
    restored_env, restored, _ = make(task=task, seed=5, agent_seed=9)
    for _ in range(3):  # into the update, after the free iteration
        observation, *_ = env.step(agent.act(observation))
    env.unwrapped.save(tmp_path / "env")
    agent.save(tmp_path / "agent")
    lowest = min(agent.errors.values())
    again, _ = restored_env.reset(options={"checkpoint": tmp_path / "env"})
    restored.load(tmp_path / "agent")
    assert np.array_equal(restored.probabilities(again), agent.probabilities(observation))
    assert restored.errors == {}  # it did not make a new plan
    assert_equal_trees(restored.state_dict(), agent.state_dict())
    _, actions, info = play(env, agent, observation, updates=2)
    _, same_actions, same_info = play(restored_env, restored, again, updates=2)
    assert same_actions == actions
    assert same_info == info
    assert_equal_trees(restored.state_dict(), agent.state_dict())
    assert env.unwrapped.records[2].errors == restored_env.unwrapped.records[2].errors
    assert np.mean(list(env.unwrapped.records[2].errors.values())) == lowest


@pytest.mark.parametrize("steps", [1, 3])
def test_without_a_plan_in_the_middle_of_a_cycle_it_plans_from_there(make, steps, tmp_path):
    env, agent, observation = make()
    for _ in range(steps):
        observation, *_ = env.step(agent.act(observation))
    env.unwrapped.save(tmp_path / "env")
    other_env, other, _ = make(seed=5, agent_seed=9)
    observation, _ = other_env.reset(options={"checkpoint": tmp_path / "env"})
    _, actions, info = play(other_env, other, observation)
    assert len(actions) == 4 - steps
    assert info["error"] == min(other.errors.values())


def test_a_reset_ends_the_plan(make):
    env, agent, observation = make()
    env.step(agent.act(observation))
    planned, version = dict(agent.errors), agent.version
    observation, _ = env.reset(seed=7)
    _, actions, info = play(env, agent, observation)
    assert (len(actions), agent.version) == (4, version + 1)
    assert info["error"] == min(agent.errors.values())
    assert agent.errors != planned


def test_actions_of_others_end_the_plan_at_the_next_validation(make):
    env, agent, observation = make()
    agent.act(observation)
    for action in (2, 2):  # the free iteration, with actions that the agent did not choose
        observation, *_ = env.step(action)
    version = agent.version
    _, actions, info = play(env, agent, observation)
    assert (len(actions), agent.version) == (2, version + 1)
    assert info["error"] == min(agent.errors.values())


# Errors


def test_an_environment_that_cannot_fork_is_refused():
    env = gym.Env()
    env.observation_space, env.action_space = Forkable.observation_space, Forkable.action_space
    with pytest.raises(ValueError, match=r"has no fork\(\).*PermShuffle-v0"):
        Lookahead(env, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"share is {share}, it must be"):
        Lookahead(Forkable(score=len), seed=0, share=share)
