"""The agents: exact gradients, what they may choose, what they learn, and that they continue bit for bit."""

import copy
import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import AGENTS as REGISTRY
from agents import (
    Agent,
    EasiestFirst,
    ErrorProportional,
    Exp3,
    FixedGroup,
    HardestFirst,
    InversePolicy,
    Lookahead,
    RandomPolicy,
    Reinforce,
    Transition,
    Ucb,
    UniformGroups,
    make,
)
from permenv import CheckpointError

FRACTIONS = np.array([0.1, 0.2, 0.0, 0.3, 0.4])  # group 2 is empty
JOINT_FRACTIONS = np.stack([FRACTIONS, [0.25, 0.25, 0.3, 0.0, 0.2]])  # of the second task, group 3 is
GROUPS = len(FRACTIONS)
TASKS = ("spatial", "temporal")
BEST = {"early": 0, "late": 3}  # the bandit's best group in either context
OTHER_BEST = {"early": 4, "late": 1}  # that of the joint bandit's second task


def spaces_of(*tasks: int) -> tuple[gym.spaces.Box, gym.Space]:
    """Return the observation and the action space of a single task, or of a joint one of that many."""
    low, high = (np.broadcast_to(np.float32(bound), (*tasks, GROUPS, 2)) for bound in ([0, 0.5], [1, 2]))
    action_space = gym.spaces.MultiDiscrete([GROUPS] * tasks[0]) if tasks else gym.spaces.Discrete(GROUPS)
    return gym.spaces.Box(low, high), action_space


SINGLE, JOINT = spaces_of(), spaces_of(2)
OBSERVATION_SPACE, ACTION_SPACE = SINGLE


class Bandit(gym.Env):
    """A contextual bandit that follows the protocol: free steps, then K credited ones with one reward."""

    observation_space, action_space = SINGLE
    free_steps, update_steps, num_updates = 3, 8, 6
    config = SimpleNamespace(total_updates=num_updates)

    def __init__(self, fractions: np.ndarray = FRACTIONS, best: dict[str, int] = BEST):
        self.fractions, self.best = fractions, best

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.hits, self.error = 0, 0, 1.0
        return self._observe(), {}

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
        observation = self._observe() if validated else self.observation
        truncated = self.steps == period * self.num_updates
        return observation, reward, False, truncated, {"validated": validated, "phase": phase, "error": self.error}

    def fork(self) -> "Bandit":
        return copy.deepcopy(self)

    def _observe(self) -> np.ndarray:
        self.context = "early" if self.np_random.random() < 0.5 else "late"
        median = {"early": 0.6, "late": 1.6}[self.context] + self.np_random.uniform(-0.1, 0.1, GROUPS)
        self.observation = np.stack([self.fractions, median], axis=1).astype(np.float32)
        return self.observation


class JointBandit(gym.Env):
    """Two bandits at once, each with groups, contexts and rewards of its own."""

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


def reinforce(seed: int = 0, spaces: tuple = SINGLE, **options: Any) -> Reinforce:
    return Reinforce(*spaces, seed=seed, **options)


def random_policy(seed: int = 0, spaces: tuple = SINGLE) -> RandomPolicy:
    return RandomPolicy(*spaces, seed=seed)


def inverse(seed: int = 0, spaces: tuple = SINGLE, **options: Any) -> InversePolicy:
    return InversePolicy(lean(reinforce(seed, spaces)), seed=seed, **options)


def twice_inverse(seed: int = 0, spaces: tuple = SINGLE) -> InversePolicy:
    return InversePolicy(inverse(seed, spaces), seed=seed + 1)


def on_spaces(kind: type[Agent], seed: int = 0, spaces: tuple = SINGLE, **options: Any) -> Agent:
    return kind(*spaces, seed=seed, **options)


def lookahead(seed: int = 0, spaces: tuple = SINGLE) -> Lookahead:
    env = Bandit() if spaces is SINGLE else JointBandit()
    env.reset(seed=seed)
    return Lookahead(env, seed=seed)


AGENTS = {
    "random": random_policy,
    "uniform": partial(on_spaces, UniformGroups),
    "fixed": partial(on_spaces, FixedGroup, group=1),
    "hardest-first": partial(on_spaces, HardestFirst, updates=10),
    "easiest-first": partial(on_spaces, EasiestFirst, updates=10),
    "error-proportional": partial(on_spaces, ErrorProportional),
    "exp3": partial(on_spaces, Exp3),
    "ucb": partial(on_spaces, Ucb),
    "lookahead": lookahead,
    "reinforce": reinforce,
    "reinforce-trace": partial(reinforce, discount=0.7, size_prior=False, normalise=False, credit="sum"),
    "inverse": inverse,
    "inverse-learning": partial(inverse, policy_learns=True),
    "inverse-inverse": twice_inverse,
}
DRAWING = {name: build for name, build in AGENTS.items() if name != "lookahead"}  # which plays what it has tried
ONE_SIDED = ("fixed", "hardest-first", "easiest-first")  # they leave groups out


