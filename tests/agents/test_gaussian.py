"""The Gaussian policy across runs: exact gradients, standardisation, episodes, that it learns, its state and errors."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import GaussianReinforce, RandomPolicy, Trajectory, Transition, collect, rollout
from permenv import CheckpointError
from permenv.wrappers import ErrorAndProgress, ErrorReduction, MixtureAction, PoolAction
from tests.agents.helpers import BANDIT, CONTEXTS, SINGLE, Target, assert_equal_trees
from tests.helpers import global_states

OBSERVATIONS = gym.spaces.Box(-10, 10, (2, 2), np.float32)
ACTIONS = gym.spaces.Box(-1, 1, (2,), np.float32)


def gaussian(seed: int = 0, spaces: tuple = (OBSERVATIONS, ACTIONS), **options: Any) -> GaussianReinforce:
    return GaussianReinforce(*spaces, seed=seed, **options)


def trajectories(lengths: tuple[int, ...], seed: int = 0) -> list[Trajectory]:
    """Return episodes of random numbers; the last entry of an observation never varies."""
    generator = np.random.default_rng(seed)
    found = []
    for length in lengths:
        observations = generator.normal([[3, 0], [-1, 0.1]], [[2, 0.5], [1, 0]], (length, 2, 2))
        observations = observations.astype(np.float32).astype(np.float64)
        found.append(Trajectory(observations, generator.normal(0, 1, (length, 2)), generator.normal(0.01, 0.1, length)))
    return found


def on(env: gym.Env, seed: int = 0, **options: Any) -> GaussianReinforce:
    return gaussian(seed, (env.observation_space, env.action_space), **options)


# The policy


@pytest.mark.parametrize("hidden", [0, 16])
def test_the_first_policy_is_centred_at_0(hidden):
    agent = gaussian(hidden=hidden)
    observation = np.arange(4.0).reshape(2, 2)
    np.testing.assert_array_equal(agent.mean(observation), [0, 0])
    np.testing.assert_allclose(agent.deviation, [0.5, 0.5], rtol=1e-14)
    actions = np.array([agent.act(observation) for _ in range(4000)])
    assert (actions.dtype, actions.shape) == (np.float32, (4000, 2))
    assert np.abs(actions).max() > 1  # not clipped
    np.testing.assert_allclose(actions.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(actions.std(axis=0), 0.5, atol=0.03)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.05


def slow_standardised(observation: np.ndarray, seen: list[np.ndarray]) -> list[float]:
    """Return the flattened observation, entry by entry, with the mean and deviation of those seen."""
    standardised = []
    for entry, values in zip(observation.ravel(), np.array(seen).reshape(len(seen), -1).T, strict=True):
        deviation = np.std(values) if np.ptp(values) > 0 else 0
        standardised.append(0.0 if deviation == 0 else min(5.0, max(-5.0, (entry - np.mean(values)) / deviation)))
    return standardised


def slow_mean(parameters: dict, standardised: list[float]) -> torch.Tensor:
    values = torch.tensor(standardised, dtype=torch.float64)
    if "first.weight" in parameters:
        values = torch.tanh(parameters["first.weight"] @ values + parameters["first.bias"])
    return parameters["last.weight"] @ values + parameters["last.bias"]


@pytest.mark.parametrize("hidden", [0, 3])
def test_the_mean_is_a_network_of_the_standardised_observation(hidden):
    agent = gaussian(hidden=hidden)
    seen = []
    for seed in range(3):
        episodes = trajectories((4, 7), seed)
        agent.update(episodes)
        seen += [observation for episode in episodes for observation in episode.observations]
    assert agent.mean(seen[0]).any()
    parameters = agent.state_dict()["parameters"]
    for observation in [*seen, seen[0] + 100, seen[0] - 100]:
        expected = slow_mean(parameters, slow_standardised(observation, seen)).numpy()
        np.testing.assert_allclose(agent.mean(observation), expected, rtol=1e-9)
    changed = seen[0].copy()
    changed[1, 1] += 5  # never varied
    np.testing.assert_array_equal(agent.mean(changed), agent.mean(seen[0]))


def test_an_entry_that_never_varies_is_0_however_it_rounds():
    agent = gaussian(hidden=0)
    for seed in range(5):
        episodes = [
            Trajectory(np.full_like(each.observations, 0.1), each.actions, each.rewards)
            for each in trajectories((13, 17), seed)
        ]
        agent.update(episodes)
    assert (agent._scale(np.full((1, 4), 0.7)) == 0).all()


def test_acting_leaves_the_standardisation_as_it_is():
    agent = gaussian()
    agent.update(trajectories((5, 5)))
    before = agent.state_dict()
    agent.act(np.full((2, 2), 9.0))
    assert_equal_trees(agent.state_dict()["scale"], before["scale"])


def test_a_deterministic_policy_returns_its_mean_and_draws_nothing():
    agent = gaussian()
    agent.deterministic = True
    agent.update(trajectories((5, 5)))
    observation, before = np.ones((2, 2)), agent.state_dict()
    np.testing.assert_array_equal(agent.act(observation), agent.mean(observation).astype(np.float32))
    assert_equal_trees(agent.state_dict(), before)
    agent.deterministic = False
    assert not np.array_equal(agent.act(observation), agent.mean(observation).astype(np.float32))


# The update


def slow_advantages(episodes: list[Trajectory], discount: float) -> list[list[float]]:
    """Return G_t minus the mean of the others' G_t, of every episode, divided by their root mean square."""
    returns = [
        [
            sum(discount ** (later - step) * each.rewards[later] for later in range(step, len(each.rewards)))
            for step in range(len(each.rewards))
        ]
        for each in episodes
    ]
    differences = []
    for number, own in enumerate(returns):
        differences.append([])
        for step, value in enumerate(own):
            others = [them[step] for other, them in enumerate(returns) if other != number and step < len(them)]
            differences[-1].append(value - (sum(others) / len(others) if others else 0))
    every = [difference for row in differences for difference in row]
    root_mean_square = math.sqrt(sum(difference**2 for difference in every) / len(every))
    return [[difference / (root_mean_square + 1e-8) for difference in row] for row in differences]


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 5, 1, 5), (2, 6), (3,)])
def test_updates_equal_a_slow_reference(lengths, entropy_weight, discount, hidden):
    agent = gaussian(hidden=hidden, discount=discount, entropy_weight=entropy_weight, learning_rate=0.05)
    parameters = {name: value.requires_grad_() for name, value in agent.state_dict()["parameters"].items()}
    adam = torch.optim.Adam(parameters.values(), lr=0.05)
    seen: list[np.ndarray] = []
    for seed in range(4):
        episodes = trajectories(lengths, seed)
        seen += [observation for episode in episodes for observation in episode.observations]
        ascent = torch.zeros((), dtype=torch.float64)
        for episode, advantages in zip(episodes, slow_advantages(episodes, discount), strict=True):
            for observation, action, advantage in zip(episode.observations, episode.actions, advantages, strict=True):
                mean = slow_mean(parameters, slow_standardised(observation, seen))
                for entry in range(2):
                    deviation = parameters["log_deviation"][entry].exp()
                    z = (action[entry] - mean[entry]) / deviation
                    ascent = ascent + advantage * (-(z**2) / 2 - torch.log(deviation * math.sqrt(2 * math.pi)))
        deviations = parameters["log_deviation"].exp()
        entropy = sum(0.5 * torch.log(2 * math.pi * math.e * deviation**2) for deviation in deviations)
        loss = -ascent / sum(lengths) - entropy_weight * entropy
        adam.zero_grad()
        loss.backward()
        norm = math.sqrt(sum((parameter.grad**2).sum().item() for parameter in parameters.values()))
        for parameter in parameters.values():
            parameter.grad *= min(1, 1 / (norm + 1e-6))  # as PyTorch does
        metrics = agent.update(episodes)
        assert metrics == pytest.approx(
            {
                "return": np.mean([sum(episode.rewards) for episode in episodes]),
                "loss": loss.item(),
                "deviation": deviations.mean().item(),
                "gradient": norm,
            },
            rel=1e-6,
            abs=1e-9,
        )
        adam.step()
        for name, value in agent.state_dict()["parameters"].items():
            torch.testing.assert_close(value, parameters[name].detach(), rtol=1e-5, atol=1e-7)


