"""Stable-Baselines3: learning in the middle of a run, the run folder, random states, and that something is learned."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.sb3 import ALGORITHMS, OwnRandomness, load_model, make_model, start_from, steps_of_an_update
from experiments import job, reinforce, runs, sb3
from permenv import CheckpointError, ConfigurationError, make_config
from permenv.wrappers import ActionBlock, FlatJointAction, MixtureAction, NormalizedReward
from tests.experiments.test_experiments import SETTINGS, metrics
from tests.helpers import ROOT

VIEWS = {"ppo": "groups", "a2c": "groups", "dqn": "groups", "sac": "mixture"}
CASES = [
    ("ppo", "temporal", "groups"),
    ("ppo", "spatial", "mixture"),
    ("ppo", "spatial", "block"),
    ("ppo", "spatiotemporal", "groups"),
    ("a2c", "spatiotemporal", "pairs"),
    ("a2c", "spatiotemporal", "block"),
    ("dqn", "temporal", "groups"),
    ("dqn", "spatiotemporal", "pairs"),
    ("sac", "spatiotemporal", "mixture"),
]
ENOUGH = {"ppo": 2, "a2c": 2, "dqn": 2, "sac": 6}  # updates after which an algorithm has learned for the first time


class Bandit(gym.Env):
    """The environment's interface without its network: the more an update chooses group 0, the higher its reward.

    As there, its K actions share an observation, and the last of them returns the reward of all.
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


def config(out, algorithm="ppo", **options):
    return sb3.Config(
        **{
            **{"out": out, "algorithm": algorithm, "updates": ENOUGH[algorithm], "free_iterations": 1},
            **{"device": "cpu", "set": SETTINGS, **options},
        }
    )


def global_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, keys.tolist(), rest, torch.get_rng_state().tolist()


def networks(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Leave out what takes most of the time of a run this small."""
    monkeypatch.setattr(runs.RunFolder, "picture", lambda *_: None)


@pytest.fixture(scope="module", params=ALGORITHMS)
def finished(request, tmp_path_factory):
    """A finished run of each algorithm: its name and its folder."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.RunFolder, "picture", lambda *_: None)
        sb3.main(config(folder, request.param))
    return request.param, folder


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """The run folder of the main job, of each task."""

    def folder(task):
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task) / "run"
            reinforce.main(
                reinforce.Config(task=task, out=made[task], updates=1, free_iterations=1, device="cpu", set=SETTINGS)
            )
        return made[task]

    made = {}
    return folder


# The job


@pytest.mark.parametrize(("algorithm", "task", "actions"), CASES)
def test_a_run_learns_before_it_ends_and_leaves_the_main_jobs_folder(
    tmp_path, main_job, capsys, algorithm, task, actions
):
    options = config(tmp_path / "run", algorithm, task=task, actions=actions)
    summary = sb3.main(options)
    said = capsys.readouterr().out
    ours, theirs = tmp_path / "run", main_job(task)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()} | {sb3.MODEL}
    assert list(metrics(ours)[0]) == list(metrics(theirs)[0])
    assert summary.keys() == json.loads((theirs / "summary.json").read_text()).keys()
    assert [row["update"] for row in metrics(ours)] == [str(update + 1) for update in range(options.updates)]
    assert 0 < summary["seconds_policy"] < summary["seconds"]
    assert f"after {3 * options.updates} iterations" in said
    with job.Recorder(config(ours, algorithm, task=task, actions=actions, resume=True)) as run:
        env = sb3._VIEWS[actions](run)
        model = load_model(algorithm, ours / sb3.MODEL, env)
        assert model.num_timesteps == options.updates * steps_of_an_update(env)
        assert model._n_updates > 0
        untrained = networks(make_model(algorithm, env, seed=0))
        assert any((value != untrained[name]).any() for name, value in networks(model).items())


