"""The contract of all agents: what they choose, which steps they learn from, their state, randomness and errors."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import Agent, FixedGroup, InversePolicy, RandomPolicy, Reinforce, Transition
from permenv import CheckpointError
from tests.agents.helpers import (
    BUILDERS,
    DRAWING,
    FRACTIONS,
    GROUPS,
    JOINT,
    JOINT_FRACTIONS,
    SINGLE,
    TASKS,
    Bandit,
    all_agents,
    assert_equal_trees,
    each_agent,
    feed,
    for_single_and_joint,
    fractions_of,
    observe,
    random_policy,
    reinforce,
    run,
    spaces_of,
)
from tests.helpers import global_states

ONE_SIDED = ("fixed", "hardest-first", "easiest-first")
"""Agents that leave out groups that are not empty."""


# What they choose


@all_agents
def test_probabilities_are_a_distribution_over_groups_that_are_not_empty(build):
    agent = build()
    fractions = fractions_of(agent)
    probabilities = agent.probabilities(observe(fractions=fractions))
    assert probabilities.shape == fractions.shape
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-14)
    assert (probabilities >= 0).all()
    assert (probabilities[fractions == 0] == 0).all()


@for_single_and_joint({name: build for name, build in BUILDERS.items() if name not in ONE_SIDED})
def test_every_group_that_is_not_empty_has_a_chance(build):
    agent = build()
    run(agent, seed=0, steps=150)
    fractions = fractions_of(agent)
    assert ((agent.probabilities(observe(fractions=fractions)) > 0) == (fractions > 0)).all()


@each_agent
def test_an_action_is_a_group_or_one_group_per_task(build):
    assert type(build().act(observe())) is int
    actions = build(spaces=JOINT).act(observe(fractions=JOINT_FRACTIONS))
    assert (actions.shape, actions.dtype) == ((2,), np.int64)


@for_single_and_joint(DRAWING)
def test_act_draws_from_the_probabilities(build):
    agent, draws = build(), 4000
    observation = observe(fractions=fractions_of(agent))
    distributions = agent.probabilities(observation).reshape(-1, GROUPS)
    actions = np.array([agent.act(observation) for _ in range(draws)]).reshape(draws, -1)
    for task, distribution in enumerate(distributions):
        expected = draws * distribution
        counts = np.bincount(actions[:, task], minlength=GROUPS)
        full = expected > 0
        assert (counts[~full] == 0).all()
        assert ((counts - expected)[full] ** 2 / expected[full]).sum() < 16.3  # χ² of 3 degrees, p = 0.001


def test_the_tasks_draw_independently():
    agent = random_policy(spaces=JOINT)
    observation = observe(fractions=JOINT_FRACTIONS)
    first, second = np.array([agent.act(observation) for _ in range(4000)]).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05  # three standard deviations


@pytest.mark.parametrize("number", [0.0, 0.5, np.nextafter(1, 0)])
@pytest.mark.parametrize("fractions", [[0, 0, 0.5, 0.5, 0], [0, 1, 0, 0, 0], [0.5, 0, 0, 0.5, 0]])
def test_act_never_returns_an_empty_group_at_the_ends(fractions, number):
    class Fixed:
        def random(self, size: tuple[int, ...]) -> np.ndarray:
            return np.full(size, number)

    def act(agent: Agent, fractions: np.ndarray) -> Any:
        agent._generator = Fixed()
        return agent.act(observe(fractions=fractions))

    other = fractions[::-1]
    assert fractions[act(random_policy(), np.array(fractions))] > 0
    first, second = act(random_policy(spaces=JOINT), np.array([fractions, other]))
    assert fractions[first] > 0
    assert other[second] > 0


def test_act_computes_probabilities_only_when_something_changed():
    agent, asked = reinforce(), []
    ask = agent.probabilities
    agent.probabilities = lambda observation: asked.append(1) or ask(observation)
    for _ in range(5):
        agent.act(observe())
    assert len(asked) == 1
    agent.act(observe(1))
    assert len(asked) == 2
    feed(agent, 0, validated=True)
    asked.clear()
    agent.act(observe(1))
    agent.act(observe(1))
    assert len(asked) == 1


@pytest.mark.parametrize("build", DRAWING.values(), ids=DRAWING)
def test_a_joint_task_of_one_task_equals_the_single_task(build):
    single, joint = build(seed=1), build(seed=1, spaces=spaces_of(1))
    env = Bandit()
    observation, _ = env.reset(seed=0)
    for _ in range(200):
        action = single.act(observation)
        assert joint.act(observation[None]).tolist() == [action]
        after, reward, terminated, truncated, info = env.step(action)
        metrics = single.learn(Transition(observation, action, reward, after, terminated, truncated, info))
        info["task_rewards"] = {"spatial": reward}
        joint_metrics = joint.learn(
            Transition(observation[None], np.array([action]), reward, after[None], terminated, truncated, info)
        )
        assert joint_metrics == {f"spatial/{name}": value for name, value in metrics.items()}
        observation = env.reset()[0] if truncated else after
    assert np.array_equal(joint.probabilities(observation[None])[0], single.probabilities(observation))
    joint.load_state_dict(single.state_dict())


# Which steps they learn from


@all_agents
def test_free_steps_change_nothing(build):
    agent = build()
    run(agent, seed=0, steps=20)
    before = agent.state_dict()
    assert feed(agent, 1, phase="free") == {}
    assert feed(agent, 3, phase="free", validated=True) == {}
    assert_equal_trees(agent.state_dict(), before)


def test_an_update_credits_only_its_own_actions():
    agent, counted = reinforce(), []
    agent.update = lambda observation, counts, reward, behaviour: counted.append((counts.tolist(), reward)) or {}
    for action in (0, 3, 3):
        feed(agent, action)
    feed(agent, 4, 0.5, validated=True)
    feed(agent, 1, phase="free", validated=True)
    feed(agent, 0, 0.25, validated=True)
    assert counted == [([1, 0, 0, 2, 1], 0.5), ([1, 0, 0, 0, 0], 0.25)]


def test_an_update_that_diverges_is_credited():
    agent, counted = reinforce(), []
    agent.update = lambda observation, counts, reward, behaviour: counted.append((counts.tolist(), reward)) or {}
    feed(agent, 3)
    feed(agent, 0, -1.0, terminated=True)
    assert counted == [([1, 0, 0, 1, 0], -1.0)]


# State


@all_agents
@settings(max_examples=8, deadline=None)
@given(before=st.integers(0, 120), after=st.integers(1, 60))
def test_a_restored_agent_continues_bit_for_bit(build, before, after):
    original, restored = build(seed=1), build(seed=2)
    run(original, seed=0, steps=before)
    run(restored, seed=5, steps=13)
    state = original.state_dict()
    restored.load_state_dict(state)
    kept = original.state_dict()
    actions = run(original, seed=3, steps=after)
    assert_equal_trees(state, kept)  # a state is a copy
    assert run(restored, seed=3, steps=after) == actions
    assert_equal_trees(restored.state_dict(), original.state_dict())
    assert_equal_trees(state, kept)


@all_agents
def test_save_and_load(build, tmp_path):
    original, restored = build(seed=1), build(seed=2)
    run(original, seed=0, steps=40)
    original.save(tmp_path / "agent.safetensors")
    restored.load(tmp_path / "agent.safetensors")
    assert_equal_trees(restored.state_dict(), original.state_dict())
    assert run(restored, seed=3, steps=40) == run(original, seed=3, steps=40)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.safetensors"]


@all_agents
@pytest.mark.parametrize("length", [0, 5, 0.5, -1])
def test_a_truncated_file_is_refused(build, length, tmp_path):
    path = tmp_path / "agent.safetensors"
    build().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * length) if isinstance(length, float) else length])
    agent = build()
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match=r"agent\.safetensors is truncated or not a checkpoint"):
        agent.load(path)
    assert_equal_trees(agent.state_dict(), before)


@pytest.mark.parametrize(
    "other",
    [
        random_policy(),
        reinforce(hidden=4),
        InversePolicy(random_policy(), seed=0),
        Reinforce(gym.spaces.Box(0, 2, (3, 2)), gym.spaces.Discrete(3), seed=0),
        reinforce(spaces=JOINT),
    ],
    ids=["class", "hidden", "inverse", "groups", "tasks"],
)
def test_the_file_of_another_agent_is_refused(other, tmp_path):
    path = tmp_path / "agent.safetensors"
    other.save(path)
    agent = reinforce()
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match=r"agent\.safetensors.*Build the agent as the saved one was built"):
        agent.load(path)
    assert_equal_trees(agent.state_dict(), before)


@each_agent
def test_the_state_of_another_class_is_refused(build):
    agent = build()
    before = agent.state_dict()
    for other in BUILDERS.values():
        if type(other()) is not type(agent):
            with pytest.raises(CheckpointError, match=r"does not fit.*Build the agent as the saved one was built"):
                agent.load_state_dict(other().state_dict())
    assert_equal_trees(agent.state_dict(), before)


@each_agent
def test_a_state_of_another_number_of_tasks_is_refused(build):
    for one, other in ((SINGLE, JOINT), (JOINT, SINGLE)):
        agent = build(spaces=one)
        before = agent.state_dict()
        with pytest.raises(CheckpointError, match=r"'tasks': .*does not fit.*'tasks': "):
            agent.load_state_dict(build(spaces=other).state_dict())
        assert_equal_trees(agent.state_dict(), before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        reinforce().load(tmp_path / "nowhere")


# Randomness


@all_agents
def test_the_seed_determines_everything(build):
    actions = run(build(seed=3), seed=0, steps=100)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert run(build(seed=3), seed=0, steps=100) == actions
    if not isinstance(build(), FixedGroup):  # it draws nothing
        assert run(build(seed=4), seed=0, steps=100) != actions


@all_agents
def test_global_random_states_are_left_unchanged(build):
    before = global_states()
    run(build(), seed=0, steps=60)
    assert global_states() == before


# Errors


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (SINGLE[0], gym.spaces.Discrete(GROUPS, start=1), "start at 0"),
        (SINGLE[0], gym.spaces.Box(0, 1, (GROUPS,)), "from Discrete"),
        (SINGLE[0], gym.spaces.Discrete(4), r"\(4, 2\)"),
        (SINGLE[0], JOINT[1], r"\(2, 5, 2\).*wrappers"),
        (JOINT[0], gym.spaces.MultiDiscrete([5, 4]), "the same number of groups for every task"),
        (JOINT[0], gym.spaces.MultiDiscrete([5, 5], start=[0, 1]), "start at 0"),
        (JOINT[0], gym.spaces.MultiDiscrete([[5, 5]]), "the same number of groups for every task"),
        (JOINT[0], gym.spaces.MultiDiscrete([5, 5, 5]), r"\(3, 5, 2\)"),
        (gym.spaces.Box(0, 2, (20,)), JOINT[1], "FlattenObservation"),
        (gym.spaces.Box(0, 2, (2, GROUPS, 2)), SINGLE[1], r"\(5, 2\).*wrappers"),
        (gym.spaces.Discrete(3), SINGLE[1], "wrappers"),
    ],
)
@pytest.mark.parametrize("agent", [RandomPolicy, Reinforce])
def test_other_spaces_are_refused(agent, observation_space, action_space, message):
    with pytest.raises(ValueError, match=message):
        agent(observation_space, action_space, seed=0)


@all_agents
@pytest.mark.parametrize(
    "change",
    [
        lambda observation: observation[..., :3, :],
        lambda observation: observation[None],
        lambda observation: observation.reshape(-1),
        lambda observation: observation * np.nan,
        lambda observation: np.stack([np.zeros(GROUPS), np.ones(GROUPS)], axis=-1) * np.ones_like(observation),
        lambda observation: -observation,
    ],
    ids=["short", "batched", "flat", "nan", "empty", "negative"],
)
def test_other_observations_are_refused(build, change):
    agent = build()
    with pytest.raises(ValueError, match="observation"):
        agent.act(change(observe(fractions=fractions_of(agent))))


@each_agent
def test_observations_of_another_number_of_tasks_are_refused(build):
    with pytest.raises(ValueError, match=r"\(2, 5, 2\).*\(5, 2\)"):
        build().act(observe(fractions=JOINT_FRACTIONS))
    with pytest.raises(ValueError, match=r"\(5, 2\).*\(2, 5, 2\)"):
        build(spaces=JOINT).act(observe())
    one_empty = observe(fractions=np.stack([FRACTIONS, np.zeros(GROUPS)]))
    with pytest.raises(ValueError, match="sizes"):
        build(spaces=JOINT).act(one_empty)


@pytest.mark.parametrize("action", [-1, GROUPS, 1.5])
def test_actions_outside_the_space_are_refused(action):
    with pytest.raises(ValueError, match="is not in"):
        feed(reinforce(), action)


@pytest.mark.parametrize("action", [0, [0, GROUPS], [-1, 0], [0, 0, 0], [0.5, 1]])
def test_actions_outside_the_joint_space_are_refused(action):
    observation = observe(fractions=JOINT_FRACTIONS)
    info = {"phase": "update", "validated": False, "task_rewards": dict.fromkeys(TASKS, 0.0)}
    with pytest.raises(ValueError, match="is not in"):
        reinforce(spaces=JOINT).learn(Transition(observation, np.array(action), 0.0, observation, False, False, info))


def test_a_joint_task_needs_the_reward_of_every_task():
    agent, observation = reinforce(spaces=JOINT), observe(fractions=JOINT_FRACTIONS)
    counts = (JOINT_FRACTIONS > 0).astype(int)
    with pytest.raises(ValueError, match=r"info\['task_rewards'\] must contain.*Pass the info"):
        agent.learn(
            Transition(
                observation, np.zeros(2, int), 0.0, observation, False, False, {"phase": "update", "validated": True}
            )
        )
    info = {"phase": "update", "validated": True, "task_rewards": {"spatial": 0.1, "temporal": 0.3}}
    with pytest.raises(ValueError, match=r"reward is 0\.5, the mean of info\['task_rewards'\] is 0\.2.*wrapper"):
        agent.learn(Transition(observation, np.zeros(2, int), 0.5, observation, False, False, info))
    for reward in (0.0, {"spatial": 0.0}):
        with pytest.raises(ValueError, match=r"reward is .*info\['task_rewards'\]"):
            agent.update(observation, counts, reward)
    with pytest.raises(ValueError, match=r"nan.*finite"):
        agent.update(observation, counts, {"spatial": 0.0, "temporal": float("nan")})
    with pytest.raises(ValueError, match="number"):
        reinforce().update(observe(), counts[0], {"spatial": 0.0})


def test_counts_and_behaviour_of_another_shape_are_refused():
    agent, observation = reinforce(spaces=JOINT), observe(fractions=JOINT_FRACTIONS)
    counts, reward = (JOINT_FRACTIONS > 0).astype(int), dict.fromkeys(TASKS, 0.0)
    with pytest.raises(ValueError, match=r"counts has shape \(5,\).*\(2, 5\).*row"):
        agent.update(observation, counts[0], reward)
    with pytest.raises(ValueError, match=r"behaviour has shape \(5,\).*\(2, 5\).*row"):
        agent.update(observation, counts, reward, behaviour=FRACTIONS)


def test_incomplete_infos_are_refused():
    for info in ({}, {"phase": "update"}, {"phase": "warmup", "validated": True}):
        with pytest.raises(ValueError, match="phase"):
            reinforce().learn(Transition(observe(), 0, 0.0, observe(), False, False, info))


@pytest.mark.parametrize(
    ("spaces", "counts", "gains"),
    [
        (SINGLE, np.zeros(5, int), 0.1),
        (JOINT, np.zeros((2, 5), int), {"spatial": 0.1, "temporal": 0.1}),
        (JOINT, np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]), {"spatial": 0.1, "temporal": 0.1}),
    ],
)
def test_counts_of_no_action_or_of_more_in_one_task_are_refused(spaces, counts, gains):
    agent = Reinforce(*spaces, seed=0)
    before = agent.state_dict()
    with pytest.raises(ValueError, match=r"The counts .* sum to"):
        agent.update(observe(), counts, gains)
    assert_equal_trees(agent.state_dict(), before)


def test_a_state_with_counts_of_more_actions_in_one_task_is_refused():
    agent = Reinforce(*JOINT, seed=0)
    state = agent.state_dict()
    state["counts"][0][1] += 1
    with pytest.raises(CheckpointError, match="must count as many actions in each task"):
        agent.load_state_dict(state)


def test_impossible_updates_are_refused():
    with pytest.raises(ValueError, match="reward is nan"):
        reinforce().update(observe(), np.array([1, 0, 0, 0, 0]), float("nan"))
    with pytest.raises(ValueError, match="own actions"):
        reinforce().update(observe(), np.array([0, 0, 1, 0, 0]), 0.0)
    with pytest.raises(ValueError, match="cannot learn"):
        InversePolicy(random_policy(), seed=0, policy_learns=True)
