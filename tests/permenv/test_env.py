"""The environment's contract: checkers, spaces, determinism, info, actions and errors."""

import json
import pickle
import random
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from permenv import ConfigurationError, DataError, PermShuffleEnv
from tests.helpers import (
    PARTS,
    PIECES,
    SMALL,
    action_of,
    assert_same,
    every_task,
    global_states,
    joint_first,
    random_actions,
    rollout,
    small_backbone,
    spatial_first,
)

# What other libraries demand


@spatial_first
@pytest.mark.usefixtures("windows")  # it renders in every mode
def test_gymnasiums_checker_finds_nothing(task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("PermShuffle-v0", task=task, **SMALL).unwrapped)


@every_task
def test_stable_baselines_checker_finds_nothing(task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(gym.make("PermShuffle-v0", task=task, **SMALL)))


@pytest.mark.parametrize(
    ("task", "remarks"),
    [
        ("spatial", ["unconventional shape"]),
        ("temporal", ["unconventional shape"]),
        # it takes three axes for an image: not uint8, not in [0, 255], too small
        (
            "spatiotemporal",
            ["is an image but its `dtype`", "is an image but the upper and lower", "minimal resolution"],
        ),
    ],
)
def test_unflattened_stable_baselines_only_recommends_to_flatten(task, remarks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(gym.make("PermShuffle-v0", task=task, **SMALL))
    assert len(caught) == len(remarks)
    for warning, remark in zip(caught, remarks, strict=True):
        assert remark in str(warning.message)


# Determinism


@spatial_first
def test_the_same_seed_gives_the_same_50_steps_whatever_the_process_does_beside(task):
    first, second = (gym.make("PermShuffle-v0", task=task, **SMALL, learning_rate=0.2) for _ in range(2))
    actions = random_actions(first, 50)
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


@joint_first
def test_other_seeds_give_other_runs(make_env, task):
    env = make_env(task=task)
    first = env.reset(seed=0)[0]
    assert not np.array_equal(first, env.reset(seed=1)[0])
    np.testing.assert_array_equal(first, env.reset(seed=0)[0])


@joint_first
def test_a_reset_without_a_seed_continues_the_generator(make_env, task):
    env, twin = make_env(task=task), make_env(task=task)
    first = env.reset(seed=0)[0]
    second = env.reset()[0]
    assert not np.array_equal(first, second)
    twin.reset(seed=0)
    np.testing.assert_array_equal(twin.reset()[0], second)


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.SFC64])
def test_a_generator_of_the_users_is_continued(make_env, tmp_path, kind):
    env, restored = make_env(), make_env()
    env.unwrapped.np_random = np.random.Generator(kind(0))
    env.reset()
    fork = env.unwrapped.fork()
    env.unwrapped.save(tmp_path / "run")
    restored.reset(options={"checkpoint": tmp_path / "run"})
    expected = env.reset()[0]
    np.testing.assert_array_equal(fork.reset()[0], expected)
    np.testing.assert_array_equal(restored.reset()[0], expected)


def test_render_without_a_mode_says_so(make_env):
    env = make_env().unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match=r"render\(\) does nothing without a render mode"):
        assert env.render() is None


@every_task
def test_global_random_states_are_unchanged(make_env, task):
    before = global_states()
    env = make_env(task=task)
    env.reset(seed=0)
    rollout(env, random_actions(env, 14))
    assert global_states() == before


# Spaces, observations, info


@every_task
def test_spaces(make_env, task):
    env = make_env(task=task)
    joint = task == "spatiotemporal"
    assert env.action_space == (gym.spaces.MultiDiscrete([4, 4]) if joint else gym.spaces.Discrete(4))
    assert env.observation_space.shape == ((2, 4, 2) if joint else (4, 2))
    assert env.observation_space.dtype == np.float32
    for low, high in zip(
        env.observation_space.low.reshape(-1, 2), env.observation_space.high.reshape(-1, 2), strict=True
    ):
        assert low.tolist() == [0, 0.5]
        assert high.tolist() == [1, 2]


@every_task
def test_the_first_validation_is_near_chance(make_env, task):
    _, info = make_env(task=task).reset(seed=0)
    assert all(error > 0.9 for error in info["task_errors"].values())
    assert all(loss == pytest.approx(np.log(24)) for loss in info["task_losses"].values())
    assert info["task_baseline_errors"] == info["task_errors"]
    assert set(info["task_rewards"].values()) == {0}


