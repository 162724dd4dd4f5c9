"""REINFORCE: exact gradients, credit, metrics, and that it learns."""

from typing import Any

import numpy as np
import pytest
import torch

from agents import InversePolicy, Reinforce, Transition
from permenv import CheckpointError
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
    assert_equal_trees,
    feed,
    observe,
    random_policy,
    reinforce,
    run,
    tilted,
)

LogPolicy = dict[int, torch.Tensor]  # log π by group, of the groups that are not empty


# The prior


def test_reinforce_starts_at_its_prior():
    np.testing.assert_allclose(
        reinforce().probabilities(observe()), random_policy().probabilities(observe()), rtol=1e-14
    )


def test_every_head_of_reinforce_has_its_own_prior():
    observation = observe(fractions=JOINT_FRACTIONS)
    joint = reinforce(spaces=JOINT).probabilities(observation)
    for task in range(2):
        single = reinforce().probabilities(observation[task])
        np.testing.assert_allclose(joint[task], single, rtol=1e-14)


# Gradients


def recorded_gradients(agent: Reinforce) -> list[dict[str, torch.Tensor]]:
    """Return a list that grows by the gradients of every step of Adam."""
    recorded: list[dict[str, torch.Tensor]] = []

    def record(*_: Any) -> None:
        recorded.append({name: p.grad.clone() for name, p in agent.network.named_parameters()})

    agent._adam.register_step_pre_hook(record)
    return recorded


def slow_log_policies(parameters: dict, observation: np.ndarray) -> list[LogPolicy]:
    """Return log π of every task, computed group by group; the observation is (T, |C|, 2)."""
    states = torch.tensor(observation, dtype=torch.float64)
    hidden = torch.tanh(parameters["first.weight"] @ states.reshape(-1) + parameters["first.bias"])
    logits = parameters["last.weight"] @ hidden + parameters["last.bias"]
    policies = []
    for task, state in enumerate(states):
        weights = {
            group: torch.exp(logits[task * GROUPS + group]) * state[group, 0]
            for group in range(GROUPS)
            if state[group, 0] > 0
        }
        policies.append({group: torch.log(weight / sum(weights.values())) for group, weight in weights.items()})
    return policies


def slow_entropy(log_policy: LogPolicy, fractions: np.ndarray) -> torch.Tensor:
    """Return the entropy over 1000 permutations."""
    return -sum(
        log_chance.exp() * (log_chance - np.log(1000 * fractions[group])) for group, log_chance in log_policy.items()
    )


