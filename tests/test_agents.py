"""The agents: exact gradients, what they may choose, what they learn, and that they continue bit for bit."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import Agent, InversePolicy, RandomPolicy, Reinforce
from permenv import CheckpointError

FRACTIONS = np.array([0.1, 0.2, 0.0, 0.3, 0.4])  # group 2 is empty
GROUPS = len(FRACTIONS)
OBSERVATION_SPACE = gym.spaces.Box(
    np.tile(np.float32([0, 0.5]), (GROUPS, 1)), np.tile(np.float32([1, 2]), (GROUPS, 1)), dtype=np.float32
)
ACTION_SPACE = gym.spaces.Discrete(GROUPS)
BEST = {"early": 0, "late": 3}  # the bandit's best group in either context


class Bandit(gym.Env):
    """A contextual bandit that follows the protocol: free steps, then K credited ones with one reward."""

    observation_space = OBSERVATION_SPACE
    action_space = ACTION_SPACE
    free_steps, update_steps, num_updates = 3, 8, 6

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.hits = 0, 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        period = self.free_steps + self.update_steps
        phase = "free" if self.steps % period < self.free_steps else "update"
        self.steps += 1
        validated = self.steps % period in (0, self.free_steps)
        self.hits += phase == "update" and action == BEST[self.context]
        reward = 0.0
        if validated and phase == "update":
            reward = 0.01 * (self.hits / self.update_steps + 0.1 * self.np_random.normal())
            self.hits = 0
        observation = self._observe() if validated else self.observation
        truncated = self.steps == period * self.num_updates
        return observation, reward, False, truncated, {"validated": validated, "phase": phase}

    def _observe(self) -> np.ndarray:
        self.context = "early" if self.np_random.random() < 0.5 else "late"
        median = {"early": 0.6, "late": 1.6}[self.context] + self.np_random.uniform(-0.1, 0.1, GROUPS)
        self.observation = np.stack([FRACTIONS, median], axis=1).astype(np.float32)
        return self.observation


def reinforce(seed: int = 0, **options: Any) -> Reinforce:
    return Reinforce(OBSERVATION_SPACE, ACTION_SPACE, seed=seed, **options)


def random_policy(seed: int = 0) -> RandomPolicy:
    return RandomPolicy(OBSERVATION_SPACE, ACTION_SPACE, seed=seed)


AGENTS = {
    "random": random_policy,
    "reinforce": reinforce,
    "reinforce-trace": lambda seed=0: reinforce(seed, discount=0.7, size_prior=False, normalise=False),
    "inverse": lambda seed=0: InversePolicy(lean(reinforce(seed)), seed=seed),
    "inverse-learning": lambda seed=0: InversePolicy(lean(reinforce(seed)), seed=seed, policy_learns=True),
    "inverse-inverse": lambda seed=0: InversePolicy(InversePolicy(lean(reinforce(seed)), seed=seed + 1), seed=seed),
}
all_agents = pytest.mark.parametrize("build", AGENTS.values(), ids=AGENTS)


def observe(seed: int = 0) -> np.ndarray:
    """Return an observation with medians of its own."""
    median = np.random.default_rng(seed).uniform(0.5, 2, GROUPS)
    return np.stack([FRACTIONS, median], axis=1).astype(np.float32)


def lean(agent: Reinforce, scale: float = 1.0) -> Reinforce:
    """Move the agent's last layer away from zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in agent.network.last.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return agent


def run(agent: Agent, seed: int, steps: int) -> list[int]:
    """Return the actions of some steps in the bandit, as many episodes as it takes."""
    env, actions = Bandit(), []
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = agent.act(observation)
        observation_next, reward, terminated, truncated, info = env.step(action)
        agent.learn(observation, action, reward, observation_next, terminated, truncated, info)
        actions.append(action)
        observation = env.reset()[0] if truncated else observation_next
    return actions