def of_both_kinds(builders: dict[str, Any]) -> pytest.MarkDecorator:
    """Return the parametrisation over agents of a single task and of a joint one."""
    return pytest.mark.parametrize(
        "build",
        [
            pytest.param(partial(build, spaces=spaces), id=f"{kind}-{name}")
            for kind, spaces in (("single", SINGLE), ("joint", JOINT))
            for name, build in builders.items()
        ],
    )


each_agent = pytest.mark.parametrize("build", AGENTS.values(), ids=AGENTS)
all_agents = of_both_kinds(AGENTS)


def observe(seed: int = 0, fractions: np.ndarray = FRACTIONS) -> np.ndarray:
    """Return an observation with medians of its own."""
    median = np.random.default_rng(seed).uniform(0.5, 2, fractions.shape)
    return np.stack([fractions, median], axis=-1).astype(np.float32)


def fractions_of(agent: Agent) -> np.ndarray:
    """Return the groups' sizes in the agent's bandit."""
    return FRACTIONS if agent.num_tasks == 1 else JOINT_FRACTIONS


def lean(agent: Reinforce, scale: float = 1.0) -> Reinforce:
    """Move the agent's last layer away from zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in agent.network.last.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return agent


def run(agent: Agent, seed: int, steps: int, env: gym.Env | None = None) -> list[Any]:
    """Return the actions of some steps in the agent's bandit, as many episodes as it takes."""
    if isinstance(agent, Lookahead):
        env = agent.env
    env, actions = env or (Bandit() if agent.num_tasks == 1 else JointBandit()), []
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = agent.act(observation)
        observation_next, reward, terminated, truncated, info = env.step(action)
        agent.learn(Transition(observation, action, reward, observation_next, terminated, truncated, info))
        actions.append(np.asarray(action).tolist())
        observation = env.reset()[0] if truncated else observation_next
    return actions


def feed(agent: Agent, action: int, reward: float = 0.0, **info: Any) -> dict[str, float]:
    """Let the agent learn from one step on a fixed observation; every task takes the action and gets the reward."""
    info = {"validated": False, "phase": "update", "terminated": False, "truncated": False, **info}
    terminated, truncated = info.pop("terminated"), info.pop("truncated")
    observation = observe(fractions=fractions_of(agent))
    if agent.num_tasks > 1:
        action, info = np.full(agent.num_tasks, action), {"task_rewards": dict.fromkeys(TASKS, reward), **info}
    return agent.learn(Transition(observation, action, reward, observation, terminated, truncated, info))


def recorded_gradients(agent: Reinforce) -> list[dict[str, torch.Tensor]]:
    """Return a list that grows by the gradients of every step of Adam."""
    recorded: list[dict[str, torch.Tensor]] = []

    def record(*_: Any) -> None:
        recorded.append({name: p.grad.clone() for name, p in agent.network.named_parameters()})

    agent._adam.register_step_pre_hook(record)
    return recorded


