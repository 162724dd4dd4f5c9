"""The environment's contract, for every registered id: DESIGN section 4, word by word."""

import json
import pickle
import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SMALL
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from permenv import CheckpointError, ConfigurationError, DataError, PermShuffleEnv
from permenv.augment import cut_tiles, normalise, unshuffled
from permenv.reward import extrapolated_error

IDS = sorted(name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("permenv"))


def actions_of(env, count, seed=0):
    return np.random.default_rng(seed).integers(env.action_space.n, size=count)


def rollout(env, actions):
    """Observations, rewards, endings and infos of some actions."""
    return [env.step(action) for action in actions]


def assert_same(first, second):
    for (o, *rest), (p, *others) in zip(first, second, strict=True):
        np.testing.assert_array_equal(o, p)
        assert rest == others


def weights_of(env):
    return [p.detach().clone() for p in env.unwrapped.trainer.network.parameters()]


# What other libraries demand


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_has_nothing_to_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name, **SMALL).unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_checker_has_nothing_to_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(gym.make(name, **SMALL)))


@pytest.mark.parametrize("name", IDS)
def test_unflattened_stable_baselines_only_recommends_to_flatten(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(gym.make(name, **SMALL))
    assert ["unconventional shape" in str(warning.message) for warning in caught] == [True]


@pytest.mark.parametrize("name", IDS)
def test_the_same_seed_gives_the_same_50_steps_whatever_else_happens(name):
    first, second = gym.make(name, **SMALL), gym.make(name, **SMALL)
    actions = actions_of(first, 50)
    observation, info = first.reset(seed=3)
    trajectory = rollout(first, actions)

    torch.manual_seed(99)
    torch.nn.Linear(10, 10)(torch.randn(5, 10)).sum().backward()
    np.random.rand(7)  # noqa: NPY002 - unrelated work
    random.random()
    again, same_info = second.reset(seed=3)
    np.testing.assert_array_equal(observation, again)
    assert info == same_info
    for action, expected in zip(actions, trajectory, strict=True):
        torch.rand(3)
        assert_same([second.step(action)], [expected])
    assert any(step[1] != 0 for step in trajectory)
    assert len({step[0].tobytes() for step in trajectory}) > 2


def test_other_seeds_give_other_runs(make_env):
    env = make_env()
    first = env.reset(seed=0)[0]
    assert not np.array_equal(first, env.reset(seed=1)[0])
    np.testing.assert_array_equal(first, env.reset(seed=0)[0])


def test_a_reset_without_a_seed_goes_on_drawing(make_env):
    env, twin = make_env(), make_env()
    first = env.reset(seed=0)[0]
    second = env.reset()[0]
    assert not np.array_equal(first, second)
    twin.reset(seed=0)
    np.testing.assert_array_equal(twin.reset()[0], second)


def test_no_global_random_state_is_moved(make_env):
    env = make_env()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    env.reset(seed=0)
    rollout(env, actions_of(env, 30))
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("steps", [None, 0, 13])
def test_the_environment_pickles(name, steps):
    env = gym.make(name, **SMALL)
    if steps is not None:
        env.reset(seed=1)
        rollout(env, actions_of(env, steps))
    twin = pickle.loads(pickle.dumps(env))
    if steps is None:
        np.testing.assert_array_equal(env.reset(seed=2)[0], twin.reset(seed=2)[0])
    assert_same(rollout(env, actions_of(env, 30, 5)), rollout(twin, actions_of(env, 30, 5)))


# Spaces, rewards, the clock


def test_spaces(make_env):
    env = make_env()
    assert env.action_space == gym.spaces.Discrete(4)
    assert env.observation_space.shape == (4, 2)
    assert env.observation_space.dtype == np.float32
    np.testing.assert_array_equal(env.observation_space.low, [[0, 0.5]] * 4)
    np.testing.assert_array_equal(env.observation_space.high, [[1, 2]] * 4)


@pytest.mark.parametrize(("free", "update", "m"), [(0, 1, 8), (0, 3, 2), (2, 1, 4), (1, 2, 1)])
def test_the_clock(make_env, free, update, m):
    """When iterations, validations, updates and the end come, action by action."""
    env = make_env(free_iterations=free, iterations_per_update=update, samples_per_action=m, total_updates=2)
    observation, info = env.reset(seed=0)
    assert info["validated"]
    assert info["iteration"] == info["update"] == 0
    per_iteration, cycle = 8 // m, free + update
    for number in range(1, 2 * cycle * per_iteration + 1):
        observation_before, weights_before = observation, weights_of(env)
        observation, reward, terminated, truncated, info = env.step(number % 4)
        iterations, rest = divmod(number, per_iteration)
        place = iterations % cycle
        full = rest == 0
        ends_update, ends_free = full and place == 0, full and free > 0 and place == free
        assert info["iteration"] == iterations
        assert info["update"] == iterations // cycle
        assert info["validated"] == (ends_update or ends_free)
        assert info["phase"] == ("free" if (number - 1) // per_iteration % cycle < free else "update")
        assert all(map(torch.equal, weights_of(env), weights_before)) == (not full)
        assert truncated == (number == 2 * cycle * per_iteration)
        assert not terminated
        if not info["validated"]:
            np.testing.assert_array_equal(observation, observation_before)
        if not ends_update:
            assert reward == 0
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_rewards_are_equation_7_on_the_errors_of_info(make_env):
    env = make_env(free_iterations=1, iterations_per_update=3, total_updates=6, learning_rate=0.2)
    _, info = env.reset(seed=0)
    history, rewards = [(0, info["error"])], []
    for action in actions_of(env, 6 * 4 * 4):
        _, reward, _, _, info = env.step(action)
        assert info["task_rewards"] == {"spatial": reward}
        assert info["task_errors"] == {"spatial": info["error"]}
        if info["validated"]:
            baseline = extrapolated_error(history, info["iteration"])
            assert info["baseline_error"] == baseline
            if info["phase"] == "update":
                assert reward == baseline - info["error"]
                rewards.append(reward)
            history.append((info["iteration"], info["error"]))
    assert env.unwrapped.history == history
    assert len(rewards) == 6
    assert any(rewards)


def test_observations_are_copies(make_env):
    env = make_env()
    observation, _ = env.reset(seed=0)
    expected = observation.copy()
    observation[:] = 0
    np.testing.assert_array_equal(env.step(0)[0], expected)


def test_the_first_validation_is_near_chance(make_env):
    _, info = make_env().reset(seed=0)
    assert info["error"] > 0.9
    assert info["loss"] == pytest.approx(np.log(24))


# What an action does


def test_an_action_draws_uniformly_from_its_group_only(make_env):
    env = make_env(batch_size=512, samples_per_action=512, free_iterations=0, iterations_per_update=100)
    env.reset(seed=0)
    world, seen = env.unwrapped, []
    world.trainer.step = lambda images, labels, rng: seen.append(labels.copy()) or 1.0
    for action in range(4):
        members = np.flatnonzero(world.groups["spatial"] == action)
        env.step(action)
        counts = np.bincount(seen[-1], minlength=24)
        assert set(np.flatnonzero(counts)) <= set(members)
        expected = 512 / len(members)
        assert ((counts[members] - expected) ** 2 / expected).sum() < 3 * len(members) + 15


def test_validation_samples_are_never_trained_on(make_env):
    env = make_env(num_validation=50)
    env.reset(seed=0)
    world = env.unwrapped
    assert len(set(world.validation_indices)) == 50
    taken = []
    take = type(world.data).take
    object.__setattr__(world, "data", _Recorder(world.data, take, taken))
    rollout(env, actions_of(env, 80))
    assert len(taken) > 100
    assert not set(taken) & set(world.validation_indices)
    assert set(taken) <= set(world.training_indices)


class _Recorder:
    """Images that remember which of them were asked for."""

    def __init__(self, data, take, taken):
        self._data, self._take, self._taken = data, take, taken

    def __len__(self):
        return len(self._data)

    def take(self, indices, device):
        self._taken.extend(indices.tolist())
        return self._take(self._data, indices, device)


@pytest.mark.parametrize("action", [4, -1, 1.5, "hard", None])
def test_an_action_out_of_range_is_refused_and_changes_nothing(make_env, action):
    env, twin = make_env(), make_env()
    env.reset(seed=0)
    twin.reset(seed=0)
    env.step(1)
    twin.step(1)
    with pytest.raises(gym.error.InvalidAction, match=r"pass an integer from 0 to 3"):
        env.unwrapped.step(action)
    assert_same(rollout(env, actions_of(env, 30)), rollout(twin, actions_of(env, 30)))


def test_an_empty_group_stands_for_the_easiest(make_env):
    env = make_env()
    env.reset(seed=0)
    world = env.unwrapped
    world._look_at(world.validation["spatial"], np.repeat([0, 1], 12))
    np.testing.assert_array_equal(world._members[3], np.arange(12, 24))
    np.testing.assert_array_equal(world._observation[2:, 0], 0)
    seen = []
    world.trainer.step = lambda images, labels, rng: seen.extend(labels) or 1.0
    rollout(env, [3] * 4)
    assert min(seen) >= 12


def test_stepping_before_reset(make_env):
    with pytest.raises(gym.error.ResetNeeded):
        make_env().unwrapped.step(0)


# Divergence


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_divergence_terminates_with_the_worst_error(make_env, broken):
    env = make_env(free_iterations=0, iterations_per_update=1)
    env.reset(seed=0)
    rollout(env, [0, 1, 2, 3])
    world = env.unwrapped
    last, history = world._observation.copy(), list(world.history)
    if broken == "loss":
        world.trainer.network.heads["spatial"].classifier.bias.data.fill_(torch.nan)
    else:
        step = world.trainer.step

        def step_and_break(*arguments):
            loss = step(*arguments)
            for parameter in world.trainer.evaluated.trunk.parameters():
                parameter.data.fill_(torch.nan)
            return loss

        world.trainer.step = step_and_break
    for action in range(4):
        observation, reward, terminated, truncated, info = env.step(action)
    assert terminated
    assert not truncated
    assert info["diverged"] is True
    assert info["error"] == 1
    np.testing.assert_array_equal(observation, last)
    assert reward == info["baseline_error"] - 1
    assert info["baseline_error"] == pytest.approx(extrapolated_error(history, 2))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    assert np.isfinite(env.reset(seed=0)[0]).all()


# What researchers look at


def test_validation_groups_and_permutations_fit_together(make_env):
    env = make_env()
    observation, info = env.reset(seed=0)
    world = env.unwrapped
    validation, groups = world.validation["spatial"], world.groups["spatial"]
    assert validation.ratios.shape == validation.correct.shape == (24, 12)
    assert validation.correct.dtype == bool
    assert validation.error == info["error"] == 1 - validation.correct.mean()
    assert world.permutations["spatial"].shape == (24, 9)
    for group in range(4):
        assert observation[group, 0] == pytest.approx((groups == group).mean())
        assert observation[group, 1] == pytest.approx(np.median(validation.ratios[groups == group]))


def test_the_network_answers_for_permuted_pieces_without_being_changed(make_env):
    env = make_env()
    env.reset(seed=0)
    rollout(env, actions_of(env, 20))
    world, twin = env.unwrapped, env.unwrapped.fork()
    recognised = env.unwrapped.fork()._validate().correct[5]
    images = world.data.take(world.validation_indices, world.device)
    order = world.permutations["spatial"][np.full(12, 5)]
    offsets = np.full((12, 9, 2), (36 - 32) // 2)
    logits = world.network("spatial", normalise(cut_tiles(images, order, offsets, 3, 32)))
    assert logits.shape == (12, 24)
    np.testing.assert_array_equal(logits.argmax(1).numpy() == 5, recognised)
    assert_same(rollout(world, actions_of(env, 20)), rollout(twin, actions_of(env, 20)))


def test_what_it_sees_is_what_an_image_viewer_shows(make_env):
    """The nine centre crops of X_val, laid out again, are the images themselves."""
    env = make_env(piece_size=36)
    env.reset(seed=0)
    world = env.unwrapped
    images = world.data.take(world.validation_indices, world.device)
    pieces = cut_tiles(images, unshuffled(12, 9), np.zeros((12, 9, 2), dtype=int), 3, 36)
    rebuilt = pieces.view(12, 3, 3, 36, 36, 3).permute(0, 1, 3, 2, 4, 5).reshape(images.shape)
    assert torch.equal(rebuilt, images)


# Fork, save, restore


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 100))
@settings(deadline=None, max_examples=8)
def test_fork_and_parent_continue_identically_and_do_not_touch_each_other(depth, length, seed):
    env = gym.make("PermShuffle-v0", **SMALL)
    env.reset(seed=seed)
    rollout(env, actions_of(env, depth, seed))
    parent = env.unwrapped
    fork, stray = parent.fork(), parent.fork()
    rollout(stray, actions_of(env, length, seed + 1))
    actions = actions_of(env, length, seed + 2)
    assert_same(rollout(parent, actions), rollout(fork, actions))
    assert all(map(torch.equal, weights_of(parent), weights_of(fork)))


@pytest.mark.parametrize("steps", [0, 7, 24])
def test_a_saved_run_continues_bit_for_bit(make_env, tmp_path, steps):
    env, other = make_env(), make_env()
    env.reset(seed=4)
    rollout(env, actions_of(env, steps))
    env.unwrapped.save(tmp_path / "run")
    observation, info = other.reset(options={"checkpoint": tmp_path / "run"})
    np.testing.assert_array_equal(observation, env.unwrapped._observation)
    assert info["iteration"] == env.unwrapped.trainer.iteration
    assert_same(rollout(env, actions_of(env, 40, 1)), rollout(other, actions_of(env, 40, 1)))
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()  # the generator too


def test_a_run_may_be_prolonged(make_env, tmp_path):
    env, longer = make_env(total_updates=1), make_env(total_updates=2)
    env.reset(seed=0)
    assert rollout(env, actions_of(env, 12))[-1][3]
    env.unwrapped.save(tmp_path / "run")
    longer.reset(options={"checkpoint": tmp_path / "run"})
    assert not longer.step(0)[3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_groups": 3}, r"num_groups=4, this environment num_groups=3"),
        ({"num_scenes": 61}, r"data='scenes-1-60-108-0'"),
        ({"learning_rate": 0.5, "momentum": 0.1}, r"2 differences: learning_rate, momentum"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(make_env, tmp_path, overrides, message):
    env, other, twin = make_env(), make_env(**overrides), make_env(**overrides)
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "run")
    other.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(CheckpointError, match=message):
        other.reset(seed=9, options={"checkpoint": tmp_path / "run"})
    assert_same(rollout(other, [0] * 20), rollout(twin, [0] * 20))


def test_a_truncated_checkpoint_is_refused_and_kept(make_env, tmp_path):
    env = make_env()
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    (tmp_path / "run").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        env.reset(options={"checkpoint": tmp_path / "run"})
    assert (tmp_path / "run").read_bytes() == content[:-100]


def test_nothing_to_save_before_reset(make_env, tmp_path):
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        make_env().unwrapped.save(tmp_path / "run")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "huge"}, ConfigurationError, r"unknown preset 'huge'"),
        ({"task": "colour"}, ConfigurationError, r"unknown task 'colour'; choose one of spatial"),
        ({"num_grups": 4}, ConfigurationError, r"did you mean 'num_groups'"),
        ({"num_groups": 25}, ConfigurationError, r"num_groups=25 is more than num_permutations=24"),
        ({"samples_per_action": 3}, ConfigurationError, r"batch_size=8 is not divisible by samples_per_action=3"),
        ({"num_validation": 60}, DataError, r"num_validation=60, but embedded scenes has only 60 images"),
        ({"images": "/nowhere"}, DataError, r"/nowhere"),
        ({"videos": "/clips"}, ConfigurationError, r"videos='/clips': task 'spatial' shuffles stills"),
        ({"device": "mps"}, ConfigurationError, r"unknown device 'mps'"),
    ],
)
def test_bad_arguments_are_named_with_their_remedy(make_env, arguments, error, message):
    with pytest.raises(error, match=message):
        make_env(**arguments)


