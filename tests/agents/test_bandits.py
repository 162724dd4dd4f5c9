"""EXP3 and UCB1 against slow references, and that they find the best arm."""

import numpy as np
import pytest

from agents import Exp3, Transition, Ucb
from tests.agents.helpers import (
    BEST,
    FRACTIONS,
    GROUPS,
    JOINT,
    JOINT_FRACTIONS,
    SINGLE,
    TASKS,
    Bandit,
    JointBandit,
    observe,
    random_policy,
    run,
)

# EXP3


def slow_scaled(rewards: list[float], reward: float) -> float:
    """Scale a reward to [0, 1] by the lowest and the highest so far."""
    low, high = min(rewards), max(rewards)
    return (reward - low) / (high - low) if high > low else 0.0


@pytest.mark.parametrize("behaves", ["on-policy", "off-policy"])
@pytest.mark.parametrize("eta", [None, 0.7])
@pytest.mark.parametrize("case", ["single", "joint"])
def test_exp3_equals_a_slow_reference(case, eta, behaves):
    gamma, num_actions = 0.2, 6
    joint = case == "joint"
    generator = np.random.default_rng(0)
    agent = Exp3(*(JOINT if joint else SINGLE), seed=0, gamma=gamma, eta=eta)
    tasks = range(2 if joint else 1)
    weights = [[1.0] * GROUPS for _ in tasks]
    rewards: list[list[float]] = [[] for _ in tasks]

    def slow_probabilities(task: int) -> list[float]:
        total = sum(fractions[task][j] * weights[task][j] for j in range(GROUPS))
        return [
            (1 - gamma) * fractions[task][j] * weights[task][j] / total + gamma * fractions[task][j]
            for j in range(GROUPS)
        ]

    for t in range(12):
        rows = generator.permuted(JOINT_FRACTIONS, axis=1)  # different groups are empty each time
        observation = observe(t, rows if joint else rows[0])
        fractions = observation[..., 0].astype(float).reshape(-1, GROUPS)
        fractions = fractions / fractions.sum(axis=1, keepdims=True)
        drawn_from = np.array([slow_probabilities(task) for task in tasks])
        np.testing.assert_allclose(agent.probabilities(observation).reshape(-1, GROUPS), drawn_from, rtol=1e-12)
        if behaves == "off-policy":
            drawn_from = fractions
        actions = [generator.choice(GROUPS, size=num_actions, p=p) for p in drawn_from]
        gains = generator.normal(size=len(tasks)).tolist()
        counts = np.array([np.bincount(row, minlength=GROUPS) for row in actions])
        metrics = agent.update(
            observation,
            counts if joint else counts[0],
            dict(zip(TASKS, gains, strict=True)) if joint else gains[0],
            (drawn_from if joint else drawn_from[0]) if behaves == "off-policy" else None,
        )
        for task in tasks:
            rewards[task].append(gains[task])
            x = slow_scaled(rewards[task], gains[task])
            assert metrics[f"{TASKS[task]}/scaled_reward" if joint else "scaled_reward"] == pytest.approx(x)
            for j in range(GROUPS):
                estimates = [x / drawn_from[task][j] if action == j else 0.0 for action in actions[task]]
                estimate = sum(estimates) / num_actions if drawn_from[task][j] else x
                weights[task][j] *= np.exp((num_actions**0.5 / 10 if eta is None else eta) * estimate)


def test_exp3_starts_as_the_random_policy_and_the_first_reward_changes_nothing():
    agent = Exp3(*SINGLE, seed=0)
    np.testing.assert_allclose(agent.probabilities(observe()), random_policy().probabilities(observe()), rtol=1e-14)
    agent.update(observe(), np.array([5, 0, 0, 0, 0]), reward=100.0)
    np.testing.assert_allclose(agent.probabilities(observe()), random_policy().probabilities(observe()), rtol=1e-14)


def test_the_weights_of_exp3_do_not_overflow():
    agent = Exp3(*SINGLE, seed=0, eta=1e3)
    for reward in (0.0, 1.0, 1.0, 1.0):
        agent.update(observe(), np.array([5, 0, 0, 0, 0]), reward)
    np.testing.assert_allclose(agent.probabilities(observe()), 0.9 * np.eye(GROUPS)[0] + 0.1 * FRACTIONS, rtol=1e-6)
    assert agent.probabilities(observe(fractions=np.roll(FRACTIONS, 2)))[0] > 0.9  # also where other groups are empty
    without = np.array([0, 0, 0, 0.5, 0.5])  # or the one with the large weight is
    np.testing.assert_allclose(agent.probabilities(observe(fractions=without)), without, rtol=1e-6)


# UCB1


def slow_ucb_indices(rewards: list[list[float]], c: float) -> list[float]:
    """Return the index of UCB1 for every arm, given the rewards of its plays."""
    all_rewards = [reward for own in rewards for reward in own]
    t = len(all_rewards)
    return [
        float(np.mean([slow_scaled(all_rewards, reward) for reward in own]) + c * (2 * np.log(t) / len(own)) ** 0.5)
        if own
        else np.inf
        for own in rewards
    ]