def test_equal_episodes_teach_nothing():
    episode = trajectories((5,))[0]
    agent = gaussian(entropy_weight=0.0)
    before = agent.state_dict()["parameters"]
    assert agent.update([episode] * 4)["gradient"] == pytest.approx(0, abs=1e-6)
    assert_equal_trees(agent.state_dict()["parameters"]["log_deviation"], before["log_deviation"])


def test_an_update_changes_the_version():
    agent = gaussian()
    agent.update(trajectories((2, 2)))
    assert agent.version == 1


# Episodes


def test_learn_collects_all_steps_of_whole_episodes():
    env, given = Target(CONTEXTS, steps=3), []
    agent = on(env, episodes_per_update=2)
    agent.update = lambda episodes: given.append(episodes) or {"loss": 0.5}
    transitions: list[Transition] = []
    for _ in range(5):
        rollout(env, agent, seed=0, on_step=transitions.append)
    assert [len(episodes) for episodes in given] == [2, 2]
    for number, episode in enumerate(each for episodes in given for each in episodes):
        steps = transitions[3 * number : 3 * number + 3]
        np.testing.assert_array_equal(episode.observations, [step.observation for step in steps])
        np.testing.assert_array_equal(episode.actions, [step.action for step in steps])
        np.testing.assert_array_equal(episode.rewards, [step.reward for step in steps])
        assert {array.dtype for array in vars(episode).values()} == {np.dtype(np.float64)}
    returned = [agent.learn(transition) for transition in transitions[:6]]
    assert returned == [{}, {}, {"loss": 0.5}, {}, {}, {}]  # the fifth episode was waiting