def test_the_same_seed_gives_the_same_run_whatever_the_global_states_are(finished, tmp_path):
    algorithm, folder = finished
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    before = global_states()
    sb3.main(config(tmp_path / "again", algorithm))
    assert global_states() == before
    assert metrics(tmp_path / "again") == metrics(folder)
    sb3.main(config(tmp_path / "another", algorithm, updates=1, seed=1))
    assert metrics(tmp_path / "another")[0] != metrics(folder)[0]


def test_a_run_goes_on_where_it_was_saved(finished, tmp_path):
    algorithm, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    more = ENOUGH[algorithm] + 2
    sb3.main(config(tmp_path / "run", algorithm, updates=more, resume=True))
    rows = metrics(tmp_path / "run")
    assert rows[:-2] == metrics(folder)
    assert [row["iteration"] for row in rows] == [str(3 * (update + 1)) for update in range(more)]
    summary = sb3.main(config(tmp_path / "run", algorithm, updates=more, resume=True))  # there is nothing left to do
    assert (summary["updates"], len(metrics(tmp_path / "run"))) == (more, more)


def test_a_run_begins_with_the_networks_of_another(finished, tmp_path):
    algorithm, folder = finished
    options = {"model_from": folder / sb3.MODEL, "updates": 1}
    sb3.main(config(tmp_path / "run", algorithm, **options, set=(*SETTINGS, "iterations_per_update=3")))
    other = next(name for name in ALGORITHMS if name != algorithm and VIEWS[name] == "groups")
    with pytest.raises(CheckpointError, match=f"is a model of {algorithm}, not of {other}"):
        sb3.main(config(tmp_path / "x", other, **options))
    with pytest.raises(CheckpointError, match=r"model.zip is a model of other sizes"):
        sb3.main(config(tmp_path / "x", algorithm, **options, hidden=8))
    assert not (tmp_path / "x").exists()