@pytest.mark.parametrize("case", ["single", "joint"])
@pytest.mark.parametrize("c", [0.3, 1.0])
def test_ucb_equals_a_slow_reference(case, c):
    joint = case == "joint"
    generator = np.random.default_rng(0)
    agent = Ucb(*(JOINT if joint else SINGLE), seed=0, share=0.25, c=c)
    tasks = range(2 if joint else 1)
    rewards: list[list[list[float]]] = [[[] for _ in range(GROUPS)] for _ in tasks]  # by task and arm
    for t in range(60):
        rows = generator.permuted(JOINT_FRACTIONS, axis=1) if t % 3 else JOINT_FRACTIONS
        observation = observe(t, rows if joint else rows[0])
        probabilities = agent.probabilities(observation).reshape(-1, GROUPS)
        gains = generator.normal(size=len(tasks)).tolist()
        counts = generator.multinomial(100, probabilities)
        metrics = agent.update(
            observation,
            counts if joint else counts[0],
            dict(zip(TASKS, gains, strict=True)) if joint else gains[0],
        )
        for task in tasks:
            arm = metrics[f"{TASKS[task]}/arm" if joint else "arm"]
            np.testing.assert_allclose(probabilities[task], 0.75 * rows[task] + 0.25 * np.eye(GROUPS)[arm], rtol=1e-6)
            indices = np.array(slow_ucb_indices(rewards[task], c))
            indices[rows[task] == 0] = -np.inf
            assert indices[arm] == pytest.approx(indices.max(), rel=1e-12)
            rewards[task][arm].append(gains[task])
    assert all(own for by_arm in rewards for own in by_arm)


def test_ucb_tries_every_group_once_in_random_order():
    orders = []
    for seed in range(200):
        agent = Ucb(*JOINT, seed=seed)
        observation = observe(fractions=JOINT_FRACTIONS)
        counts = (JOINT_FRACTIONS > 0).astype(int)
        arms = [agent.update(observation, counts, dict.fromkeys(TASKS, float(t))) for t in range(4)]
        orders.append([[arm[f"{task}/arm"] for arm in arms] for task in TASKS])
    first, second = np.moveaxis(np.array(orders), 1, 0)
    assert (np.sort(first) == [0, 1, 3, 4]).all()
    assert (np.sort(second) == [0, 1, 2, 4]).all()
    assert np.bincount(first[:, 0], minlength=GROUPS)[[0, 1, 3, 4]].min() > 30  # of 50 expected
    assert 10 < (first[:, 0] == second[:, 0]).sum() < 70  # 37.5 expected for independent orders


def test_ucb_is_tilted_towards_one_group_for_a_whole_update():
    agent, preferred = Ucb(*SINGLE, seed=0), []
    env = Bandit()
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        for _ in range(env.free_steps + env.update_steps):
            preferred.append(int(np.argmax(agent.probabilities(observation) - FRACTIONS)))
            action = agent.act(observation)
            next_observation, reward, terminated, truncated, info = env.step(action)
            agent.learn(Transition(observation, action, reward, next_observation, terminated, truncated, info))
            observation = next_observation
    cycles = np.array(preferred).reshape(5, -1)
    assert (cycles == cycles[:, :1]).all()
    assert set(cycles[:4, 0]) == {0, 1, 3, 4}


def test_ucb_does_not_learn_from_another_policy():
    with pytest.raises(ValueError, match=r"Ucb can only evaluate arms it played.*Exp3"):
        Ucb(*SINGLE, seed=0).update(observe(), np.array([1, 1, 0, 1, 1]), 0.5, behaviour=FRACTIONS)


# Learning


@pytest.mark.parametrize("best", [0, 1, 3, 4])
def test_the_bandits_learn_the_best_arm(best):
    env = Bandit(best=dict.fromkeys(BEST, best))
    chances, shares = [], []
    for seed in range(3):
        exp3, ucb = Exp3(*SINGLE, seed=seed), Ucb(*SINGLE, seed=seed)
        for agent in (exp3, ucb):
            run(agent, seed, steps=300 * (env.free_steps + env.update_steps), env=env)
        chances.append(exp3.probabilities(observe())[best])
        plays = np.array(ucb.state_dict()["plays"])
        shares.append(plays[best] / plays.sum())
    assert np.mean(chances) > 0.7  # the random policy's is at most 0.4
    assert np.min(shares) > 0.75  # of 0.25 in turn


def test_the_bandits_learn_the_best_arm_of_every_task():
    env = JointBandit(dict.fromkeys(BEST, 3), dict.fromkeys(BEST, 1))
    exp3, ucb = Exp3(*JOINT, seed=0), Ucb(*JOINT, seed=0)
    for agent in (exp3, ucb):
        run(agent, seed=0, steps=300 * (Bandit.free_steps + Bandit.update_steps), env=env)
    assert (exp3.probabilities(observe(fractions=JOINT_FRACTIONS))[[0, 1], [3, 1]] > 0.6).all()
    plays = np.array(ucb.state_dict()["plays"])
    assert (plays[[0, 1], [3, 1]] > 0.75 * plays.sum(axis=1)).all()


# Errors


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (Exp3, "gamma", 0.0),
        (Exp3, "gamma", 1.1),
        (Exp3, "eta", 0.0),
        (Exp3, "eta", float("inf")),
        (Ucb, "share", 1.1),
        (Ucb, "c", -1.0),
        (Ucb, "c", float("nan")),
    ],
)
def test_options_out_of_range_are_refused(kind, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}, it must be"):
        kind(*SINGLE, seed=0, **{option: value})
