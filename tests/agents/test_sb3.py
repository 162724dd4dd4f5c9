"""Models of Stable-Baselines3: random states, saving, replay buffers, and that every algorithm learns."""

import base64
import json
import pickle
import random
import shutil
import tempfile
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import sb3
from agents.randomness import OwnRandomness
from agents.sb3 import ALGORITHMS, load_model, make_model, options_of, start_from, steps_of_an_update
from permenv import CheckpointError, ConfigurationError, make_config
from permenv.wrappers import ActionBlock, FlatJointAction, MixtureAction, NormalizedReward
from tests.helpers import global_states

ACTIONS = {"ppo": "groups", "a2c": "groups", "dqn": "groups", "sac": "mixture"}
WRAPPERS = {"groups": lambda env: env, "mixture": MixtureAction, "block": ActionBlock, "pairs": FlatJointAction}


class Bandit(gym.Env):
    """The environment's interface without a network: the more an update chooses group 0, the higher its reward.

    As in the environment, the K actions of an update share an observation, and the last one returns the reward.
    """

    def __init__(self, actions="groups", num_actions=8, updates=20, groups=4, terminates=False):
        self.actions, self.terminates, self.scores = actions, terminates, []
        one_step = actions == "mixture"
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
        shares = np.eye(self.config.num_groups)[action] if self.actions == "groups" else self.sizes * np.exp(action)
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


class Keeping(gym.Wrapper):
    """Does not begin again at a reset, as the recorder of a run does not."""

    def reset(self, **_):
        return self.unwrapped.observation, {}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def networks(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("free", [0, 2])
@pytest.mark.parametrize("actions", ["groups", "mixture", "block", "pairs"])
def test_the_steps_of_an_update_are_those_between_two_rewards(make_env, free, actions):
    env = WRAPPERS[actions](make_env(task="spatiotemporal", free_iterations=free))
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
        model.save(tmp_path / "model.safetensors")
        loaded = load_model(algorithm, tmp_path / "model.safetensors", Bandit(ACTIONS[algorithm]))
        observation = env.observation.flatten()
        for name, each in {"made": model, "loaded": loaded}.items():
            predicted[name].append([each.predict(observation)[0] for _ in range(30)])
        assert global_states() == before
    for first, second in predicted.values():
        np.testing.assert_array_equal(first, second)


def test_a_model_that_is_seeded_again_leaves_the_global_random_states_unchanged():
    env = Bandit()
    env.reset(seed=0)
    model = make_model("ppo", env, seed=0)
    before, drawn = global_states(), []
    for seed in (5, 6, 5):
        model.set_random_seed(seed)
        drawn.append([model.predict(env.observation.flatten())[0].item() for _ in range(30)])
    assert global_states() == before
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_model_logs_what_it_is_asked_to_log_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name, options in {
        "nothing": {},
        "verbose": {"verbose": 1},
        "tensorboard": {"tensorboard_log": str(tmp_path / "tensorboard")},
    }.items():
        env = Bandit()
        capsys.readouterr()
        make_model("ppo", env, seed=0, **options).learn(2 * steps_of_an_update(env))
        assert ("total_timesteps" in capsys.readouterr().out) == (name == "verbose")
        assert any((tmp_path / "temporary").iterdir()) == (name == "verbose")
        for each in (tmp_path / "temporary").iterdir():
            shutil.rmtree(each)
    assert len(list((tmp_path / "tensorboard").glob("PPO_1/events*"))) == 1


def test_states_saved_while_in_use_are_the_current_ones():
    own = OwnRandomness()
    with own.in_use():
        torch.manual_seed(0)
        torch.rand(3)
        saved = own.state_dict()
        expected = torch.rand(1)
    again = OwnRandomness()
    again.load_state_dict(saved)
    with again.in_use(), again.in_use():
        assert torch.rand(1) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_model_predicts_the_same_and_continues_to_learn(algorithm, tmp_path):
    env = Bandit(ACTIONS[algorithm])
    model = make_model(algorithm, env, seed=0)
    model.learn(7 * steps_of_an_update(env))
    model.save(tmp_path / "model.safetensors")
    loaded = load_model(algorithm, tmp_path / "model.safetensors", Bandit(ACTIONS[algorithm]))
    other = make_model(algorithm, env, seed=1)
    start_from(other, tmp_path / "model.safetensors")
    for _ in range(10):
        env._observe()
        expected = model.predict(env.observation.flatten(), deterministic=True)[0]
        for each in (loaded, other):
            np.testing.assert_array_equal(each.predict(env.observation.flatten(), deterministic=True)[0], expected)
    before = networks(loaded)
    loaded.learn(2 * steps_of_an_update(env), reset_num_timesteps=False)
    assert loaded.num_timesteps == 9 * steps_of_an_update(env)
    assert any((value != before[name]).any() for name, value in networks(loaded).items())


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path, env = tmp_path / "model.safetensors", Bandit()
    make_model("ppo", env, seed=0).save(path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: it is a model of ppo, not of a2c"):
        load_model("a2c", path, env)
    with pytest.raises(CheckpointError, match=r"of other sizes or of another version: .* 'observations': \[8\]"):
        load_model("ppo", path, Bandit(groups=5))
    with pytest.raises(CheckpointError, match=r"model.safetensors: it is a model of other sizes"):
        load_model("ppo", path, env, hidden=8)
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"", whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model.safetensors is (damaged|truncated)"):
            load_model("ppo", path, env)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_model_learns_what_the_saved_one_would_have(algorithm, tmp_path):
    """Every step is a whole update here, so that saving and loading leaves out none."""
    models = {}
    for name in ("saved", "loaded"):
        env = Bandit(ACTIONS[algorithm], num_actions=8, updates=1000)
        model = make_model(algorithm, env, seed=0)
        model.learn(7 * steps_of_an_update(env))
        if name == "loaded":
            model.save(tmp_path / "model.safetensors")
            model = load_model(algorithm, tmp_path / "model.safetensors", Keeping(env))
        model.learn(5 * steps_of_an_update(env), reset_num_timesteps=False)
        models[name] = model, env
    (saved, env), (loaded, other) = models.values()
    assert other.scores == env.scores
    assert loaded.num_timesteps == saved.num_timesteps
    for name, value in networks(saved).items():
        assert torch.equal(networks(loaded)[name], value), name


@pytest.mark.parametrize(("before", "after", "kept"), [(4, 10, 7), (10, 4, 4), (4, 5, 5), (10, 10, 7)])
def test_a_prolonged_run_keeps_its_latest_transitions(before, after, kept):
    env = Bandit("mixture", updates=before)
    model = make_model("sac", env, seed=0)
    model.learn(7)
    longer = make_model("sac", Bandit("mixture", updates=after), seed=0)
    longer.load_state_dict(model.state_dict())
    first, second = model.replay_buffer, longer.replay_buffer
    latest = min(kept, before)
    assert second.size() == latest

    def in_order(buffer):
        return np.roll(buffer.observations[: buffer.size()], -buffer.pos if buffer.full else 0, axis=0)[-latest:]

    np.testing.assert_array_equal(in_order(first), in_order(second))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: state["counters"].update(num_timesteps="many"), "num_timesteps = 'many'"),
        (lambda state: state["counters"].update(learn=1.0), "learn = 1.0"),
        (lambda state: state["random"].update(torch=torch.zeros(3)), ""),
        (lambda state: state["random"].pop("numpy"), "numpy"),
        (lambda state: state["networks"].pop("policy"), "policy"),
        (lambda state: state["networks"]["policy.optimizer"]["0"].update(exp_avg=torch.zeros(3)), "another shape"),
        (lambda state: state["replay_buffer"].update(position=-1), "position -1 among"),
        (lambda state: state["replay_buffer"].update(rewards=np.zeros((56, 2))), "rewards of the replay buffer"),
        (lambda state: state.pop("replay_buffer"), "replay_buffer"),
    ],
)
def test_a_state_that_was_tampered_with_is_refused(change, what):
    env = Bandit()
    model = make_model("dqn", env, seed=0)
    model.learn(7 * steps_of_an_update(env))
    state = model.state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=f"it is a model of other sizes or of another version: .*{what}"):
        make_model("dqn", env, seed=0).load_state_dict(state)


