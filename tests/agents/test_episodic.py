"""What agents that learn from whole episodes share: they can begin with another policy."""

import gymnasium as gym
import numpy as np
import pytest

from agents import GaussianReinforce, Pgpe, Trajectory
from tests.agents.helpers import assert_equal_trees

OBSERVATIONS = gym.spaces.Box(-10, 10, (3,), np.float32)
ACTIONS = gym.spaces.Box(-1, 1, (2,), np.float32)
KINDS = pytest.mark.parametrize("kind", [GaussianReinforce, Pgpe])


def make(kind, hidden=0, **options):
    return kind(OBSERVATIONS, ACTIONS, **{"seed": 0, "hidden": hidden, **options})


def episode(policy, seed, steps=6):
    observations = np.random.default_rng(seed).normal(2, [1, 3, 0.1], size=(steps, 3))
    return Trajectory(observations, np.array([policy(each) for each in observations]), np.zeros(steps))


def linear(observation):
    first, second, third = observation
    return np.array([0.5 - 2 * first + 10 * third, second / 4])


@KINDS
def test_a_linear_policy_is_imitated_exactly(kind):
    agent = make(kind)
    agent.imitate([episode(linear, seed) for seed in range(3)])
    for each in episode(linear, seed=9).observations:
        np.testing.assert_allclose(agent.mean(each), linear(each), atol=1e-9)


@KINDS
def test_any_other_policy_is_imitated_with_the_least_squared_distance(kind):
    agent, episodes = make(kind, hidden=4), [episode(lambda seen: np.sin(seen[:2]), seed) for seed in range(3)]
    agent.imitate(episodes)

    def distance(agent):
        return sum(
            ((agent.mean(observation) - action) ** 2).sum()
            for each in episodes
            for observation, action in zip(each.observations, each.actions, strict=True)
        )

    found, state = distance(agent), agent.state_dict()
    for name in ("last.weight", "last.bias"):
        for change in (-0.01, 0.01):
            other = make(kind, hidden=4)
            other.load_state_dict(state)
            dict(other.network.named_parameters())[name].data[0] += change
            assert distance(other) > found


@KINDS
def test_an_agent_that_has_imitated_is_saved_and_learns(kind, tmp_path):
    agent = make(kind)
    agent.imitate([episode(linear, 0)])
    agent.save(tmp_path / "agent.safetensors")
    restored = make(kind)
    restored.load(tmp_path / "agent.safetensors")
    assert_equal_trees(restored.state_dict(), agent.state_dict())
    before = agent.mean(np.ones(3))
    agent.update([_played(agent, seed) for seed in range(2)])
    assert not np.array_equal(agent.mean(np.ones(3)), before)


def _played(agent, seed):
    agent.reseed(seed)
    observations = np.random.default_rng(0).normal(size=(4, 3))
    steps = [(each, agent.act(each).astype(np.float64), float(seed + step)) for step, each in enumerate(observations)]
    return agent.trajectory(steps)


@KINDS
def test_imitation_is_refused_after_learning_and_without_episodes(kind):
    agent = make(kind)
    with pytest.raises(ValueError, match="no episodes"):
        agent.imitate([])
    agent.imitate([episode(linear, 0)])
    with pytest.raises(ValueError, match="learned or imitated already"):
        agent.imitate([episode(linear, 0)])
