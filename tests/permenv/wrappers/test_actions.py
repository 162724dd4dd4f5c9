"""The wrappers that change the actions."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from permenv.wrappers import MixtureAction, PoolAction, RatioMatrix
from tests.helpers import assert_same, rollout
from tests.permenv.wrappers.helpers import PARTS, actions_of, every_task


def stub_training(env):
    """Return the labels that the run will be trained on, by task, and replace the training by nothing."""
    run = env.unwrapped.run
    seen = {part: [] for part in run.tasks}

    def step(batches):
        for part, batch in batches.items():
            seen[part].extend(batch.labels.tolist())
        run.trainer.iteration += 1
        return dict.fromkeys(batches, 1.0)

    run.trainer.step = step
    for each in run.tasks.values():
        each.shard_of_pieces = lambda rows, samples, orders, generator: torch.zeros(len(samples), 1)
    return seen


def assert_drawn_from(counts, probabilities):
    """Compare counts with their expectation by the χ² statistic."""
    expected = counts.sum() * probabilities
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert ((counts - expected) ** 2 / expected).sum() < 3 * len(expected) + 15


MANY = {"batch_size": 1000, "free_iterations": 0, "iterations_per_update": 4}


@every_task
def test_the_action_0_of_a_mixture_draws_all_permutations_equally(make, task):
    env = make("mixture", task, **MANY)
    env.reset(seed=0)
    sizes = env.unwrapped.records[-1].observation.reshape(-1, 4, 2)[..., 0]
    assert np.ptp(sizes) > 0.1  # drawing all groups equally would be something else
    np.testing.assert_allclose(env.probabilities(np.zeros(env.action_space.shape)), sizes, rtol=1e-6)
    seen = stub_training(env)
    env.step(np.zeros(env.action_space.shape, np.float32))
    for part in PARTS[task]:
        assert len(seen[part]) == 4000
        assert_drawn_from(np.bincount(seen[part], minlength=24), np.full(24, 1 / 24))


@every_task
@pytest.mark.parametrize("strength", [0.5, 1, 3.0])
def test_a_mixture_is_tilted_by_its_strength_for_each_task_separately(make, task, strength):
    env = make(lambda env: MixtureAction(env, strength), task, **MANY)
    env.reset(seed=0)
    rows = np.array([[1, -1, 0, 0.5], [-0.5, 0, 1, -1]])[: len(PARTS[task])]
    groups = dict(env.unwrapped.groups)
    seen = stub_training(env)
    expected = []
    for part, row in zip(PARTS[task], rows, strict=True):
        weights = np.array([(groups[part] == j).mean() * math.exp(strength * row[j]) for j in range(4)])
        expected.append(weights / weights.sum())
    np.testing.assert_allclose(env.probabilities(rows.reshape(env.action_space.shape)), expected, rtol=1e-6)
    env.step(rows.reshape(env.action_space.shape).astype(np.float32))
    for part, probabilities in zip(PARTS[task], expected, strict=True):
        drawn = groups[part][np.array(seen[part])]
        assert_drawn_from(np.bincount(drawn, minlength=4), probabilities)


@pytest.mark.parametrize("stack", ["mixture", "pool"])
def test_a_mixture_or_a_pool_draws_a_group_for_every_action(make, stack):
    env = make(stack, samples_per_action=4, batch_size=8, free_iterations=0)
    env.reset(seed=0)
    taken, step = [], env.env.step
    env.env.step = lambda action: taken.append(action) or step(action)
    rollout(env, [env.action_space.high] * 10)
    assert len(taken) == 10 * 2 * 2
    assert set(taken) == {0, 1, 2, 3}


@pytest.mark.parametrize(("wrap", "random"), [(MixtureAction, np.zeros(4)), (PoolAction, np.ones(1))])
def test_a_mixture_or_a_pool_reads_the_state_of_the_run_whatever_observation_is_below(make, wrap, random):
    plain, over = make(wrap), make(lambda env: wrap(RatioMatrix(env)))
    plain.reset(seed=0)
    over.reset(seed=0)
    for action in actions_of(plain, cycles=2):
        sizes = np.bincount(plain.unwrapped.groups["spatial"], minlength=4) / 24
        np.testing.assert_allclose(plain.probabilities(random), [sizes], rtol=1e-6)
        np.testing.assert_array_equal(plain.probabilities(action), over.probabilities(action))
        assert_same([plain.step(action)[1:]], [over.step(action)[1:]])


def test_a_mixture_is_clipped_and_a_constant_changes_nothing(make):
    env = make("mixture")
    env.reset(seed=0)
    np.testing.assert_array_equal(env.probabilities([3, -5, 0.5, 0]), env.probabilities([1, -1, 0.5, 0]))
    np.testing.assert_allclose(env.probabilities([0.75, 0.25, 0.5, 0.25]), env.probabilities([0.5, 0, 0.25, 0]))
    np.testing.assert_array_equal(env.probabilities(np.array([1, 0, 0, -1], np.int8)), env.probabilities([1, 0, 0, -1]))


EMPTY = [
    (MixtureAction, [-1, 1, 1, 1]),
    (lambda env: MixtureAction(env, 1e6), [-1, 1, 1, 1]),
    (PoolAction, [-1]),
    (lambda env: PoolAction(env, 1e-9, hardest_first=True), [-1]),
]


@pytest.mark.parametrize(("wrap", "action"), EMPTY, ids=["mixture", "strong mixture", "pool", "hardest pool"])
def test_an_empty_group_is_never_drawn_whatever_the_action(make, wrap, action):
    env = make(wrap, learning_rate=0)
    env.reset(seed=0)
    trainer = env.unwrapped.run.trainer
    for network in (trainer.network, trainer.eval_network):
        for parameter in network.parameters():
            parameter.data.zero_()  # all rows of s become the same
    observation, *_ = env.step(np.zeros_like(env.action_space.low))
    np.testing.assert_array_equal(observation[:, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(env.probabilities(action), [[1, 0, 0, 0]])
    seen = stub_training(env)
    env.step(action)
    assert len(seen["spatial"]) == 8


@every_task
def test_the_action_1_of_a_pool_is_the_action_0_of_a_mixture(make, task):
    """Both are the random policy, and draw the same groups."""
    pool, mixture = make("pool", task), make("mixture", task)
    pool.reset(seed=0)
    mixture.reset(seed=0)
    for _ in range(4):
        full, zero = pool.action_space.high, np.zeros(mixture.action_space.shape)
        sizes = pool.unwrapped.records[-1].observation.reshape(-1, 4, 2)[..., 0].astype(np.float64)
        expected = sizes / sizes.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(pool.probabilities(full), expected, rtol=1e-12)
        assert_same([pool.step(full)], [mixture.step(zero)])


@every_task
@pytest.mark.parametrize("hardest_first", [False, True])
@pytest.mark.parametrize("smallest", [0.02, 0.3])
def test_a_pool_draws_from_the_easiest_or_the_hardest_permutations_of_each_task(make, task, smallest, hardest_first):
    env = make(lambda env: PoolAction(env, smallest, hardest_first), task, **MANY)
    env.reset(seed=0)
    groups = dict(env.unwrapped.groups)
    action = np.array([0.4, -0.3])[: len(PARTS[task])]
    np.testing.assert_allclose(
        env.shares(action), [smallest + (1 - smallest) * (a + 1) / 2 for a in action], rtol=1e-12
    )
    expected = []
    for part, share in zip(PARTS[task], env.shares(action), strict=True):
        left, inside = 24 * share, np.zeros(4)  # permutations
        for group in range(4) if hardest_first else reversed(range(4)):
            inside[group] = min(left, np.sum(groups[part] == group))
            left -= inside[group]
        expected.append(inside / (24 * share))
    np.testing.assert_allclose(env.probabilities(action), expected, atol=1e-6)
    seen = stub_training(env)
    env.step(action.astype(np.float32))
    for part, probabilities in zip(PARTS[task], expected, strict=True):
        assert len(seen[part]) == 4000
        assert_drawn_from(np.bincount(groups[part][np.array(seen[part])], minlength=4), probabilities)


def test_the_lowest_action_is_the_easiest_fiftieth(make):
    assert make("pool").shares([-1]) == pytest.approx(0.02, rel=1e-12)


def test_the_share_of_a_pool_goes_from_the_smallest_to_1_by_equal_steps_and_is_clipped(make):
    env = make(lambda env: PoolAction(env, 0.25), "spatiotemporal")
    assert env.shares([-1, 1]).tolist() == [0.25, 1]
    np.testing.assert_allclose(env.shares(np.float32([0, 0.5])), [0.625, 0.8125], rtol=1e-12)
    assert env.shares(np.array([-3, 7])).tolist() == [0.25, 1]


@pytest.mark.parametrize(("hardest_first", "drawn"), [(False, 3), (True, 0)])
def test_a_pool_smaller_than_a_permutation_draws_from_one_group(make, hardest_first, drawn):
    env = make(lambda env: PoolAction(env, 1e-9, hardest_first))
    env.reset(seed=0)
    assert env.unwrapped.groups["spatial"].max() == 3
    np.testing.assert_array_equal(env.probabilities([-1]), [np.eye(4)[drawn]])


@every_task
def test_a_block_equals_its_actions_one_by_one(make, task):
    env, one_by_one = make("block", task, free_iterations=0), make(lambda env: env, task, free_iterations=0)
    assert env.action_space.shape == (8 * len(PARTS[task]),)
    env.reset(seed=0)
    one_by_one.reset(seed=0)
    for block in actions_of(env, cycles=2):
        *_, last = rollout(one_by_one, block.reshape(8, *one_by_one.action_space.shape))
        assert_same([env.step(block)], [last])
        assert last[4]["validated"]


@every_task
@pytest.mark.parametrize("free", [1, 2, 5])
def test_free_iterations_play_the_block_from_its_start(make, task, free):
    env, one_by_one = (make(stack, task, free_iterations=free) for stack in ("block", lambda env: env))
    env.reset(seed=0)
    one_by_one.reset(seed=0)
    first, second = (block.reshape(8, *one_by_one.action_space.shape) for block in actions_of(env, cycles=1))
    *_, last = rollout(one_by_one, [first[k % 8] for k in range(4 * free)])
    assert_same([env.step(first.ravel())], [last])
    assert (last[1], last[4]["phase"], last[4]["validated"]) == (0, "free", True)
    *_, last = rollout(one_by_one, second)
    assert_same([env.step(second.ravel())], [last])
    assert (last[4]["phase"], last[4]["update"]) == ("update", 1)


@every_task
@pytest.mark.parametrize("stack", ["mixture", "pool", "block"])
@pytest.mark.parametrize("free", [0, 2])
def test_a_step_is_a_phase(make, task, stack, free):
    env = make(stack, task, free_iterations=free, total_updates=3)
    env.reset(seed=0)
    steps = rollout(env, actions_of(env, cycles=3 if free else 1.5))
    phases = ["free", "update"] * 3 if free else ["update"] * 3
    assert [step[4]["phase"] for step in steps] == phases
    iterations = [2, 4, 6, 8, 10, 12] if free else [2, 4, 6]
    assert [step[4]["iteration"] for step in steps] == iterations
    assert all(step[4]["validated"] for step in steps)
    assert [step[3] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [step[1] for step in steps if step[4]["phase"] == "update"] == env.unwrapped.rewards
    assert all(step[1] == 0 for step in steps if step[4]["phase"] == "free")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_a_pair_of_groups_is_one_number(make):
    env, pairs = make("flat joint", "spatiotemporal"), make(lambda env: env, "spatiotemporal")
    assert env.action_space == gym.spaces.Discrete(16)
    env.reset(seed=0)
    pairs.reset(seed=0)
    for spatial, temporal in [(0, 0), (3, 1), (1, 3), (2, 2)] * 3:
        assert_same([env.step(np.int64(4 * spatial + temporal))], [pairs.step(np.array([spatial, temporal]))])
    assert pairs.unwrapped.records[-1].choices.tolist() == [[2, 2, 2, 2]] * 2