def assert_equal_trees(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_trees(first[key], second[key])
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second


# What the agents choose


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


@of_both_kinds({name: build for name, build in AGENTS.items() if name not in ONE_SIDED})
def test_no_group_is_left_out_but_the_empty_ones(build):
    agent = build()
    run(agent, seed=0, steps=150)
    fractions = fractions_of(agent)
    assert ((agent.probabilities(observe(fractions=fractions)) > 0) == (fractions > 0)).all()


@each_agent
def test_an_action_is_a_group_or_one_a_task(build):
    assert type(build().act(observe())) is int
    actions = build(spaces=JOINT).act(observe(fractions=JOINT_FRACTIONS))
    assert (actions.shape, actions.dtype) == ((2,), np.int64)


@of_both_kinds(DRAWING)
def test_act_draws_with_the_probabilities(build):
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


def test_act_asks_for_probabilities_only_when_something_changed():
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


def test_act_of_an_inverse_follows_the_policy_it_owns():
    agent = InversePolicy(reinforce(entropy_weight=0), seed=0)
    before = agent.probabilities(observe())
    agent.act(observe())
    for reward in (0.0, 1.0):
        agent.policy.update(observe(), np.array([0, 0, 0, 0, 5]), reward)
    agent.act(observe())
    assert agent._probabilities[4] < before[4]


def test_the_random_policy_is_uniform_over_permutations():
    np.testing.assert_allclose(random_policy().probabilities(observe()), FRACTIONS, rtol=1e-6)


def test_reinforce_starts_at_its_prior():
    np.testing.assert_allclose(
        reinforce().probabilities(observe()), random_policy().probabilities(observe()), rtol=1e-14
    )
    over_groups = reinforce(size_prior=False).probabilities(observe())
    np.testing.assert_allclose(over_groups, [0.25, 0.25, 0, 0.25, 0.25], rtol=1e-14)


def test_inverse_of_random_is_random():
    inverse = InversePolicy(random_policy(), seed=0).probabilities(observe())
    np.testing.assert_allclose(inverse, random_policy().probabilities(observe()), rtol=1e-14)


def test_the_random_policy_is_uniform_over_each_tasks_permutations():
    probabilities = random_policy(spaces=JOINT).probabilities(observe(fractions=JOINT_FRACTIONS))
    np.testing.assert_allclose(probabilities, JOINT_FRACTIONS, rtol=1e-6)


def test_a_joint_policy_is_inverted_task_by_task():
    policy, observation = lean(reinforce(spaces=JOINT)), observe(fractions=JOINT_FRACTIONS)
    inverse = InversePolicy(policy, seed=0).probabilities(observation)
    for chances, fractions, inverted in zip(policy.probabilities(observation), JOINT_FRACTIONS, inverse, strict=True):
        full = fractions > 0
        expected = fractions[full] ** 2 / chances[full]
        np.testing.assert_allclose(inverted[full], expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("size_prior", [False, True])
def test_every_head_of_reinforce_has_its_own_prior(size_prior):
    observation = observe(fractions=JOINT_FRACTIONS)
    joint = reinforce(spaces=JOINT, size_prior=size_prior).probabilities(observation)
    for task in range(2):
        single = reinforce(size_prior=size_prior).probabilities(observation[task])
        np.testing.assert_allclose(joint[task], single, rtol=1e-14)


@pytest.mark.parametrize("build", DRAWING.values(), ids=DRAWING)
def test_a_joint_task_of_one_is_the_single_task_bit_for_bit(build):
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


def test_inverse_prefers_what_the_policy_discards():
    policy = lean(reinforce())
    inverse = InversePolicy(policy, seed=0).probabilities(observe())
    full = FRACTIONS > 0
    preference = np.log(policy.probabilities(observe())[full] / FRACTIONS[full])
    discarded = np.log(inverse[full] / FRACTIONS[full])
    np.testing.assert_allclose(preference - preference.mean(), -(discarded - discarded.mean()), atol=1e-6)


def test_inverse_of_inverse_is_the_policy():
    policy = lean(reinforce())
    twice = InversePolicy(InversePolicy(policy, seed=0), seed=0)
    np.testing.assert_allclose(twice.probabilities(observe()), policy.probabilities(observe()), rtol=1e-12)


def test_inverse_of_a_policy_that_all_but_discards_a_group():
    policy = lean(reinforce(), scale=1e3)
    assert policy.probabilities(observe()).min(where=FRACTIONS > 0, initial=1) < 1e-300
    inverse = InversePolicy(policy, seed=0).probabilities(observe())
    assert np.isfinite(inverse).all()
    assert inverse.sum() == pytest.approx(1)
    assert inverse[2] == 0


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
def test_a_fixed_group_that_is_empty_stands_for_the_easiest_that_is_not(fractions, group, chosen):
    agent = FixedGroup(*SINGLE, seed=0, group=group)
    np.testing.assert_array_equal(agent.probabilities(observe(fractions=np.array(fractions))), np.eye(GROUPS)[chosen])


def test_a_fixed_group_is_every_tasks():
    agent = FixedGroup(*JOINT, seed=0, group=3)
    assert {tuple(agent.act(observe(fractions=JOINT_FRACTIONS))) for _ in range(20)} == {(3, 4)}


def slow_pool(sizes: list[int], pool: int, easiest_first: bool) -> list[int]:
    """Return how many of the first permutations in the curriculum's order are each group's, one by one."""
    permutations = [group for group, size in enumerate(sizes) for _ in range(size)]
    inside = permutations[::-1][:pool] if easiest_first else permutations[:pool]
    return [inside.count(group) for group in range(len(sizes))]


@pytest.mark.parametrize("kind", [HardestFirst, EasiestFirst])
@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=GROUPS, max_size=GROUPS).filter(any),
    completed=st.integers(0, 12),
)
def test_a_pool_holds_its_permutations_alike(kind, sizes, completed):
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
    # between the pools of whole permutations on either side
    inside, pool = probabilities * share * size, share * size
    assert (inside >= np.array(slow_pool(sizes, int(np.floor(pool + 1e-9)), kind is EasiestFirst)) - 1e-4).all()
    assert (inside <= np.array(slow_pool(sizes, int(np.ceil(pool - 1e-9)), kind is EasiestFirst)) + 1e-4).all()


@pytest.mark.parametrize(("kind", "easiest_first"), [(HardestFirst, False), (EasiestFirst, True)])
def test_a_pool_equals_a_slow_reference_task_by_task(kind, easiest_first):
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


def test_error_proportional_weights_permutations_by_how_hard_their_group_is():
    observation = observe(fractions=JOINT_FRACTIONS)
    probabilities = ErrorProportional(*JOINT, seed=0).probabilities(observation)
    for row, chances in zip(observation.tolist(), probabilities, strict=True):
        weights = [fraction * (2 - median) for fraction, median in row]
        np.testing.assert_allclose(chances, np.array(weights) / sum(weights), rtol=1e-12)


def test_error_proportional_draws_perfect_groups_only_where_all_are():
    agent = ErrorProportional(*SINGLE, seed=0)
    observation = observe()
    observation[3:, 1] = 2
    assert (agent.probabilities(observation)[3:] == 0).all()
    observation[:, 1] = 2
    np.testing.assert_allclose(agent.probabilities(observation), FRACTIONS, rtol=1e-6)


# Bandits