@every_task
def test_the_observation_summarises_the_validation_and_its_groups(make_env, task):
    env = make_env(task=task)
    observation, info = env.reset(seed=0)
    base_env = env.unwrapped
    assert list(base_env.validation) == list(base_env.groups) == list(base_env.permutations) == PARTS[task]
    for part, summary in zip(PARTS[task], observation.reshape(-1, 4, 2), strict=True):
        validation, groups = base_env.validation[part], base_env.groups[part]
        assert validation.ratios.shape == validation.correct.shape == (24, 12)
        assert validation.correct.dtype == bool
        assert validation.error == info["task_errors"][part] == 1 - validation.correct.mean()
        assert base_env.permutations[part].shape == (24, PIECES[part])
        assert base_env.run.held_out[part].shape == (12, {"spatial": 1, "temporal": 9}[part])
        for group in range(4):
            assert summary[group, 0] == pytest.approx((groups == group).mean())
            assert summary[group, 1] == pytest.approx(np.median(validation.ratios[groups == group]))


@every_task
def test_info_has_the_documented_keys_and_plain_values(make_env, task):
    env = make_env(task=task)
    infos = [env.reset(seed=0)[1], *(step[4] for step in rollout(env, random_actions(env, 12)))]
    numbers = {"update": int, "iteration": int, "loss": float, "error": float, "baseline_error": float}
    kinds = {"validated": bool, "phase": str, "diverged": bool, **numbers}
    by_task = {"task_losses", "task_errors", "task_cross_entropies", "task_baseline_errors", "task_rewards"}
    for info in infos:
        assert info.keys() == kinds.keys() | by_task
        assert all(type(info[key]) is kind for key, kind in kinds.items())
        for key in by_task:
            assert list(info[key]) == PARTS[task]
            assert all(type(value) is float for value in info[key].values())
        assert json.loads(json.dumps(info)) == info
    assert infos[-1]["validated"]


@joint_first
def test_observations_and_infos_are_copies(make_env, task):
    env, twin = make_env(task=task), make_env(task=task)
    observation, info = env.reset(seed=0)
    twin.reset(seed=0)
    expected = observation.copy()
    observation[:] = 0
    for key in ("task_losses", "task_errors", "task_baseline_errors", "task_rewards"):
        info[key].clear()
    np.testing.assert_array_equal(env.step(action_of(env, 0))[0], expected)
    twin.step(action_of(env, 0))
    assert_same(rollout(env, random_actions(env, 14)), rollout(twin, random_actions(env, 14)))


# Actions


@joint_first
def test_an_action_is_copied(make_env, task):
    env, twin = make_env(task=task), make_env(task=task)
    env.reset(seed=0)
    twin.reset(seed=0)
    reused = np.array(action_of(env, 0))  # as a vector environment may
    for group in (3, 0, 1, 2) * 3:
        reused[...] = group
        assert_same([env.step(reused)], [twin.step(action_of(env, group))])


ONE = (4, -1, 1.5, True, "hard", None, [1], np.array([1, 2]))
TWO = ([4, 0], [0, -1], [1.5, 0], np.array([0.0, 1.0]), [True, False], [0], [0, 1, 2], [[0, 1]], [[0], [1, 2]], 1)


@pytest.mark.parametrize(
    ("task", "expected", "actions"),
    [
        ("spatial", "an integer", ONE),
        ("temporal", "an integer", ONE),
        ("spatiotemporal", "2 integers, one for each task,", (*TWO, "hard", ["0", "1"], None)),
    ],
)
def test_an_invalid_action_raises_an_error_and_changes_nothing(make_env, task, expected, actions):
    env, twin = make_env(task=task), make_env(task=task)
    env.reset(seed=0)
    twin.reset(seed=0)
    for bad, good in zip(actions, random_actions(env, len(actions)), strict=True):
        with pytest.raises(gym.error.InvalidAction, match=rf"is not a group: pass {expected} from 0 to 3"):
            env.unwrapped.step(bad)
        assert_same([env.step(good)], [twin.step(good)])
    assert_same(rollout(env, random_actions(env, 12)), rollout(twin, random_actions(env, 12)))