def test_an_episode_that_terminates_is_an_episode():
    agent, observation, action = gaussian(episodes_per_update=1), np.ones((2, 2)), np.zeros(2, np.float32)
    assert agent.learn(Transition(observation, action, 0.0, observation, False, False, {})) == {}
    metrics = agent.learn(Transition(observation, action, -1.0, observation, True, False, {}))
    assert metrics["return"] == -1.0


def test_collect_depends_on_the_policy_and_the_seed_alone():
    env, agent = Target(CONTEXTS, steps=4), on(Target(CONTEXTS))
    agent.update([collect(env, agent, seed) for seed in range(8)])
    other = on(Target(CONTEXTS), seed=9)
    other.load_state_dict(agent.state_dict())
    for _ in range(7):
        other.act(env.reset(seed=3)[0])
    before = agent.state_dict()
    first = [collect(env, agent, seed) for seed in range(4)]
    again = [collect(Target(CONTEXTS, steps=4), other, seed) for seed in reversed(range(4))][::-1]
    assert_equal_trees([*map(vars, first)], [*map(vars, again)])
    assert len({episode.actions.tobytes() for episode in first}) == 4
    assert_equal_trees({**agent.state_dict(), "generator": None}, {**before, "generator": None})
    assert agent.version == 1


def test_an_episode_of_a_seed_draws_other_numbers_than_its_environment():
    env, agent = Target(BANDIT), gaussian()
    env.reset(seed=5)
    agent.reseed(5)
    assert not np.isin(agent._generator.random(20), env.np_random.random(20)).any()


# That it learns


def test_it_learns_a_bandit():
    env = Target(BANDIT)
    agent = on(env)
    for update in range(60):
        metrics = agent.update([collect(env, agent, 16 * update + number) for number in range(16)])
    assert set(metrics) == {"return", "loss", "deviation", "gradient"}
    agent.deterministic = True
    assert agent.act(env.reset(seed=0)[0])[0] == pytest.approx(0.4, abs=0.1)
    assert agent.deviation[0] < 0.4


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_learns_different_actions_in_different_states_credited_by_a_later_reward(hidden):
    env = Target(CONTEXTS, steps=2)
    agent = on(env, hidden=hidden)
    for seed in range(16 * 60):
        rollout(env, agent, seed=seed)
    for context, target in CONTEXTS.items():
        assert agent.mean(np.array([context, 0.3]))[0] == pytest.approx(target, abs=0.15)


@pytest.mark.parametrize(
    ("wrapper", "task"),
    [
        (PoolAction, "spatial"),
        pytest.param(PoolAction, "spatiotemporal", marks=pytest.mark.ci),
        pytest.param(MixtureAction, "spatiotemporal", marks=pytest.mark.ci),
    ],
)
def test_it_plays_and_learns_in_the_environment(make_env, wrapper, task):
    env = ErrorAndProgress(wrapper(ErrorReduction(make_env(task=task, total_updates=2))))
    agent = on(env, episodes_per_update=2)
    episode = collect(env, agent, seed=3)
    assert len(episode.rewards) == 4
    records = env.unwrapped.records
    fall = [np.mean([*records[place].errors.values()]) for place in (0, -1)]
    assert episode.rewards.sum() == pytest.approx(fall[0] - fall[1])
    assert_equal_trees(vars(collect(env, agent, seed=3)), vars(episode))
    before = agent.state_dict()["parameters"]
    for seed in range(2):
        rollout(env, agent, seed=seed)
    assert agent.version == 1
    assert not all(map(torch.equal, before.values(), agent.state_dict()["parameters"].values()))
    assert np.isfinite(collect(env, agent, seed=3).actions).all()


# State


def advance(env: gym.Env, agent: GaussianReinforce, observation: np.ndarray, steps: int) -> np.ndarray:
    """Let the agent act and learn that many steps; return the next observation."""
    for _ in range(steps):
        action = agent.act(observation)
        after, reward, terminated, truncated, info = env.step(action)
        agent.learn(Transition(observation, action, reward, after, terminated, truncated, info))
        observation = env.reset()[0] if truncated else after
    return observation