def slow_average(values: list[float], decay: float) -> float:
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    return float(np.average(values, weights=weights))


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("case", ["single", "joint-own", "joint-sum"])
def test_updates_equal_a_slow_reference(case, discount, off_policy):
    decay, entropy_weight, num_actions = 0.8, 0.3, 5
    joint, credit = case != "single", case.removeprefix("joint-")
    fractions = JOINT_FRACTIONS if joint else FRACTIONS[None]  # the reference always has an axis for the tasks
    tasks = range(len(fractions))
    agent = tilted(
        reinforce(
            spaces=JOINT if joint else SINGLE,
            discount=discount,
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
    scores: list[list[dict[str, torch.Tensor]]] = [[] for _ in tasks]  # of each task, one per update
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

        log_policies = slow_log_policies(parameters, observation)
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
            if t:
                squares[task].append(advantage**2)
                advantage /= np.sqrt(slow_average(squares[task], decay)) + 1e-8
            entropy = gradient(slow_entropy(log_policy, observation[task, :, 0].astype(float)))
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


def test_own_credit_ignores_the_reward_of_the_other_task_and_sum_does_not():
    def gradient_of_the_first_head(credit: str, other_reward: float) -> torch.Tensor:
        agent = tilted(reinforce(spaces=JOINT, credit=credit))
        gradients = recorded_gradients(agent)
        observation, counts = observe(fractions=JOINT_FRACTIONS), np.array([[3, 0, 0, 4, 1], [1, 1, 6, 0, 0]])
        agent.update(observation, counts, {"spatial": 0.2, "temporal": 0.2})  # the baselines
        agent.update(observation, counts, {"spatial": 0.7, "temporal": other_reward})
        return gradients[1]["last.weight"][:GROUPS]

    own = [gradient_of_the_first_head("own", other_reward) for other_reward in (-100.0, 100.0)]
    assert own[0].abs().max() > 0.01
    assert torch.equal(*own)
    of_the_sum = [gradient_of_the_first_head("sum", other_reward) for other_reward in (-100.0, 100.0)]
    assert not torch.allclose(*of_the_sum)


def test_gradient_of_the_last_bias_in_closed_form():
    agent = tilted(reinforce(entropy_weight=0.5))
    gradients = recorded_gradients(agent)
    agent.update(observe(), np.array([1, 0, 0, 0, 0]), reward=0.25)  # the baseline
    policy = agent.probabilities(observe())
    counts = np.array([3, 0, 0, 4, 1])
    agent.update(observe(), counts, reward=1.0)
    tilt = np.log(policy, where=FRACTIONS > 0, out=np.zeros(GROUPS)) - np.log(
        FRACTIONS, where=FRACTIONS > 0, out=np.zeros(GROUPS)
    )  # the advantage, divided by its own square's root, is 1
    ascent = (counts - 8 * policy) / 8**0.5 - 0.5 * policy * (tilt - policy @ tilt)
    np.testing.assert_allclose(-gradients[1]["last.bias"].numpy(), ascent, atol=1e-7)


def test_importance_weights_give_the_on_policy_gradient_in_expectation():
    policy = tilted(reinforce(entropy_weight=0))
    policy.update(observe(), np.eye(GROUPS, dtype=int)[0], 0.2)  # only sets the baseline
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


# Metrics


def test_the_metrics():
    agent = reinforce(baseline_decay=0.5)
    first = agent.update(observe(), np.array([1, 1, 0, 1, 1]), reward=1.0)
    assert (first["baseline"], first["advantage"]) == (1.0, 0.0)
    entropy = -sum(f * np.log(f) for f in FRACTIONS if f)
    assert first["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert first["divergence"] == pytest.approx(0, abs=1e-14)
    second = agent.update(observe(), np.array([1, 1, 0, 1, 1]), reward=4.0)
    assert (second["baseline"], second["advantage"]) == (1.0, pytest.approx(1.0))
    third = agent.update(observe(), np.array([1, 1, 0, 1, 1]), reward=0.0)
    assert third["baseline"] == pytest.approx((0.5 * 1 + 4) / 1.5)
    assert third["divergence"] > 0


@pytest.mark.parametrize("credit", ["own", "sum"])
def test_the_metrics_of_a_joint_task_are_named_by_task(credit):
    agent = reinforce(spaces=JOINT, credit=credit)
    counts = (JOINT_FRACTIONS > 0).astype(int)
    agent.update(observe(fractions=JOINT_FRACTIONS), counts, {"spatial": 1.0, "temporal": 0.5})
    metrics = agent.update(observe(fractions=JOINT_FRACTIONS), counts, {"spatial": 4.0, "temporal": 0.0})
    names = ("loss", "entropy", "divergence", "baseline", "advantage")
    assert list(metrics) == [f"{task}/{name}" for task in TASKS for name in names]
    for task, baseline, advantage, fractions in zip(TASKS, (1.0, 0.5), (1.0, -1.0), JOINT_FRACTIONS, strict=True):
        expected = (baseline, advantage) if credit == "own" else (1.5, 1.0)
        assert (metrics[f"{task}/baseline"], metrics[f"{task}/advantage"]) == pytest.approx(expected)
        entropy = -sum(f * np.log(f) for f in fractions if f)
        assert metrics[f"{task}/entropy"] == pytest.approx(entropy, abs=1e-6)


# Behaviour


def test_the_entropy_term_alone_leads_back_to_the_prior():
    agent = tilted(reinforce(entropy_weight=1.0))
    for _ in range(300):
        agent.update(observe(), np.array([1, 0, 0, 0, 0]), reward=0.0)
    start = reinforce().probabilities(observe())
    np.testing.assert_allclose(agent.probabilities(observe()), start, atol=1e-3)


def test_the_first_reward_changes_nothing():
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


def test_another_run_starts_from_what_was_learned_alone():
    trained, own = (Reinforce(*SINGLE, seed=seed, discount=0.5) for seed in (0, 1))
    for reward in (0.1, 0.3, 0.2):
        feed(trained, 0, reward, validated=True)
    trained.act(observe())
    feed(trained, 0)  # of the next update
    new, learned = own.state_dict(), trained.state_dict()
    own.start_from(learned)
    started = own.state_dict()
    for name in started:
        kept = name in ("generator", "counts", "trace")
        assert_equal_trees(started[name], new[name] if kept else learned[name])
        if name != "signature":
            with pytest.raises(AssertionError):
                assert_equal_trees(new[name], learned[name])


@pytest.mark.parametrize("state", [None, {}, {"network": {}}])
def test_a_run_does_not_start_from_what_is_no_state(state):
    agent = reinforce()
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match="agent"):
        agent.start_from(state)
    assert_equal_trees(agent.state_dict(), before)


# Learning


@pytest.mark.parametrize("seeds", [1, pytest.param(4, marks=pytest.mark.ci)])
def test_reinforce_learns_the_bandit(seeds):
    env, chances = Bandit(), []
    for seed in range(seeds):
        agent = reinforce(seed, entropy_weight=0.15)
        run(agent, seed, steps=800 * (env.free_steps + env.update_steps))
        env.reset(seed=100 + seed)
        observations = [(env.observe(), BEST[env.context]) for _ in range(50)]
        chances.append(np.mean([agent.probabilities(observation)[best] for observation, best in observations]))
    # The best group has probability 0.2 under the random policy, and 0.5 under the best one that ignores the context.
    assert np.mean(chances) > 0.7
    assert np.min(chances) > 0.4


@pytest.mark.ci
@pytest.mark.parametrize(("credit", "updates"), [("own", 1200), ("sum", 2000)])  # the sum is noisier
def test_reinforce_learns_a_best_group_for_each_task_of_the_joint_bandit(credit, updates):
    env, chances = JointBandit(), []
    for seed in range(2):
        agent = reinforce(seed, JOINT, entropy_weight=0.2, credit=credit)
        run(agent, seed, steps=updates * (Bandit.free_steps + Bandit.update_steps))
        for test in range(50):
            observation, _ = env.reset(seed=100 + test)
            best = [bandit.best[bandit.context] for bandit in env.bandits]
            chances.append(agent.probabilities(observation)[[0, 1], best])
    # The best groups have probabilities below 0.3 under the random policy, 0.5 under the best that ignores contexts.
    assert (np.mean(chances, axis=0) > 0.6).all()


# Errors


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