@pytest.mark.parametrize(
    ("task", "same"),
    [
        ("spatial", [2, np.int64(2), np.uint8(2), np.array(2)]),
        ("spatiotemporal", [[2, 1], (2, 1), np.array([2, 1], np.int32), np.array([2, 1], np.uint8)]),
    ],
)
def test_integers_of_any_kind_are_actions(make_env, task, same):
    trajectories = []
    for action in same:
        env = make_env(task=task)
        env.reset(seed=0)
        trajectories.append(rollout(env, [action] * 12))
    for trajectory in trajectories[1:]:
        assert_same(trajectory, trajectories[0])


# Errors


@every_task
def test_an_environment_without_a_run_raises_an_error(make_env, task):
    base_env = make_env(task=task).unwrapped
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        base_env.step(action_of(base_env, 0))
    for name in ("run", "episode", "records", "rewards", "validation", "groups"):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            getattr(base_env, name)
    for method in (base_env.fork, base_env.state_dict):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            method()
    assert list(base_env.permutations) == list(base_env.tasks) == PARTS[task]  # these are known before


def test_a_first_reset_that_fails_leaves_a_usable_environment(make_env):
    """Gymnasium's passive checker would fail in every later step, so `gym.make` does not add it."""
    env, twin = make_env(), make_env()
    with pytest.raises(ConfigurationError, match="unknown reset option 'x'"):
        env.reset(options={"x": 1})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    np.testing.assert_array_equal(env.reset(seed=0)[0], twin.reset(seed=0)[0])
    assert_same(rollout(env, random_actions(env, 12)), rollout(twin, random_actions(env, 12)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x", r"reset options 'x': pass a dict such as {'checkpoint': path}"),
        (5, r"reset options 5: pass a dict"),
        ([("checkpoint", "run")], r"reset options \[.*: pass a dict"),
        ({"checkpoint": None}, r"reset option 'checkpoint' is None: pass the path of a checkpoint, or leave it out"),
        ({"checkpoint": 3}, r"reset option 'checkpoint' is 3: pass the path"),
        ({"checkpoint": b"run"}, r"reset option 'checkpoint' is b'run': pass the path"),
        ({"trunk": None}, r"reset option 'trunk' is None: pass the path"),
        ({None: "run"}, r"unknown reset option None; there are 'checkpoint' and 'trunk'"),
    ],
)
def test_reset_options_of_the_wrong_kind_leave_the_run_as_it_was(make_env, options, message):
    env, twin = make_env(), make_env()
    env.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(ConfigurationError, match=message):
        env.reset(seed=9, options=options)
    assert_same(rollout(env, random_actions(env, 5)), rollout(twin, random_actions(twin, 5)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "huge"}, ConfigurationError, r"unknown preset 'huge'"),
        ({"task": "colour"}, ConfigurationError, r"unknown task 'colour'; choose one of spatial, temporal, spatio"),
        ({"num_grups": 4}, ConfigurationError, r"did you mean 'num_groups'"),
        ({"num_groups": 25}, ConfigurationError, r"num_groups=25 is more than num_permutations=24"),
        ({"samples_per_action": 3}, ConfigurationError, r"batch_size=8 is not divisible by samples_per_action=3"),
        ({"num_validation": 60}, DataError, r"num_validation=60, but embedded scenes has only 60 items"),
        ({"images": "/nowhere"}, DataError, r"/nowhere"),
        ({"videos": "/clips"}, ConfigurationError, r"videos='/clips': task 'spatial' does not use it; pass images"),
        ({"task": "temporal", "videos": "/nowhere"}, DataError, r"/nowhere"),
        (
            {"task": "temporal", "images": "/photos"},
            ConfigurationError,
            r"images='/photos': task 'temporal' does not use it; pass videos",
        ),
        ({"num_permutations": 362_881}, ConfigurationError, r"362881: 9 pieces have only 362880 permutations"),
        ({"num_permutations": 25, "grid": 2}, ConfigurationError, r"25: 4 pieces have only 24 permutations; ask for"),
        (
            {"task": "temporal", "num_permutations": 40_321},
            ConfigurationError,
            r"40321: 8 pieces have only 40320 permutations; ask for at most",
        ),
        (
            {"task": "temporal", "num_permutations": 20_161, "merge_reversed": True},
            ConfigurationError,
            r"20161: 8 pieces have only 20160 permutations that are not reverses of others; ask for at most",
        ),
        ({"task": "temporal", "clip_frames": 7}, ConfigurationError, r"clip_frames=7 is fewer than num_frames=8"),
        ({"device": "mps"}, ConfigurationError, r"unknown device 'mps'"),
        ({"device": "cuda:x"}, ConfigurationError, r"unknown device 'cuda:x'; number GPUs as in 'cuda:0'"),
        ({"device": None}, ConfigurationError, r"unknown device 'None'"),
        ({"task": ["spatial"]}, ConfigurationError, r"unknown task \['spatial'\]"),
        ({"backbone": None}, ConfigurationError, r"backbone=None: must be a name"),
        ({"backbone": dict}, ConfigurationError, r"backbone=<class 'dict'> returned {}: return a new torch.nn.Module"),
        ({"cell_size": 4, "piece_size": 4}, ConfigurationError, r"cell_size=4: embedded scenes would have 12 pixels"),
        ({"task": "temporal", "piece_size": 12}, ConfigurationError, r"piece_size=12: .* 14 pixels a side; raise it"),
        ({"grid": 16}, ConfigurationError, r"grid=16.* 15"),
        ({"backbone": "caffenet", "piece_size": 8}, ConfigurationError, r"cannot take pieces of 3 × 8 × 8"),
    ],
)
def test_an_error_names_a_bad_argument_and_the_remedy(make_env, arguments, error, message):
    with pytest.raises(error, match=message):
        make_env(**arguments).reset(seed=0)