def slow_scaled(rewards: list[float], reward: float) -> float:
    """Return a reward as its place between the lowest and the highest so far."""
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
        rows = generator.permuted(JOINT_FRACTIONS, axis=1)  # other groups are empty every time
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


def test_exp3_starts_as_the_random_policy_and_one_first_reward_moves_nothing():
    agent = Exp3(*SINGLE, seed=0)
    np.testing.assert_allclose(agent.probabilities(observe()), random_policy().probabilities(observe()), rtol=1e-14)
    agent.update(observe(), np.array([5, 0, 0, 0, 0]), reward=100.0)
    np.testing.assert_allclose(agent.probabilities(observe()), random_policy().probabilities(observe()), rtol=1e-14)


def test_the_weights_of_exp3_do_not_overflow():
    agent = Exp3(*SINGLE, seed=0, eta=1e3)
    for reward in (0.0, 1.0, 1.0, 1.0):
        agent.update(observe(), np.array([5, 0, 0, 0, 0]), reward)
    np.testing.assert_allclose(agent.probabilities(observe()), 0.9 * np.eye(GROUPS)[0] + 0.1 * FRACTIONS, rtol=1e-6)
    assert agent.probabilities(observe(fractions=np.roll(FRACTIONS, 2)))[0] > 0.9  # and others are empty
    without = np.array([0, 0, 0, 0.5, 0.5])  # nor where the heavy one is
    np.testing.assert_allclose(agent.probabilities(observe(fractions=without)), without, rtol=1e-6)


def slow_ucb_indices(rewards: list[list[float]], c: float) -> list[float]:
    """Return UCB1's index of every arm, given the rewards of its plays."""
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
        counts = np.round(100 * probabilities).astype(int)
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
    assert 10 < (first[:, 0] == second[:, 0]).sum() < 70  # of 37.5, were the tasks' orders independent


def test_ucb_leans_to_one_group_for_a_whole_update():
    agent, leant_to = Ucb(*SINGLE, seed=0), []
    env = Bandit()
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        for _ in range(env.free_steps + env.update_steps):
            leant_to.append(int(np.argmax(agent.probabilities(observation) - FRACTIONS)))
            action = agent.act(observation)
            observation_next, reward, terminated, truncated, info = env.step(action)
            agent.learn(Transition(observation, action, reward, observation_next, terminated, truncated, info))
            observation = observation_next
    cycles = np.array(leant_to).reshape(5, -1)
    assert (cycles == cycles[:, :1]).all()
    assert set(cycles[:4, 0]) == {0, 1, 3, 4}


def test_ucb_does_not_learn_from_others():
    with pytest.raises(ValueError, match=r"Ucb judges the arms it played.*Exp3"):
        Ucb(*SINGLE, seed=0).update(observe(), np.array([1, 1, 0, 1, 1]), 0.5, behaviour=FRACTIONS)


# Exact gradients


LogPolicy = dict[int, torch.Tensor]  # log π by group, of the groups that are not empty


def slow_log_policies(parameters: dict, observation: np.ndarray, size_prior: bool) -> list[LogPolicy]:
    """Return every task's log π, written out; the observation is (T, |C|, 2)."""
    states = torch.tensor(observation, dtype=torch.float64)
    hidden = torch.tanh(parameters["first.weight"] @ states.reshape(-1) + parameters["first.bias"])
    logits = parameters["last.weight"] @ hidden + parameters["last.bias"]
    policies = []
    for task, state in enumerate(states):
        weights = {
            group: torch.exp(logits[task * GROUPS + group]) * (state[group, 0] if size_prior else 1)
            for group in range(GROUPS)
            if state[group, 0] > 0
        }
        policies.append({group: torch.log(weight / sum(weights.values())) for group, weight in weights.items()})
    return policies


def slow_entropy(log_policy: LogPolicy, fractions: np.ndarray, size_prior: bool) -> torch.Tensor:
    """Return the entropy over 1000 permutations with the size prior, over groups without."""
    return -sum(
        log_chance.exp() * (log_chance - np.log(1000 * fractions[group] if size_prior else 1))
        for group, log_chance in log_policy.items()
    )