def test_a_run_that_diverges_ends_and_is_summed_up(tmp_path, capsys):
    summary = sb3.main(config(tmp_path / "run", updates=5, set=(*SETTINGS, "learning_rate=1e12")))
    assert summary["diverged"]
    assert summary["updates"] < 5
    assert float(metrics(tmp_path / "run")[-1]["spatial/error"]) == 1
    assert "The loss was not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"algorithm": "dqn", "task": "spatiotemporal"},
            ConfigurationError,
            r"FlatJointAction.*--actions pairs",
        ),
        ({"algorithm": "dqn", "actions": "mixture"}, ConfigurationError, "dqn chooses from Discrete"),
        ({"algorithm": "sac", "actions": "groups"}, ConfigurationError, r"MixtureAction\(env\)"),
        ({"actions": "pairs"}, ConfigurationError, "FlatJointAction over task='spatial'"),
        ({"hidden": 0}, ConfigurationError, "hidden=0: must be at least 1"),
        ({"model_from": Path("/nowhere")}, CheckpointError, "no model at /nowhere"),
        ({"resume": True}, runs.RunFolderError, r"no checkpoint.safetensors"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        sb3.main(config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_algorithm_is_not_continued(finished):
    algorithm, folder = finished
    other = "ppo" if algorithm != "ppo" else "a2c"
    with pytest.raises(CheckpointError, match=f"started with algorithm='{algorithm}', not '{other}'"):
        sb3.main(config(folder, other, resume=True))


def test_errors_reach_the_user_as_one_line(tmp_path):
    command = [*(sys.executable, "experiments/sb3.py", "--algorithm", "sac", "--actions", "groups", "--out")]
    command += [str(tmp_path / "run"), "--set", *SETTINGS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: sac chooses from Box")
    assert len(result.stderr.strip().splitlines()) == 1


# The models


@pytest.mark.parametrize("free", [0, 2])
@pytest.mark.parametrize("view", ["groups", "mixture", "block", "pairs"])
def test_the_steps_of_an_update_are_those_from_reward_to_reward(make_env, free, view):
    env = sb3._VIEWS[view](make_env(task="spatiotemporal", free_iterations=free))
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
def test_it_learns_which_group_is_rewarded(algorithm):
    env = Bandit(VIEWS[algorithm])
    updates = {"ppo": 60, "a2c": 120, "dqn": 40, "sac": 25}[algorithm]
    make_model(algorithm, env, seed=0).learn(updates * steps_of_an_update(env))
    assert len(env.scores) == updates
    # drawn at random it is 0.25; all that half of the actions can do is 0.625, and all that a lean can 0.7
    assert np.mean(env.scores[-10:]) > 0.45


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_moves_the_global_states(algorithm, tmp_path):
    predicted = {"made": [], "loaded": []}
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        before = global_states()
        env = Bandit(VIEWS[algorithm], updates=4)
        model = make_model(algorithm, env, seed=0)
        model.learn(7 * steps_of_an_update(env))
        model.save(tmp_path / "model.zip")
        loaded = load_model(algorithm, tmp_path / "model.zip", Bandit(VIEWS[algorithm]))
        observation = env.observation.flatten()
        for name, each in {"made": model, "loaded": loaded}.items():
            predicted[name].append([each.predict(observation)[0] for _ in range(30)])
        assert global_states() == before
    for first, second in predicted.values():
        np.testing.assert_array_equal(first, second)


def test_what_is_saved_while_states_are_lent_is_what_moves():
    own = OwnRandomness()
    with own.lent():
        torch.manual_seed(0)
        torch.rand(3)
        saved = own.__getstate__()
        expected = torch.rand(1)
    again = OwnRandomness()
    again.__dict__.update(saved)
    with again.lent(), again.lent():
        assert torch.rand(1) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_model_predicts_the_same_and_goes_on_learning(algorithm, tmp_path):
    env = Bandit(VIEWS[algorithm])
    model = make_model(algorithm, env, seed=0)
    model.learn(7 * steps_of_an_update(env))
    model.save(tmp_path / "model.zip")
    loaded = load_model(algorithm, tmp_path / "model.zip", Bandit(VIEWS[algorithm]))
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
    """Let a model that does not learn play a whole run: the model, the last reward and the last info it was given."""
    seen = {}

    def look(local, _):
        seen.update(reward=local["rewards"][0], info=local["infos"][0])
        return True

    model = make_model(algorithm, env, seed=0, learning_rate=0.0)
    model.learn(steps_of_an_update(env), look)
    return model, float(seen["reward"]), seen["info"]


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
@pytest.mark.parametrize("terminates", [False, True])
def test_where_a_run_is_truncated_the_value_of_its_last_observation_enters(make_env, algorithm, terminates):
    env = Bandit(updates=1, terminates=True) if terminates else make_env(total_updates=1)
    model, reward, info = play_a_run(algorithm, env)
    value = model.policy.predict_values(torch.as_tensor(info["terminal_observation"])[None]).item()
    assert abs(value) > 1e-3
    assert info["TimeLimit.truncated"] == (not terminates)
    expected = reward if terminates else reward + model.gamma * value
    assert model.rollout_buffer.rewards[-1, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("algorithm", ["dqn", "sac"])
def test_a_truncated_run_is_no_end_to_a_replay_buffer(make_env, algorithm):
    env = make_env(total_updates=1)
    model, _, info = play_a_run(algorithm, MixtureAction(env) if algorithm == "sac" else env)
    assert info["TimeLimit.truncated"]
    assert model.replay_buffer.full
    sample = model.replay_buffer._get_samples(np.array([model.replay_buffer.buffer_size - 1]))
    assert sample.dones.item() == 0
    np.testing.assert_array_equal(sample.next_observations[0], info["terminal_observation"])


def test_actions_drawn_ahead_are_those_of_the_policy():
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


def test_the_run_is_that_of_the_seed(make_env):
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
    assert make_model("ppo", MixtureAction(env), seed=0).gamma == 0.5  # a step of free iterations and one of the update
    assert make_model("ppo", ActionBlock(make_env(free_iterations=0)), seed=0).gamma == 0
    joint = FlatJointAction(make_env(task="spatiotemporal"))
    assert make_model("dqn", joint, seed=0, gamma=0.5).gamma == 0.5