def test_an_unknown_render_mode_raises_an_error():
    with pytest.raises(ConfigurationError, match=r"render_mode='ansi'"):
        PermShuffleEnv(render_mode="ansi", **SMALL)


def backbone_without_numbers() -> torch.nn.Module:
    return torch.nn.Sequential(small_backbone(), torch.nn.Threshold(1e9, float("nan")))


def test_a_backbone_without_finite_output_raises_an_error_at_reset(make_env):
    with pytest.raises(ConfigurationError, match="not finite: check the backbone"):
        make_env(backbone=backbone_without_numbers).reset(seed=0)


# Presets and real data


@pytest.mark.ci
def test_the_paper_preset_trains_and_validates():
    """Both tasks on CaffeNet at the paper's piece size; only what makes it slow is smaller."""
    paper = gym.make(
        "PermShuffle-v0",
        preset="paper",
        task="spatiotemporal",
        device="cpu",
        num_scenes=12,
        num_clips=4,
        clip_frames=8,
        num_permutations=20,
        num_validation=4,
        batch_size=4,
        free_iterations=1,
        iterations_per_update=1,
        total_updates=1,
    )
    paper.reset(seed=0)
    *_, truncated, info = rollout(paper, [action_of(paper, 0)] * 8)[-1]
    assert truncated
    assert info["iteration"] == 2
    assert all(0 < loss < 20 for loss in info["task_losses"].values())
    for part in PARTS["spatiotemporal"]:
        assert paper.unwrapped.validation[part].finite


def test_real_photos(make_env, real_data):
    env = make_env(images=real_data / "imagenette" / "val" / "n03000684")
    env.reset(seed=0)
    rollout(env, random_actions(env, 12))
    assert env.unwrapped.tasks["spatial"].data.labels is None


def test_real_photos_and_videos(make_env, real_data):
    folders = {"images": real_data / "imagenette" / "val" / "n03000684", "videos": real_data / "actions" / "videos"}
    env = make_env(task="spatiotemporal", **folders)
    env.reset(seed=0)
    *_, info = rollout(env, random_actions(env, 12))[-1]
    assert info["validated"]
    assert all(np.isfinite(loss) for loss in info["task_losses"].values())
    clips = env.unwrapped.tasks["temporal"].data
    assert clips.lengths.tolist() == [10] * len(clips)
    assert all(re.search(r"v_\w+_g\d+_c\d+", name) for name in clips.names)
    twin = pickle.loads(pickle.dumps(env))
    assert_same(rollout(env, random_actions(env, 12, 1)), rollout(twin, random_actions(env, 12, 1)))


def test_real_folders_of_frames(make_env, real_data):
    env = make_env(task="temporal", videos=real_data / "davis" / "JPEGImages")
    env.reset(seed=0)
    *_, info = rollout(env, random_actions(env, 12))[-1]
    assert info["validated"]
    assert np.isfinite(info["loss"])
    assert "blackswan" in env.unwrapped.tasks["temporal"].data.names