def feed(agent: Agent, action: int, reward: float = 0.0, **info: Any) -> dict[str, float]:
    """Let the agent learn from one step on a fixed observation."""
    info = {"validated": False, "phase": "update", "terminated": False, "truncated": False, **info}
    terminated, truncated = info.pop("terminated"), info.pop("truncated")
    return agent.learn(observe(), action, reward, observe(), terminated, truncated, info)


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
    probabilities = build().probabilities(observe())
    assert probabilities.shape == (GROUPS,)
    assert probabilities.dtype == np.float64
    assert probabilities.sum() == pytest.approx(1, abs=1e-14)
    assert ((probabilities == 0) == (FRACTIONS == 0)).all()


@all_agents
def test_act_draws_with_the_probabilities(build):
    agent, draws = build(), 4000
    expected = draws * agent.probabilities(observe())
    counts = np.bincount([agent.act(observe()) for _ in range(draws)], minlength=GROUPS)
    full = expected > 0
    assert (counts[~full] == 0).all()
    assert ((counts - expected)[full] ** 2 / expected[full]).sum() < 16.3  # χ² of 3 degrees, p = 0.001


@pytest.mark.parametrize("number", [0.0, 0.5, np.nextafter(1, 0)])
@pytest.mark.parametrize("fractions", [[0, 0, 0.5, 0.5, 0], [0, 1, 0, 0, 0], [0.5, 0, 0, 0.5, 0]])
def test_act_never_returns_an_empty_group_at_the_ends(fractions, number):
    class Fixed:
        def random(self) -> float:
            return number

    agent = random_policy()
    agent._generator = Fixed()
    observation = np.stack([fractions, np.ones(GROUPS)], axis=1).astype(np.float32)
    assert fractions[agent.act(observation)] > 0


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
    agent.act(observe(1))
    assert len(asked) == 3


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


# Exact gradients


def slow_log_policy(parameters: dict, observation: np.ndarray, size_prior: bool) -> torch.Tensor:
    """Return log π of the groups that are not empty, written out."""
    state = torch.tensor(observation, dtype=torch.float64)
    full = state[:, 0] > 0
    hidden = torch.tanh(parameters["first.weight"] @ state.reshape(-1) + parameters["first.bias"])
    logits = (parameters["last.weight"] @ hidden + parameters["last.bias"])[full]
    prior = state[full, 0] if size_prior else torch.ones(int(full.sum()), dtype=torch.float64)
    weights = prior * torch.exp(logits)
    return torch.log(weights / weights.sum())


def slow_entropy(log_policy: torch.Tensor, observation: np.ndarray, size_prior: bool) -> torch.Tensor:
    """Return the entropy over 1000 permutations with the size prior, over groups without."""
    fractions = torch.tensor(observation[:, 0], dtype=torch.float64)
    sizes = 1000 * fractions[fractions > 0] if size_prior else torch.ones(len(log_policy))
    return -(log_policy.exp() * (log_policy - torch.log(sizes))).sum()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("size_prior", [False, True])
