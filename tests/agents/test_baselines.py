"""The random policy, curricula fixed in advance and the inverse policy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import DifficultyProportional, EasiestFirst, FixedGroup, HardestFirst, InversePolicy, UniformGroups
from tests.agents.helpers import (
    FRACTIONS,
    GROUPS,
    JOINT,
    JOINT_FRACTIONS,
    SINGLE,
    assert_equal_trees,
    feed,
    observe,
    random_policy,
    reinforce,
    tilted,
)


def test_the_random_policy_is_uniform_over_permutations():
    np.testing.assert_allclose(random_policy().probabilities(observe()), FRACTIONS, rtol=1e-6)


def test_the_random_policy_is_uniform_over_the_permutations_of_each_task():
    probabilities = random_policy(spaces=JOINT).probabilities(observe(fractions=JOINT_FRACTIONS))
    np.testing.assert_allclose(probabilities, JOINT_FRACTIONS, rtol=1e-6)


# Curricula


def test_uniform_groups_ignore_the_sizes():
    expected = [[0.25, 0.25, 0, 0.25, 0.25], [0.25, 0.25, 0.25, 0, 0.25]]
    agent = UniformGroups(*JOINT, seed=0)
    np.testing.assert_array_equal(agent.probabilities(observe(fractions=JOINT_FRACTIONS)), expected)


@pytest.mark.parametrize(
    ("fractions", "group", "chosen"),
    [
        (FRACTIONS, 0, 0),
        (FRACTIONS, 3, 3),
        (FRACTIONS, 2, 4),
        ([0.7, 0.2, 0.1, 0, 0], 3, 2),
        ([1, 0, 0, 0, 0], 4, 0),
        ([0, 0, 0, 0, 1], 0, 4),
    ],
)
def test_an_empty_fixed_group_is_replaced_by_the_easiest_that_is_not_empty(fractions, group, chosen):
    agent = FixedGroup(*SINGLE, seed=0, group=group)
    np.testing.assert_array_equal(agent.probabilities(observe(fractions=np.array(fractions))), np.eye(GROUPS)[chosen])


def test_a_fixed_group_holds_for_every_task():
    agent = FixedGroup(*JOINT, seed=0, group=3)
    assert {tuple(agent.act(observe(fractions=JOINT_FRACTIONS))) for _ in range(20)} == {(3, 4)}


def slow_pool(sizes: list[int], pool: int, easiest_first: bool) -> list[int]:
    """Return how many of the first permutations in the order of the curriculum belong to each group."""
    permutations = [group for group, size in enumerate(sizes) for _ in range(size)]
    inside = permutations[::-1][:pool] if easiest_first else permutations[:pool]
    return [inside.count(group) for group in range(len(sizes))]


@pytest.mark.parametrize("kind", [HardestFirst, EasiestFirst])
@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=GROUPS, max_size=GROUPS).filter(any),
    completed=st.integers(0, 12),
)
def test_all_permutations_in_a_pool_are_equally_likely(kind, sizes, completed):
    size = sum(sizes)
    agent = kind(*SINGLE, seed=0, start=1 / size, updates=10)
    for _ in range(completed):
        feed(agent, 0, phase="update", validated=True)
    share = 1 / size + (1 - 1 / size) * min(completed / 10, 1)
    assert agent.share == pytest.approx(share)
    fractions = np.array(sizes) / size
    probabilities = agent.probabilities(observe(fractions=fractions))
    assert probabilities.sum() == pytest.approx(1, abs=1e-14)
    assert (probabilities[fractions == 0] == 0).all()
    chances = [probabilities[group] / fractions[group] for group in range(GROUPS) if sizes[group]]  # of a permutation
    ranked = chances if kind is HardestFirst else chances[::-1]
    boundary = max(rank for rank, chance in enumerate(ranked) if chance > 1e-4)  # ŝ is float32; beyond it is outside
    np.testing.assert_allclose(ranked[:boundary], 1 / share, rtol=1e-4)
    assert ranked[boundary] <= 1 / share * (1 + 1e-4)
    # between the pools with the next smaller and the next larger whole number of permutations
    inside, pool = probabilities * share * size, share * size
    assert (inside >= np.array(slow_pool(sizes, int(np.floor(pool + 1e-9)), kind is EasiestFirst)) - 1e-4).all()
    assert (inside <= np.array(slow_pool(sizes, int(np.ceil(pool - 1e-9)), kind is EasiestFirst)) + 1e-4).all()


@pytest.mark.parametrize(("kind", "easiest_first"), [(HardestFirst, False), (EasiestFirst, True)])
def test_the_pool_of_each_task_equals_a_slow_reference(kind, easiest_first):
    agent = kind(*JOINT, seed=0, start=0.2, updates=8)
    for completed in range(12):
        pool = min(20 + 10 * completed, 100)  # of 100 permutations
        members = [slow_pool(np.round(100 * row).astype(int).tolist(), pool, easiest_first) for row in JOINT_FRACTIONS]
        probabilities = agent.probabilities(observe(completed, JOINT_FRACTIONS))
        np.testing.assert_allclose(probabilities, np.array(members) / pool, atol=1e-6)
        feed(agent, 0)
        feed(agent, 0, validated=True)
        feed(agent, 0, phase="free", validated=True)
    np.testing.assert_allclose(probabilities, JOINT_FRACTIONS, rtol=1e-6)


@pytest.mark.parametrize("kind", [HardestFirst, EasiestFirst])
def test_a_pool_that_is_continued_in_a_longer_run_keeps_its_pace(kind):
    agent, longer = kind(*SINGLE, seed=0, start=0.2, updates=2), kind(*SINGLE, seed=0, updates=6)
    for _ in range(2):
        feed(agent, 0, validated=True)
    longer.load_state_dict(agent.state_dict())
    assert agent.share == longer.share == 1
    assert (longer.start, longer.updates) == (0.2, 2)


def test_difficulty_proportional_weights_permutations_by_the_difficulty_of_their_group():
    observation = observe(fractions=JOINT_FRACTIONS)
    probabilities = DifficultyProportional(*JOINT, seed=0).probabilities(observation)
    for row, chances in zip(observation.tolist(), probabilities, strict=True):
        weights = [fraction * (2 - median) for fraction, median in row]
        np.testing.assert_allclose(chances, np.array(weights) / sum(weights), rtol=1e-12)


def test_difficulty_proportional_draws_groups_without_difficulty_only_if_all_are():
    agent = DifficultyProportional(*SINGLE, seed=0)
    observation = observe()
    observation[3:, 1] = 2
    assert (agent.probabilities(observation)[3:] == 0).all()
    observation[:, 1] = 2
    np.testing.assert_allclose(agent.probabilities(observation), FRACTIONS, rtol=1e-6)


# The inverse policy


def test_inverse_of_random_is_random():
    inverse = InversePolicy(random_policy(), seed=0).probabilities(observe())
    np.testing.assert_allclose(inverse, random_policy().probabilities(observe()), rtol=1e-14)


def test_inverse_prefers_what_the_policy_avoids():
    policy = tilted(reinforce())
    inverse = InversePolicy(policy, seed=0).probabilities(observe())
    full = FRACTIONS > 0
    preference = np.log(policy.probabilities(observe())[full] / FRACTIONS[full])
    discarded = np.log(inverse[full] / FRACTIONS[full])
    np.testing.assert_allclose(preference - preference.mean(), -(discarded - discarded.mean()), atol=1e-6)


def test_inverse_of_inverse_is_the_policy():
    policy = tilted(reinforce())
    twice = InversePolicy(InversePolicy(policy, seed=0), seed=0)
    np.testing.assert_allclose(twice.probabilities(observe()), policy.probabilities(observe()), rtol=1e-12)


def test_inverse_of_a_policy_that_almost_never_draws_a_group():
    policy = tilted(reinforce(), scale=1e3)
    assert policy.probabilities(observe()).min(where=FRACTIONS > 0, initial=1) < 1e-300
    inverse = InversePolicy(policy, seed=0).probabilities(observe())
    assert np.isfinite(inverse).all()
    assert inverse.sum() == pytest.approx(1)
    assert inverse[2] == 0


def test_the_policy_of_each_task_is_inverted():
    policy, observation = tilted(reinforce(spaces=JOINT)), observe(fractions=JOINT_FRACTIONS)
    inverse = InversePolicy(policy, seed=0).probabilities(observation)
    for chances, fractions, inverted in zip(policy.probabilities(observation), JOINT_FRACTIONS, inverse, strict=True):
        full = fractions > 0
        expected = fractions[full] ** 2 / chances[full]
        np.testing.assert_allclose(inverted[full], expected / expected.sum(), rtol=1e-6)


def test_act_of_an_inverse_follows_the_policy_it_owns():
    agent = InversePolicy(reinforce(entropy_weight=0), seed=0)
    before = agent.probabilities(observe())
    agent.act(observe())
    for reward in (0.0, 1.0):
        agent.policy.update(observe(), np.array([0, 0, 0, 0, 5]), reward)
    agent.act(observe())
    assert agent._probabilities[4] < before[4]


def test_inverse_lets_its_policy_learn_with_importance_weights():
    agent = InversePolicy(tilted(reinforce(entropy_weight=0)), seed=0, policy_learns=True)
    other = tilted(reinforce(entropy_weight=0))
    for reward in (0.0, 1.0):
        q = agent.probabilities(observe())
        feed(agent, 1)
        metrics = feed(agent, 3, reward, validated=True)
        assert metrics == other.update(observe(), np.array([0, 1, 0, 1, 0]), reward, behaviour=q)
    assert_equal_trees(agent.policy.state_dict(), other.state_dict())


# Errors


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (FixedGroup, "group", -1),
        (FixedGroup, "group", GROUPS),
        (HardestFirst, "start", 0.0),
        (EasiestFirst, "start", 1.1),
        (EasiestFirst, "updates", 0),
    ],
)
def test_options_out_of_range_are_refused(kind, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}, it must be"):
        kind(*SINGLE, seed=0, **{option: value})