@pytest.mark.parametrize("before", [0, 2, 3, 10, 12, 23])
def test_a_restored_agent_continues_bit_for_bit_in_the_middle_of_an_episode(before, tmp_path):
    original, restored, loaded = (on(Target(CONTEXTS), seed, episodes_per_update=4) for seed in range(3))
    env = Target(CONTEXTS, steps=3)
    observation = advance(env, original, env.reset(seed=0)[0], before)
    other = Target(CONTEXTS, steps=3)
    advance(other, restored, other.reset(seed=1)[0], 17)
    state, kept = original.state_dict(), original.state_dict()
    original.save(tmp_path / "agent.safetensors")
    restored.load_state_dict(state)
    loaded.load(tmp_path / "agent.safetensors")
    run_state = env.np_random.bit_generator.state
    where = {"steps": env.steps, "earlier": env.earlier, "context": env.context}
    for agent in (original, restored, loaded):
        env.np_random.bit_generator.state = run_state
        vars(env).update(where)
        advance(env, agent, observation, 31)
    assert original.version > 1
    assert_equal_trees(state, kept)  # a state is a copy
    assert_equal_trees(restored.state_dict(), original.state_dict())
    assert_equal_trees(loaded.state_dict(), original.state_dict())


def test_a_seed_determines_everything_and_the_global_states_stay():
    def play(seed: int) -> dict[str, Any]:
        env = Target(CONTEXTS, steps=2)
        agent = on(env, seed, episodes_per_update=3)
        for episode in range(7):
            rollout(env, agent, seed=episode)
        return agent.state_dict()

    before = global_states()
    first = play(1)
    assert global_states() == before
    assert_equal_trees(play(1), first)
    assert not torch.equal(play(2)["parameters"]["first.weight"], first["parameters"]["first.weight"])


@pytest.mark.parametrize(
    "other",
    [
        gaussian(hidden=4),
        gaussian(hidden=0),
        gaussian(spaces=(OBSERVATIONS, gym.spaces.Box(-1, 1, (1,)))),
        gaussian(spaces=(gym.spaces.Box(-1, 1, (4,)), ACTIONS)),
        RandomPolicy(*SINGLE, seed=0),
    ],
    ids=["hidden", "linear", "action", "observation", "class"],
)
def test_the_state_of_another_agent_is_refused(other, tmp_path):
    other.save(tmp_path / "agent.safetensors")
    agent = gaussian()
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match=r"agent\.safetensors.*Build the agent as the saved one was built"):
        agent.load(tmp_path / "agent.safetensors")
    assert_equal_trees(agent.state_dict(), before)
    with pytest.raises(CheckpointError, match="name a file"):
        agent.load(tmp_path / "another")


# Errors


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (*SINGLE, r"action space is Discrete\(5\).*needs a Box of floats.*PoolAction or MixtureAction"),
        (OBSERVATIONS, gym.spaces.MultiDiscrete([5, 5]), "action space is MultiDiscrete"),
        (OBSERVATIONS, gym.spaces.Box(0, 255, (2,), np.uint8), "action space is Box.*uint8.*of floats"),
        (gym.spaces.Discrete(3), ACTIONS, r"observation space is Discrete\(3\).*any that returns a Box"),
        (gym.spaces.Dict({"a": OBSERVATIONS}), ACTIONS, "observation space is Dict"),
    ],
)
def test_other_spaces_are_refused(observation_space, action_space, message):
    with pytest.raises(ValueError, match=message):
        GaussianReinforce(observation_space, action_space, seed=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden", -1),
        ("learning_rate", 0.0),
        ("discount", 1.1),
        ("discount", -0.1),
        ("entropy_weight", -0.1),
        ("episodes_per_update", 0),
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}, it must be"):
        gaussian(**{option: value})


@pytest.mark.parametrize("observation", [np.zeros(4), np.zeros((1, 2, 2)), np.full((2, 2), np.nan)])
def test_other_observations_are_refused(observation):
    with pytest.raises(ValueError, match="observation"):
        gaussian().act(observation)


def test_impossible_updates_are_refused():
    agent, (episode,) = gaussian(), trajectories((3,))
    before = agent.state_dict()
    with pytest.raises(ValueError, match="no episodes"):
        agent.update([])
    for changes, message in (
        ({"observations": np.zeros((3, 4))}, r"shape \(4,\), this agent was built for Box.*\(2, 2\)"),
        ({"actions": np.zeros((3, 1))}, r"shape \(1,\), this agent was built for Box"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.update([episode, Trajectory(**{**vars(episode), **changes})])
    assert_equal_trees(agent.state_dict(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(2)}, "'actions': 3, 'rewards': 2}.*one of each for every step"),
        ({"rewards": np.array([0, math.nan, 0])}, "rewards .*nan.* must be finite"),
        ({"actions": np.full((3, 2), math.inf)}, "actions .*inf.* must be finite"),
        ({name: np.zeros((0, 2)) for name in ("observations", "actions", "rewards")}, "one step at least"),
    ],
)
def test_impossible_trajectories_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Trajectory(**{**vars(trajectories((3,))[0]), **changes})