@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
def test_updates_equal_a_slow_reference(discount, size_prior, normalise):
    decay, entropy_weight = 0.8, 0.3
    agent = lean(
        reinforce(
            discount=discount,
            size_prior=size_prior,
            normalise=normalise,
            baseline_decay=decay,
            entropy_weight=entropy_weight,
        )
    )
    gradients = recorded_gradients(agent)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in agent.network.named_parameters()}
    adam = torch.optim.Adam(parameters.values(), lr=0.01)
    generator = np.random.default_rng(0)
    full = np.flatnonzero(FRACTIONS)
    scores: list[dict[str, torch.Tensor]] = []  # one an update
    rewards: list[float] = []
    squares: list[float] = []

    for t in range(6):
        actions = generator.choice(full, size=5)
        reward = float(generator.normal())
        for k, action in enumerate(actions):
            info = {"validated": k == 4, "phase": "update"}
            metrics = agent.learn(observe(t), action, reward if k == 4 else 0.0, observe(t + 1), False, False, info)

        def gradient(value: torch.Tensor) -> dict[str, torch.Tensor]:
            found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
            return dict(zip(parameters, found, strict=True))

        log_policy = slow_log_policy(parameters, observe(t), size_prior)
        scores.append(gradient(sum(log_policy[int(np.flatnonzero(full == action)[0])] for action in actions) / 5**0.5))
        weights = np.array([decay ** (t - 1 - i) for i in range(t)])
        baseline = float(weights @ rewards / weights.sum()) if t else reward
        advantage = reward - baseline
        if t and normalise:
            squares.append(advantage**2)
            weights = np.array([decay ** (t - 1 - i) for i in range(t)])
            advantage /= np.sqrt(weights @ squares / weights.sum()) + 1e-8
        rewards.append(reward)
        entropy = gradient(slow_entropy(log_policy, observe(t), size_prior))
        for name, parameter in parameters.items():
            trace = sum(discount ** (t - i) * scores[i][name] for i in range(t + 1))
            parameter.grad = -(advantage * trace + entropy_weight * entropy[name])
            torch.testing.assert_close(gradients[t][name], parameter.grad, rtol=1e-10, atol=1e-12)
        adam.step()
        assert metrics["baseline"] == pytest.approx(baseline)
        assert metrics["advantage"] == pytest.approx(advantage)
        for name, parameter in agent.network.named_parameters():
            torch.testing.assert_close(parameter, parameters[name], rtol=1e-8, atol=1e-10)


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
    policy._reward_average.add(0.2)
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
    assert state["reward_average"]["weight"] > 1


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
    ],
    ids=["class", "hidden", "inverse", "groups"],
)
def test_another_agents_file_is_refused(other, tmp_path):
    path = tmp_path / "agent.safetensors"
    other.save(path)
    agent = reinforce()
    before = agent.state_dict()
    with pytest.raises(ValueError, match=r"agent\.safetensors.*Build the agent as the saved one was built"):
        agent.load(path)
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
        (OBSERVATION_SPACE, gym.spaces.MultiDiscrete([5, 5]), "MultiDiscrete.*one task"),
        (OBSERVATION_SPACE, gym.spaces.Discrete(GROUPS, start=1), "starts at 0"),
        (OBSERVATION_SPACE, gym.spaces.Discrete(4), r"\(4, 2\)"),
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
    "observation",
    [observe()[:3], observe()[None], np.full((GROUPS, 2), np.nan), np.zeros((GROUPS, 2)), -observe()],
    ids=["short", "batched", "nan", "empty", "negative"],
)
def test_other_observations_are_refused(build, observation):
    with pytest.raises(ValueError, match="observation"):
        build().act(observation)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden", 0),
        ("learning_rate", 0.0),
        ("discount", 1.1),
        ("baseline_decay", 1.0),
        ("entropy_weight", -0.1),
        ("learning_rate", float("nan")),
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is"):
        reinforce(**{option: value})


@pytest.mark.parametrize("action", [-1, GROUPS, 1.5])
def test_actions_outside_the_space_are_refused(action):
    with pytest.raises(ValueError, match="no group"):
        feed(reinforce(), action)


def test_infos_outside_the_protocol_are_refused():
    for info in ({}, {"phase": "update"}, {"phase": "warmup", "validated": True}):
        with pytest.raises(ValueError, match="phase"):
            reinforce().learn(observe(), 0, 0.0, observe(), False, False, info)


def test_impossible_updates_are_refused():
    with pytest.raises(ValueError, match="reward is nan"):
        reinforce().update(observe(), np.array([1, 0, 0, 0, 0]), float("nan"))
    with pytest.raises(ValueError, match="own actions"):
        reinforce().update(observe(), np.array([0, 0, 1, 0, 0]), 0.0)
    with pytest.raises(ValueError, match="cannot learn"):
        InversePolicy(random_policy(), seed=0, policy_learns=True)