def test_a_pickle_is_never_read(tmp_path):
    """What Stable-Baselines3 itself saves is unpickled when it is loaded, and a pickle can run anything."""
    path, env = tmp_path / "model.zip", Bandit()
    with zipfile.ZipFile(path, "w") as file:
        bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "it exploded"))).decode()
        file.writestr("data", json.dumps({"algorithm": "ppo", "policy_class": {":serialized:": bomb}}))
    model = make_model("ppo", env, seed=0)
    with pytest.raises(CheckpointError, match=r"model.zip is truncated or not a checkpoint"):
        load_model("ppo", path, env)
    with pytest.raises(CheckpointError, match=r"model.zip is truncated or not a checkpoint"):
        start_from(model, path)
    with pytest.raises(ConfigurationError, match=r"agents\.sb3\.load_model"):
        type(model).load(path, env)
    assert not (tmp_path / "it exploded").exists()


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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_options_of_an_algorithm_are_those_that_can_be_changed(algorithm):
    found = options_of(algorithm)
    assert {"hidden", "learning_rate", "gamma", "policy_kwargs"} < found.keys()
    assert not {"env", "seed", "device", "optimize_memory_usage"} & found.keys()
    with pytest.raises(ConfigurationError, match="there is no algorithm 'sarsa'"):
        options_of("sarsa")


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


def test_options_override_those_chosen_here_one_by_one(make_env):
    env = MixtureAction(make_env(free_iterations=0))
    assert make_model("ppo", env, seed=0, policy="MlpPolicy").policy.net_arch == [16]
    own = make_model("ppo", make_env(), seed=0, policy_kwargs={"net_arch": [7]})
    assert own.policy.net_arch == [7]
    assert own.policy.ahead > 1, "the rest is as it was"


def test_a_replay_buffer_that_cannot_be_saved_is_refused(make_env):
    with pytest.raises(ConfigurationError, match=r"optimize_memory_usage=True: .*; leave it out"):
        make_model("dqn", make_env(), seed=0, optimize_memory_usage=True)


def test_the_steps_of_an_update_can_be_given_for_an_action_wrapper_of_ones_own(make_env):
    model = make_model("ppo", make_env(), seed=0, steps=5)
    assert model.n_steps == 5
    assert model.gamma == 1 - 1 / 5
    with pytest.raises(ConfigurationError, match="steps=0: must be at least 1"):
        make_model("ppo", make_env(), seed=0, steps=0)


@pytest.mark.parametrize(
    ("steps", "updates", "size"), [(3200, 30, 96_000), (497_664, 90, 1_000_000), (800_000, 9, 1_600_000)]
)
def test_a_replay_buffer_holds_a_run_a_million_transitions_or_two_updates(steps, updates, size):
    assert sb3._dqn(steps, updates)["buffer_size"] == size