def test_a_render_mode_that_does_not_exist():
    with pytest.raises(ConfigurationError, match=r"render_mode='ansi'"):
        PermShuffleEnv(render_mode="ansi", **SMALL)


def test_an_unknown_reset_option(make_env):
    with pytest.raises(ConfigurationError, match=r"unknown reset option 'restore'"):
        make_env().reset(options={"restore": "x"})


# Pictures, other backbones


def test_render_gives_a_picture_that_changes_with_the_run(make_env):
    env = make_env(render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (320, 800, 3)
    assert first.dtype == np.uint8
    rollout(env, actions_of(env, 12))
    assert not np.array_equal(first, env.render())


def test_the_paper_preset_trains_and_validates():
    """CaffeNet at the paper's piece size; only what makes it slow is smaller."""
    paper = gym.make(
        "PermShuffle-v0",
        preset="paper",
        device="cpu",
        num_scenes=12,
        num_permutations=20,
        num_validation=4,
        batch_size=4,
        free_iterations=1,
        iterations_per_update=1,
        total_updates=1,
    )
    paper.reset(seed=0)
    *_, truncated, info = rollout(paper, [0] * 8)[-1]
    assert truncated
    assert info["iteration"] == 2
    assert 0 < info["loss"] < 20
    assert paper.unwrapped.validation["spatial"].finite


def own_backbone() -> torch.nn.Module:
    """A trunk of somebody else, at module level so that it pickles."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


def test_a_backbone_of_ones_own(make_env):
    env = make_env(backbone=own_backbone)
    env.reset(seed=0)
    assert isinstance(env.unwrapped.trainer.network.trunk[2], torch.nn.AdaptiveAvgPool2d)
    twin = pickle.loads(pickle.dumps(env))
    assert_same(rollout(env, actions_of(env, 20)), rollout(twin, actions_of(env, 20)))


def test_the_identity_in_a_checkpoint_is_plain_json(make_env):
    env = make_env()
    env.reset(seed=0)
    assert json.loads(json.dumps(env.unwrapped.state_dict()["identity"]))["task"] == "spatial"


def test_real_photos(make_env, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path))
    env = make_env(images=real_data / "imagenette" / "val" / "n03000684")
    env.reset(seed=0)
    rollout(env, actions_of(env, 12))
    assert env.unwrapped.data.labels is None