def slow_average(values: list[float], decay: float) -> float:
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    return float(np.average(values, weights=weights))


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("size_prior", [False, True], ids=["groups", "sizes"])
@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("case", ["single", "joint-own", "joint-sum"])
def test_updates_equal_a_slow_reference(case, discount, size_prior, normalise, off_policy):
    decay, entropy_weight, num_actions = 0.8, 0.3, 5
    joint, credit = case != "single", case.removeprefix("joint-")
    fractions = JOINT_FRACTIONS if joint else FRACTIONS[None]  # the reference always has an axis of tasks
    tasks = range(len(fractions))
    agent = lean(
        reinforce(
            spaces=JOINT if joint else SINGLE,
            discount=discount,
            size_prior=size_prior,
            normalise=normalise,
            baseline_decay=decay,
            entropy_weight=entropy_weight,
            credit=credit if joint else "own",
        )
    )
    gradients = recorded_gradients(agent)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in agent.network.named_parameters()}
    adam = torch.optim.Adam(parameters.values(), lr=0.01)
    generator = np.random.default_rng(0)
    behaviour = (fractions > 0) / np.count_nonzero(fractions, axis=1, keepdims=True)
    scores: list[list[dict[str, torch.Tensor]]] = [[] for _ in tasks]  # of each task, one an update
    rewards: list[list[float]] = [[] for _ in tasks]
    squares: list[list[float]] = [[] for _ in tasks]

    def gradient(value: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
        return dict(zip(parameters, found, strict=True))

    for t in range(5):
        observation = observe(t, fractions)
        actions = np.stack([generator.choice(np.flatnonzero(row), size=num_actions) for row in fractions], axis=1)
        gains = generator.normal(size=len(tasks)).tolist()
        for k, action in enumerate(actions):
            info = {"validated": k == num_actions - 1, "phase": "update"}
            if joint:
                info["task_rewards"] = dict(zip(TASKS, gains, strict=True))
            metrics = agent.learn(
                Transition(
                    observation if joint else observation[0],
                    action if joint else int(action[0]),
                    float(np.mean(gains)),
                    observation,
                    False,
                    False,
                    info,
                ),
                (behaviour if joint else behaviour[0]) if off_policy else None,
            )

        log_policies = slow_log_policies(parameters, observation, size_prior)
        ascent = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for task in tasks:
            log_policy = log_policies[task]
            log_likelihood = 0
            for group in actions[:, task]:
                weight = log_policy[group].exp().item() / behaviour[task, group] if off_policy else 1
                log_likelihood = log_likelihood + weight * log_policy[group]
            scores[task].append(gradient(log_likelihood / num_actions**0.5))
            reward = sum(gains) if credit == "sum" else gains[task]
            baseline = slow_average(rewards[task], decay) if t else reward
            advantage = reward - baseline
            rewards[task].append(reward)
            if t and normalise:
                squares[task].append(advantage**2)
                advantage /= np.sqrt(slow_average(squares[task], decay)) + 1e-8
            entropy = gradient(slow_entropy(log_policy, observation[task, :, 0].astype(float), size_prior))
            for name in parameters:
                trace = sum(discount ** (t - i) * scores[task][i][name] for i in range(t + 1))
                ascent[name] += advantage * trace + entropy_weight * entropy[name]
            prefix = f"{TASKS[task]}/" if joint else ""
            assert metrics[f"{prefix}baseline"] == pytest.approx(baseline)
            assert metrics[f"{prefix}advantage"] == pytest.approx(advantage)
        for name, parameter in parameters.items():
            parameter.grad = -ascent[name]
            torch.testing.assert_close(gradients[t][name], parameter.grad, rtol=1e-10, atol=1e-12)
        adam.step()
        for name, parameter in agent.network.named_parameters():
            torch.testing.assert_close(parameter, parameters[name], rtol=1e-8, atol=1e-10)


def test_own_credit_ignores_the_other_tasks_reward_and_the_sum_does_not():
    def gradient_of_the_first_head(credit: str, other_reward: float) -> torch.Tensor:
        agent = lean(reinforce(spaces=JOINT, credit=credit, normalise=False))
        gradients = recorded_gradients(agent)
        observation, counts = observe(fractions=JOINT_FRACTIONS), np.array([[3, 0, 0, 4, 1], [1, 1, 6, 0, 0]])
        agent.update(observation, counts, {"spatial": 0.2, "temporal": 0.2})  # the baselines
        agent.update(observation, counts, {"spatial": 0.7, "temporal": other_reward})
        return gradients[1]["last.weight"][:GROUPS]

    own = [gradient_of_the_first_head("own", other_reward) for other_reward in (0.0, 100.0)]
    assert own[0].abs().max() > 0.01
    assert torch.equal(*own)
    of_the_sum = [gradient_of_the_first_head("sum", other_reward) for other_reward in (0.0, 100.0)]
    assert not torch.allclose(*of_the_sum)


def test_gradient_of_the_last_bias_in_closed_form():
    agent = lean(reinforce(normalise=False, entropy_weight=0.5))
    gradients = recorded_gradients(agent)
    agent.update(observe(), np.array([1, 0, 0, 0, 0]), reward=0.25)  # the baseline
    policy = agent.probabilities(observe())
    counts = np.array([3, 0, 0, 4, 1])
    agent.update(observe(), counts, reward=1.0)
    leaning = np.log(policy, where=FRACTIONS > 0, out=np.zeros(GROUPS)) - np.log(
        FRACTIONS, where=FRACTIONS > 0, out=np.zeros(GROUPS)
    )
    ascent = 0.75 * (counts - 8 * policy) / 8**0.5 - 0.5 * policy * (leaning - policy @ leaning)
    np.testing.assert_allclose(-gradients[1]["last.bias"].numpy(), ascent, atol=1e-8)


def test_the_metrics():
    agent = reinforce(normalise=False, baseline_decay=0.5)
    first = agent.update(observe(), np.array([1, 1, 0, 1, 1]), reward=1.0)
    assert (first["baseline"], first["advantage"]) == (1.0, 0.0)
    entropy = -sum(f * np.log(f) for f in FRACTIONS if f)
    assert first["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert first["divergence"] == pytest.approx(0, abs=1e-14)
    second = agent.update(observe(), np.array([1, 1, 0, 1, 1]), reward=4.0)
    assert (second["baseline"], second["advantage"]) == (1.0, 3.0)
    third = agent.update(observe(), np.array([1, 1, 0, 1, 1]), reward=0.0)
    assert third["baseline"] == pytest.approx((0.5 * 1 + 4) / 1.5)
    assert third["divergence"] > 0


@pytest.mark.parametrize("credit", ["own", "sum"])
def test_the_metrics_of_a_joint_task_are_named_by_task(credit):
    agent = reinforce(spaces=JOINT, normalise=False, credit=credit)
    counts = (JOINT_FRACTIONS > 0).astype(int)
    agent.update(observe(fractions=JOINT_FRACTIONS), counts, {"spatial": 1.0, "temporal": 0.5})
    metrics = agent.update(observe(fractions=JOINT_FRACTIONS), counts, {"spatial": 4.0, "temporal": 0.0})
    names = ("loss", "entropy", "divergence", "baseline", "advantage")
    assert list(metrics) == [f"{task}/{name}" for task in TASKS for name in names]
    for task, baseline, advantage, fractions in zip(TASKS, (1.0, 0.5), (3.0, -0.5), JOINT_FRACTIONS, strict=True):
        expected = (baseline, advantage) if credit == "own" else (1.5, 2.5)
        assert (metrics[f"{task}/baseline"], metrics[f"{task}/advantage"]) == expected
        entropy = -sum(f * np.log(f) for f in fractions if f)
        assert metrics[f"{task}/entropy"] == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("size_prior", [False, True])
def test_the_entropy_term_alone_leads_back_to_the_prior(size_prior):
    agent = lean(reinforce(size_prior=size_prior, entropy_weight=1.0))
    for _ in range(300):
        agent.update(observe(), np.array([1, 0, 0, 0, 0]), reward=0.0)
    start = reinforce(size_prior=size_prior).probabilities(observe())
    np.testing.assert_allclose(agent.probabilities(observe()), start, atol=1e-3)


def test_one_first_reward_moves_nothing():
    agent = reinforce()
    before = agent.probabilities(observe())
    agent.update(observe(), np.array([5, 0, 0, 0, 0]), reward=100.0)
    np.testing.assert_allclose(agent.probabilities(observe()), before, atol=1e-8)


def test_normalised_advantages_do_not_depend_on_the_scale_of_rewards():
    probabilities = []
    for scale in (1e-3, 1.0):
        agent = reinforce(entropy_weight=0.1)
        for t, reward in enumerate([0.3, -0.2, 0.5, 0.1, -0.4]):
            agent.update(observe(t), np.array([t, 1, 0, 2, 1]), scale * reward)
        probabilities.append(agent.probabilities(observe()))
    np.testing.assert_allclose(*probabilities, rtol=1e-3)


def test_importance_weights_give_the_on_policy_gradient_in_expectation():
    policy = lean(reinforce(normalise=False, entropy_weight=0))
    policy._reward_averages[0].add(0.2)
    start = policy.state_dict()
    gradients = recorded_gradients(policy)
    rewards = np.array([1.0, -2.0, 0.0, 0.5, 3.0])

    def expected_gradient(behaviour: np.ndarray | None, drawn: np.ndarray) -> torch.Tensor:
        total = torch.zeros(GROUPS, 2 * 8, dtype=torch.float64)
        for action in np.flatnonzero(drawn):
            policy.load_state_dict(start)
            policy.update(observe(), np.eye(GROUPS, dtype=int)[action], rewards[action], behaviour)
            total += drawn[action] * gradients[-1]["last.weight"]
        return total

    q = InversePolicy(policy, seed=0).probabilities(observe())
    on_policy = expected_gradient(None, policy.probabilities(observe()))
    assert on_policy.abs().max() > 0.01
    torch.testing.assert_close(expected_gradient(q, q), on_policy, rtol=1e-10, atol=1e-12)


def test_inverse_lets_its_policy_learn_with_importance_weights():
    agent = InversePolicy(lean(reinforce(entropy_weight=0, normalise=False)), seed=0, policy_learns=True)
    other = lean(reinforce(entropy_weight=0, normalise=False))
    for reward in (0.0, 1.0):
        q = agent.probabilities(observe())
        feed(agent, 1)
        metrics = feed(agent, 3, reward, validated=True)
        assert metrics == other.update(observe(), np.array([0, 1, 0, 1, 0]), reward, behaviour=q)
    assert_equal_trees(agent.policy.state_dict(), other.state_dict())


# Which steps are credited


@all_agents
def test_free_steps_change_nothing(build):
    agent = build()
    run(agent, seed=0, steps=20)
    before = agent.state_dict()
    assert feed(agent, 1, phase="free") == {}
    assert feed(agent, 3, phase="free", validated=True) == {}
    assert_equal_trees(agent.state_dict(), before)


def test_an_update_credits_its_own_actions_only():
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


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
@pytest.mark.parametrize("phase", ["free", "update"])
def test_the_end_of_an_episode_clears_the_trace_and_keeps_the_averages(ending, phase):
    agent = reinforce(discount=0.9)
    for reward in (0.1, 0.3):
        feed(agent, 0, reward, validated=True)
    feed(agent, 0)
    assert any(trace.any() for trace in agent.state_dict()["trace"].values())
    feed(agent, 1, 0.2, validated=phase == "update", phase=phase, **{ending: True})
    state = agent.state_dict()
    assert not any(trace.any() for trace in state["trace"].values())
    assert state["counts"] == [0] * GROUPS
    assert state["reward_averages"][0]["weight"] > 1


# Learning


def test_reinforce_learns_the_bandit():
    env, chances = Bandit(), []
    for seed in range(4):
        agent = reinforce(seed, entropy_weight=0.15)
        run(agent, seed, steps=800 * (env.free_steps + env.update_steps))
        env.reset(seed=100 + seed)
        observations = [(env._observe(), BEST[env.context]) for _ in range(50)]
        chances.append(np.mean([agent.probabilities(observation)[best] for observation, best in observations]))
    # The random policy's chance of the best group is 0.2, the best one's that ignores the context 0.5.
    assert np.mean(chances) > 0.7
    assert np.min(chances) > 0.4


@pytest.mark.parametrize(("credit", "updates"), [("own", 1200), ("sum", 2000)])  # the sum has the other's noise too
def test_reinforce_learns_a_best_group_for_each_task_of_the_joint_bandit(credit, updates):
    env, chances = JointBandit(), []
    for seed in range(2):
        agent = reinforce(seed, JOINT, entropy_weight=0.2, credit=credit)
        run(agent, seed, steps=updates * (Bandit.free_steps + Bandit.update_steps))
        for test in range(50):
            observation, _ = env.reset(seed=100 + test)
            best = [bandit.best[bandit.context] for bandit in env.bandits]
            chances.append(agent.probabilities(observation)[[0, 1], best])
    # The random policy's chances are below 0.3, those of the best one's that ignores the contexts 0.5.
    assert (np.mean(chances, axis=0) > 0.6).all()


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
def test_another_agents_file_is_refused(other, tmp_path):
    path = tmp_path / "agent.safetensors"
    other.save(path)
    agent = reinforce()
    before = agent.state_dict()
    with pytest.raises(ValueError, match=r"agent\.safetensors.*Build the agent as the saved one was built"):
        agent.load(path)
    assert_equal_trees(agent.state_dict(), before)


@each_agent
def test_the_state_of_another_class_is_refused(build):
    agent = build()
    before = agent.state_dict()
    for other in AGENTS.values():
        if type(other()) is not type(agent):
            with pytest.raises(ValueError, match=r"does not fit.*Build the agent as the saved one was built"):
                agent.load_state_dict(other().state_dict())
    assert_equal_trees(agent.state_dict(), before)


@each_agent
def test_a_state_of_another_number_of_tasks_is_refused(build):
    for one, other in ((SINGLE, JOINT), (JOINT, SINGLE)):
        agent = build(spaces=one)
        before = agent.state_dict()
        with pytest.raises(ValueError, match=r"'tasks': .*does not fit.*'tasks': "):
            agent.load_state_dict(build(spaces=other).state_dict())
        assert_equal_trees(agent.state_dict(), before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        reinforce().load(tmp_path / "nowhere")


# Randomness


@all_agents
def test_the_seed_decides_everything(build):
    actions = run(build(seed=3), seed=0, steps=100)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert run(build(seed=3), seed=0, steps=100) == actions
    if not isinstance(build(), FixedGroup):  # which draws nothing
        assert run(build(seed=4), seed=0, steps=100) != actions


@all_agents
def test_global_random_states_stay_untouched(build):
    def states() -> tuple:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    run(build(), seed=0, steps=60)
    assert states() == before


# Errors


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (OBSERVATION_SPACE, gym.spaces.Discrete(GROUPS, start=1), "start at 0"),
        (OBSERVATION_SPACE, gym.spaces.Box(0, 1, (GROUPS,)), "from Discrete"),
        (OBSERVATION_SPACE, gym.spaces.Discrete(4), r"\(4, 2\)"),
        (OBSERVATION_SPACE, JOINT[1], r"\(2, 5, 2\).*wrappers"),
        (JOINT[0], gym.spaces.MultiDiscrete([5, 4]), "as many groups for every task"),
        (JOINT[0], gym.spaces.MultiDiscrete([5, 5], start=[0, 1]), "start at 0"),
        (JOINT[0], gym.spaces.MultiDiscrete([[5, 5]]), "as many groups for every task"),
        (JOINT[0], gym.spaces.MultiDiscrete([5, 5, 5]), r"\(3, 5, 2\)"),
        (gym.spaces.Box(0, 2, (20,)), JOINT[1], "FlattenObservation"),
        (gym.spaces.Box(0, 2, (2, GROUPS, 2)), ACTION_SPACE, r"\(5, 2\).*wrappers"),
        (gym.spaces.Discrete(3), ACTION_SPACE, "wrappers"),
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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden", 0),
        ("learning_rate", 0.0),
        ("discount", 1.1),
        ("baseline_decay", 1.0),
        ("entropy_weight", -0.1),
        ("learning_rate", float("nan")),
        ("credit", "both"),
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is"):
        reinforce(**{option: value})


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (FixedGroup, "group", -1),
        (FixedGroup, "group", GROUPS),
        (HardestFirst, "start", 0.0),
        (EasiestFirst, "start", 1.1),
        (EasiestFirst, "updates", 0),
        (Exp3, "gamma", 0.0),
        (Exp3, "gamma", 1.1),
        (Exp3, "eta", 0.0),
        (Exp3, "eta", float("inf")),
        (Ucb, "share", 1.1),
        (Ucb, "c", -1.0),
        (Ucb, "c", float("nan")),
    ],
)
def test_options_of_the_others_out_of_range_are_refused(kind, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}, it must be"):
        kind(*SINGLE, seed=0, **{option: value})


@pytest.mark.parametrize("action", [-1, GROUPS, 1.5])
def test_actions_outside_the_space_are_refused(action):
    with pytest.raises(ValueError, match="no group"):
        feed(reinforce(), action)


@pytest.mark.parametrize("action", [0, [0, GROUPS], [-1, 0], [0, 0, 0], [0.5, 1]])
def test_actions_outside_the_joint_space_are_refused(action):
    observation = observe(fractions=JOINT_FRACTIONS)
    info = {"phase": "update", "validated": False, "task_rewards": dict.fromkeys(TASKS, 0.0)}
    with pytest.raises(ValueError, match="no group"):
        reinforce(spaces=JOINT).learn(Transition(observation, np.array(action), 0.0, observation, False, False, info))


def test_a_joint_task_needs_every_tasks_reward():
    agent, observation = reinforce(spaces=JOINT), observe(fractions=JOINT_FRACTIONS)
    counts = (JOINT_FRACTIONS > 0).astype(int)
    with pytest.raises(ValueError, match=r"info\['task_rewards'\] must hold.*Pass the info"):
        agent.learn(
            Transition(
                observation, np.zeros(2, int), 0.0, observation, False, False, {"phase": "update", "validated": True}
            )
        )
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


def test_infos_outside_the_protocol_are_refused():
    for info in ({}, {"phase": "update"}, {"phase": "warmup", "validated": True}):
        with pytest.raises(ValueError, match="phase"):
            reinforce().learn(Transition(observe(), 0, 0.0, observe(), False, False, info))


def test_impossible_updates_are_refused():
    with pytest.raises(ValueError, match="reward is nan"):
        reinforce().update(observe(), np.array([1, 0, 0, 0, 0]), float("nan"))
    with pytest.raises(ValueError, match="own actions"):
        reinforce().update(observe(), np.array([0, 0, 1, 0, 0]), 0.0)
    with pytest.raises(ValueError, match="cannot learn"):
        InversePolicy(random_policy(), seed=0, policy_learns=True)


# By name


@pytest.mark.parametrize("bandit", [Bandit, JointBandit])
def test_every_agent_is_made_by_its_name_and_acts(bandit):
    classes = set()
    for name in REGISTRY:
        env = bandit()
        env.reset(seed=0)
        agent = make(name, env, seed=0)
        classes.add(type(agent))
        actions = run(agent, 0, 60, env)
        assert all(env.action_space.contains(np.array(action)) for action in actions)
        assert run(make(name, env, seed=0), 0, 60, env) == actions
    assert len(classes) == len(REGISTRY) == 11


def test_make_derives_its_seeds_as_the_main_job_does():
    env = Bandit()
    outer, inner = (int(word) for word in np.random.SeedSequence(5).generate_state(2))
    for name, expected in {
        "random": RandomPolicy(*SINGLE, seed=outer),
        "reinforce": Reinforce(*SINGLE, seed=inner),
        "inverse": InversePolicy(Reinforce(*SINGLE, seed=inner), seed=outer, policy_learns=True),
    }.items():
        agent = make(name, env, seed=5)
        assert_equal_trees(agent.state_dict(), expected.state_dict())
        assert run(agent, seed=5, steps=60) == run(expected, seed=5, steps=60)


def test_make_passes_options_on(make_env):
    env = make_env(total_updates=7)
    assert make("hardest-first", env, seed=0).updates == 7
    assert make("easiest-first", env, seed=0, updates=3, start=0.2).updates == 3
    assert make("inverse", env, seed=0, hidden=5).policy.hidden == 5
    assert make("fixed", env, seed=0, group=2).group == 2
    assert make("lookahead", env, seed=0, share=0.3).env is env


def test_the_seed_of_an_agent_made_may_be_the_environments():
    env = Bandit()
    env.reset(seed=3)
    numbers = env.np_random.random(20)
    for name in REGISTRY:
        assert not np.isin(make(name, env, seed=3)._generator.random(20), numbers).any()


def test_an_unknown_name_is_refused_with_the_close_ones():
    with pytest.raises(ValueError, match="no agent 'uniforn': did you mean 'uniform'"):
        make("uniforn", Bandit(), seed=0)
    with pytest.raises(ValueError, match="no agent 'zzz': choose one of random, uniform, fixed"):
        make("zzz", Bandit(), seed=0)
