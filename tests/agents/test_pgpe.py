"""PGPE: its noise, the exact update, that it learns, its state and errors."""

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import Pgpe, Trajectory, collect
from permenv.wrappers import ErrorReduction, PoolAction, RunSummary
from tests.agents.helpers import BANDIT, CONTEXTS, Target, assert_equal_trees

OBSERVATIONS = gym.spaces.Box(-10, 10, (3,), np.float32)
ACTIONS = gym.spaces.Box(-1, 1, (2,), np.float32)
PARAMETERS = 3 * 2 + 2


def pgpe(spaces: tuple = (OBSERVATIONS, ACTIONS), **options: Any) -> Pgpe:
    return Pgpe(*spaces, **{"seed": 0, **options})


def on(env: gym.Env, **options: Any) -> Pgpe:
    return pgpe((env.observation_space, env.action_space), **options)


def episodes_of(agent: Pgpe, pairs: int, seed: int = 0, steps: int = 4) -> list[Trajectory]:
    """Return episodes of random numbers, with the noise that the agent draws for their seeds."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(2 * pairs):
        agent.reseed(number)
        step = [
            (generator.normal(size=3).astype(np.float32).astype(np.float64), generator.normal(size=2), own)
            for own in generator.normal(0.01, 0.1, steps).tolist()
        ]
        found.append(agent.trajectory(step))
    return found


# The noise


def test_a_pair_has_opposite_noise_in_the_same_run():
    agent = pgpe(deviation=0.7)
    assert [agent.reseed(seed) for seed in (6, 7, 8)] == [6, 6, 8]
    noise = [episode.perturbation for episode in episodes_of(agent, pairs=2000)]
    np.testing.assert_array_equal(noise[::2], np.negative(noise[1::2]))
    np.testing.assert_allclose(np.std(noise[::2], axis=0), 0.7, rtol=0.06)
    np.testing.assert_allclose(np.mean(noise[::2], axis=0), 0, atol=0.06)
    assert noise[0].shape == (PARAMETERS,)


def test_without_noise_every_seed_is_a_run_of_its_own():
    agent = pgpe()
    agent.deterministic = True
    assert [agent.reseed(seed) for seed in (6, 7, 8)] == [6, 7, 8]


def test_an_episode_that_is_played_without_noise_has_none_whatever_was_played_before():
    env, agent = Target(CONTEXTS), on(Target(CONTEXTS))
    assert collect(env, agent, seed=0).perturbation.any()
    agent.deterministic = True
    assert not collect(env, agent, seed=1).perturbation.any()


def test_an_episode_is_played_by_the_perturbed_policy_throughout():
    env, agent = Target(CONTEXTS, steps=5), on(Target(CONTEXTS))
    agent.update([collect(env, agent, seed) for seed in range(4)])
    before = agent.state_dict()["parameters"]
    episode = collect(env, agent, seed=8)
    perturbed = on(env)
    perturbed.load_state_dict(agent.state_dict())
    place = 0
    with torch.no_grad():
        for parameter in perturbed.network.parameters():
            noise = episode.perturbation[place : place + parameter.numel()]
            parameter += torch.as_tensor(noise).reshape(parameter.shape)
            place += parameter.numel()
    expected = [perturbed.mean(observation).astype(np.float32) for observation in episode.observations]
    np.testing.assert_array_equal(episode.actions, expected)
    assert_equal_trees(agent.state_dict()["parameters"], before)
    agent.deterministic = True
    np.testing.assert_array_equal(
        collect(env, agent, seed=8).actions[0], agent.mean(episode.observations[0]).astype(np.float32)
    )


# The update


@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_updates_equal_a_slow_reference(pairs, discount):
    agent = pgpe(discount=discount, deviation=0.3, learning_rate=0.05)
    expected = {name: value.requires_grad_() for name, value in agent.state_dict()["parameters"].items()}
    adam = torch.optim.Adam(expected.values(), lr=0.05)
    for seed in range(3):
        episodes = episodes_of(agent, pairs, seed)
        returns = [sum(discount**step * own for step, own in enumerate(each.rewards)) for each in episodes]
        halves = [(returns[2 * pair] - returns[2 * pair + 1]) / 2 for pair in range(pairs)]
        root_mean_square = math.sqrt(sum(half**2 for half in halves) / pairs) + 1e-8
        ascent = [
            sum(half / root_mean_square * episodes[2 * pair].perturbation[n] / 0.3 for pair, half in enumerate(halves))
            / pairs
            for n in range(PARAMETERS)
        ]
        metrics = agent.update(episodes)
        expected["last.weight"].grad = -torch.tensor(ascent[:6], dtype=torch.float64).reshape(2, 3)
        expected["last.bias"].grad = -torch.tensor(ascent[6:], dtype=torch.float64)
        adam.step()
        for name, value in agent.state_dict()["parameters"].items():
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-9, atol=1e-12)
        assert metrics["return"] == pytest.approx(np.mean([sum(each.rewards) for each in episodes]))
        assert metrics["gradient"] == pytest.approx(math.hypot(*ascent))
    assert agent.version == 3


def test_pairs_without_a_difference_teach_nothing():
    agent = pgpe()
    episodes = [
        Trajectory(each.observations, each.actions, np.full(4, 0.1), each.perturbation)
        for each in episodes_of(agent, pairs=2)
    ]
    assert agent.update(episodes)["gradient"] == 0
    np.testing.assert_array_equal(agent.mean(np.ones(3)), [0, 0])


# That it learns


@pytest.mark.parametrize("targets", [BANDIT, CONTEXTS])
@pytest.mark.parametrize("hidden", [0, 4])
def test_it_learns_from_whole_episodes(targets, hidden):
    env = Target(targets, steps=2)
    agent = on(env, hidden=hidden, deviation=0.1)
    for update in range(80):
        agent.update([collect(env, agent, 8 * update + number) for number in range(8)])
    for context, target in targets.items():
        assert agent.mean(np.array([context, 0.3]))[0] == pytest.approx(target, abs=0.2)


@pytest.mark.parametrize("task", ["spatial", pytest.param("spatiotemporal", marks=pytest.mark.ci)])
def test_it_plays_in_the_environment(make_env, task):
    env = RunSummary(PoolAction(ErrorReduction(make_env(task=task, total_updates=2))))
    agent = on(env)
    episodes = [collect(env, agent, seed) for seed in range(4)]
    assert_equal_trees(vars(collect(env, agent, seed=3)), vars(episodes[3]))
    assert np.array_equal(episodes[0].observations[0], episodes[1].observations[0])  # the same run
    assert not np.array_equal(episodes[0].actions, episodes[1].actions)
    agent.update(episodes)
    assert np.isfinite(collect(env, agent, seed=4).actions).all()


# State and errors


def test_a_restored_agent_continues_bit_for_bit_in_the_middle_of_an_episode(tmp_path):
    env = Target(CONTEXTS, steps=3)
    agent, restored = on(env), on(env, seed=1)
    agent.update([collect(env, agent, seed) for seed in range(4)])
    agent.reseed(5)
    agent.save(tmp_path / "agent.safetensors")
    restored.load(tmp_path / "agent.safetensors")
    observation = np.array([0.9, 0.3])
    np.testing.assert_array_equal(restored.act(observation), agent.act(observation))
    episodes = [collect(env, agent, seed) for seed in range(8, 12)]
    assert restored.update(episodes) == agent.update(episodes)
    restored.reseed(11)  # as the other one did last
    assert_equal_trees(restored.state_dict(), agent.state_dict())


def test_episodes_that_are_no_pairs_are_refused():
    agent = pgpe()
    episodes = episodes_of(agent, pairs=2)
    before = agent.state_dict()
    for wrong, message in (
        ([], "no episodes"),
        (episodes[:3], r"3 episodes are no pairs.*2k and 2k \+ 1"),
        ([episodes[0], episodes[3]], "are not opposite"),
        ([Trajectory(each.observations, each.actions, each.rewards) for each in episodes], "are not opposite"),
        ([dataclasses.replace(each, perturbation=np.zeros(PARAMETERS)) for each in episodes], "`deterministic` off"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.update(wrong)
    assert_equal_trees(agent.state_dict(), before)


@pytest.mark.parametrize(
    ("option", "value"), [("deviation", 0.0), ("hidden", -1), ("learning_rate", 0.0), ("discount", 1.1)]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        pgpe(**{option: value})
