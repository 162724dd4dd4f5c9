"""Models of Stable-Baselines3: random states, saving, replay buffers, and that every algorithm learns."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.sb3 import ALGORITHMS, OwnRandomness, load_model, make_model, start_from, steps_of_an_update
from permenv import CheckpointError, ConfigurationError, make_config
from permenv.wrappers import ActionBlock, FlatJointAction, MixtureAction, NormalizedReward

ACTIONS = {"ppo": "groups", "a2c": "groups", "dqn": "groups", "sac": "mixture"}
VIEWS = {"groups": lambda env: env, "mixture": MixtureAction, "block": ActionBlock, "pairs": FlatJointAction}


class Bandit(gym.Env):
    """The environment's interface without a network: the more an update chooses group 0, the higher its reward.

    As in the environment, the K actions of an update share an observation, and the last one returns the reward.
    """

    def __init__(self, view="groups", num_actions=8, updates=20, groups=4, terminates=False):
        self.view, self.terminates, self.scores = view, terminates, []
        one_step = view == "mixture"
        self.config = make_config(
            "tiny",
            batch_size=1 if one_step else num_actions,
            iterations_per_update=1,
            total_updates=updates,
            num_groups=groups,
        )
        low, high = (np.tile(np.array(bound, np.float32), (groups, 1)) for bound in ([0, 0.5], [1, 2]))
        self.observation_space = spaces.Box(low, high)
        self.action_space = spaces.Box(-1, 1, (groups,)) if one_step else spaces.Discrete(groups)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.update, self.chosen = 0, []
        self._observe()
        return self.observation, {}

    def _observe(self):
        self.sizes = self.np_random.dirichlet(np.full(self.config.num_groups, 5.0))
        medians = np.sort(self.np_random.uniform(0.5, 2, self.config.num_groups))
        self.observation = np.stack([self.sizes, medians], axis=1).astype(np.float32)

    def step(self, action):
        shares = np.eye(self.config.num_groups)[action] if self.view == "groups" else self.sizes * np.exp(action)
        self.chosen.append(shares[0] / shares.sum())
        reward, ends = 0.0, len(self.chosen) == self.config.actions_per_iteration
        if ends:
            self.scores.append(np.mean(self.chosen))
            reward = (self.scores[-1] - 0.25) / 0.2 + 0.25 * self.np_random.standard_normal()
            self.chosen = []
            self.update += 1
            self._observe()
        over = self.update == self.config.total_updates
        info = {"validated": ends, "phase": "update"}
        return self.observation, reward, over and self.terminates, over and not self.terminates, info


def global_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, keys.tolist(), rest, torch.get_rng_state().tolist()


def networks(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("free", [0, 2])
@pytest.mark.parametrize("view", ["groups", "mixture", "block", "pairs"])
def test_the_steps_of_an_update_are_those_between_two_rewards(make_env, free, view):
    env = VIEWS[view](make_env(task="spatiotemporal", free_iterations=free))
    env.reset(seed=0)
    env.action_space.seed(0)
    ends, count = [], 0
    while len(ends) < 2:
        count += 1
        info = env.step(env.action_space.sample())[4]
        if info["validated"] and info["phase"] == "update":
            ends.append(count)
    assert [steps_of_an_update(env)] * 2 == [ends[0], ends[1] - ends[0]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns_which_group_is_rewarded(algorithm):
    env = Bandit(ACTIONS[algorithm])
    updates = {"ppo": 60, "a2c": 120, "dqn": 40, "sac": 25}[algorithm]
    make_model(algorithm, env, seed=0).learn(updates * steps_of_an_update(env))
    assert len(env.scores) == updates
    # Random actions give 0.25; the maximum is 0.625 if half of the actions are random (DQN), 0.7 for a mixture (SAC).
    assert np.mean(env.scores[-10:]) > 0.45


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_global_random_states_are_left_unchanged_and_have_no_effect(algorithm, tmp_path):
    predicted = {"made": [], "loaded": []}
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        before = global_states()
        env = Bandit(ACTIONS[algorithm], updates=4)
        model = make_model(algorithm, env, seed=0)
        model.learn(7 * steps_of_an_update(env))
        model.save(tmp_path / "model.zip")
        loaded = load_model(algorithm, tmp_path / "model.zip", Bandit(ACTIONS[algorithm]))
        observation = env.observation.flatten()
        for name, each in {"made": model, "loaded": loaded}.items():
            predicted[name].append([each.predict(observation)[0] for _ in range(30)])
        assert global_states() == before
    for first, second in predicted.values():
        np.testing.assert_array_equal(first, second)


def test_states_saved_while_in_use_are_the_current_ones():
    own = OwnRandomness()
    with own.in_use():
        torch.manual_seed(0)
        torch.rand(3)
        saved = own.__getstate__()
        expected = torch.rand(1)
    again = OwnRandomness()
    again.__dict__.update(saved)
    with again.in_use(), again.in_use():
        assert torch.rand(1) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_model_predicts_the_same_and_continues_to_learn(algorithm, tmp_path):
    env = Bandit(ACTIONS[algorithm])
    model = make_model(algorithm, env, seed=0)
    model.learn(7 * steps_of_an_update(env))
    model.save(tmp_path / "model.zip")
    loaded = load_model(algorithm, tmp_path / "model.zip", Bandit(ACTIONS[algorithm]))
    other = make_model(algorithm, env, seed=1)
    start_from(other, tmp_path / "model.zip")
    for _ in range(10):
        env._observe()
        expected = model.predict(env.observation.flatten(), deterministic=True)[0]
        for each in (loaded, other):
            np.testing.assert_array_equal(each.predict(env.observation.flatten(), deterministic=True)[0], expected)
    before = networks(loaded)
    loaded.learn(2 * steps_of_an_update(env), reset_num_timesteps=False)
    assert loaded.num_timesteps == 9 * steps_of_an_update(env)
    assert any((value != before[name]).any() for name, value in networks(loaded).items())


def test_a_damaged_or_foreign_zip_is_refused(tmp_path):
    path, env = tmp_path / "model.zip", Bandit()
    make_model("ppo", env, seed=0).save(path)
    with pytest.raises(CheckpointError, match="model of ppo, not of a2c"):
        load_model("a2c", path, env)
    with pytest.raises(CheckpointError, match=r"another environment or version: .* spaces do not match"):
        load_model("ppo", path, Bandit(groups=5))
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"", whole[:500] + bytes([whole[500] ^ 255]) + whole[501:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model.zip is damaged"):
            load_model("ppo", path, env)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ConfigurationError, match="no algorithm 'trpo': choose one of ppo, a2c, dqn, sac"):
        make_model("trpo", Bandit(), seed=0)


def play_a_run(algorithm, env):
    """Play a whole run with a model that does not learn; return the model and the last reward and info passed to it."""
    seen = {}

    def look(local, _):
        seen.update(reward=local["rewards"][0], info=local["infos"][0])
        return True

    model = make_model(algorithm, env, seed=0, learning_rate=0.0)
    model.learn(steps_of_an_update(env), look)
    return model, float(seen["reward"]), seen["info"]


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
@pytest.mark.parametrize("terminates", [False, True])
def test_the_value_of_the_last_observation_is_bootstrapped_only_at_a_truncation(make_env, algorithm, terminates):
    env = Bandit(updates=1, terminates=True) if terminates else make_env(total_updates=1)
    model, reward, info = play_a_run(algorithm, env)
    value = model.policy.predict_values(torch.as_tensor(info["terminal_observation"])[None]).item()
    assert abs(value) > 1e-3
    assert info["TimeLimit.truncated"] == (not terminates)
    expected = reward if terminates else reward + model.gamma * value
    assert model.rollout_buffer.rewards[-1, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("algorithm", ["dqn", "sac"])
def test_a_truncation_is_not_a_terminal_state_in_the_replay_buffer(make_env, algorithm):
    env = make_env(total_updates=1)
    model, _, info = play_a_run(algorithm, MixtureAction(env) if algorithm == "sac" else env)
    assert info["TimeLimit.truncated"]
    assert model.replay_buffer.full
    sample = model.replay_buffer._get_samples(np.array([model.replay_buffer.buffer_size - 1]))
    assert sample.dones.item() == 0
    np.testing.assert_array_equal(sample.next_observations[0], info["terminal_observation"])


def test_actions_drawn_ahead_follow_the_policy():
    env = Bandit(num_actions=64)
    model = make_model("ppo", env, seed=0)
    policy, [first, second] = model.policy, torch.rand(2, 1, 8)
    policy.set_training_mode(False)
    actions = []
    for observation in (first, first, second, first, *[first] * 400):
        action, value, log_probability = policy(observation)
        values, log_probabilities, _ = policy.evaluate_actions(observation, action)
        torch.testing.assert_close((value, log_probability), (values, log_probabilities))
        actions.append(action.item())
    expected = policy.get_distribution(first).distribution.probs[0].detach().numpy()
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / len(actions), expected, atol=0.1)
    with torch.no_grad():
        policy.action_net.bias[2] += 100  # as learning does, between two calls of set_training_mode
    policy.set_training_mode(True)
    policy.set_training_mode(False)
    assert policy(first)[0].item() == 2


def test_the_seed_determines_the_run(make_env):
    env = make_env(total_updates=1)
    expected, _ = env.reset(seed=3)
    make_model("ppo", env, seed=3).learn(1, lambda *_: False)
    np.testing.assert_array_equal(env.unwrapped.records[0].observation, expected)


def test_rewards_are_normalised_once_and_observations_flat(make_env):
    env = make_env()
    for given in (env, NormalizedReward(env)):
        model = make_model("ppo", given, seed=0)
        layers, layer = [], model.env.envs[0]
        while isinstance(layer, gym.Wrapper):
            layers.append(type(layer))
            layer = layer.env
        assert layers.count(NormalizedReward) == 1
        assert model.observation_space.shape == (8,)
    assert (
        make_model("ppo", MixtureAction(env), seed=0).gamma == 0.5
    )  # one step for the free iterations, one for the update
    assert make_model("ppo", ActionBlock(make_env(free_iterations=0)), seed=0).gamma == 0
    joint = FlatJointAction(make_env(task="spatiotemporal"))
    assert make_model("dqn", joint, seed=0, gamma=0.5).gamma == 0.5
