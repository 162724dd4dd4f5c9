"""The environment's contract, for every registered id and task: DESIGN section 4, word by word."""

import functools
import json
import pickle
import random
import re
import sys
import types
import warnings
from typing import ClassVar

import cv2
import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation, RecordEpisodeStatistics, RecordVideo
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from permenv import TASKS, CheckpointError, ConfigurationError, DataError, PermShuffleEnv, checkpoint
from permenv.augment import normalise, unshuffled
from permenv.reward import extrapolated_error
from permenv.training import trunk_of
from tests.helpers import SMALL, assert_same, rollout

IDS = sorted(name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("permenv"))
PARTS = {"spatial": ["spatial"], "temporal": ["temporal"], "spatiotemporal": ["spatial", "temporal"]}
CPU = torch.device("cpu")
PIECES = {"spatial": 9, "temporal": 8}

every_id = pytest.mark.parametrize("name", IDS)
every_task = pytest.mark.parametrize("task", TASKS)


def actions_of(env, count, seed=0):
    """Random actions, (count,) or (count, tasks)."""
    space = env.action_space
    return np.random.default_rng(seed).integers(SMALL["num_groups"], size=(count, *space.shape))


def action_of(env, *groups):
    """The action that chooses these groups, one a task; a single one is for every task."""
    if env.action_space.shape == ():
        return int(groups[0])
    return np.array(groups * 2 if len(groups) == 1 else groups)


def weights_of(env):
    return [p.detach().clone() for p in env.unwrapped.trainer.network.parameters()]


def mean(values):
    return sum(values) / len(values)


# What other libraries demand


@every_id
@every_task
@pytest.mark.usefixtures("windows")  # it renders in every mode
def test_gymnasiums_checker_has_nothing_to_say(name, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name, task=task, **SMALL).unwrapped)


@every_id
@every_task
def test_stable_baselines_checker_has_nothing_to_say(name, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(gym.make(name, task=task, **SMALL)))


@every_id
@pytest.mark.parametrize(
    ("task", "remarks"),
    [
        ("spatial", ["unconventional shape"]),
        ("temporal", ["unconventional shape"]),
        # three axes are an image to it: not uint8, not in [0, 255], too small
        (
            "spatiotemporal",
            ["is an image but its `dtype`", "is an image but the upper and lower", "minimal resolution"],
        ),
    ],
)
def test_unflattened_stable_baselines_only_recommends_to_flatten(name, task, remarks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(gym.make(name, task=task, **SMALL))
    assert len(caught) == len(remarks)
    for warning, remark in zip(caught, remarks, strict=True):
        assert remark in str(warning.message)


@every_id
@every_task
def test_the_same_seed_gives_the_same_50_steps_whatever_else_happens(name, task):
    first, second = (gym.make(name, task=task, **SMALL) for _ in range(2))
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


@every_task
def test_other_seeds_give_other_runs(make_env, task):
    env = make_env(task=task)
    first = env.reset(seed=0)[0]
    assert not np.array_equal(first, env.reset(seed=1)[0])
    np.testing.assert_array_equal(first, env.reset(seed=0)[0])


@every_task
def test_a_reset_without_a_seed_goes_on_drawing(make_env, task):
    env, twin = make_env(task=task), make_env(task=task)
    first = env.reset(seed=0)[0]
    second = env.reset()[0]
    assert not np.array_equal(first, second)
    twin.reset(seed=0)
    np.testing.assert_array_equal(twin.reset()[0], second)


@every_task
def test_no_global_random_state_is_moved(make_env, task):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    env = make_env(task=task)
    env.reset(seed=0)
    rollout(env, actions_of(env, 30))
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


@every_id
@every_task
@pytest.mark.parametrize("steps", [None, 0, 13])
def test_the_environment_pickles(name, task, steps):
    env = gym.make(name, task=task, **SMALL)
    if steps is not None:
        env.reset(seed=1)
        rollout(env, actions_of(env, steps))
    twin = pickle.loads(pickle.dumps(env))
    assert twin.unwrapped.task == task
    if steps is None:
        np.testing.assert_array_equal(env.reset(seed=2)[0], twin.reset(seed=2)[0])
    assert_same(rollout(env, actions_of(env, 30, 5)), rollout(twin, actions_of(env, 30, 5)))


# Spaces, rewards, the clock


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
@pytest.mark.parametrize(("free", "update", "m"), [(0, 1, 8), (0, 3, 2), (2, 1, 4), (1, 2, 1)])
def test_the_clock(make_env, task, free, update, m):
    """When iterations, validations, updates and the end come, action by action."""
    env = make_env(task=task, free_iterations=free, iterations_per_update=update, samples_per_action=m, total_updates=2)
    observation, info = env.reset(seed=0)
    assert info["validated"]
    assert info["iteration"] == info["update"] == 0
    per_iteration, cycle = 8 // m, free + update
    for number in range(1, 2 * cycle * per_iteration + 1):
        observation_before, weights_before = observation, weights_of(env)
        observation, reward, terminated, truncated, info = env.step(action_of(env, number % 4))
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
            assert set(info["task_rewards"].values()) == {0}
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action_of(env, 0))


@every_task
def test_rewards_are_equation_7_on_each_tasks_errors_and_their_mean(make_env, task):
    env = make_env(task=task, free_iterations=1, iterations_per_update=3, total_updates=6, learning_rate=0.2)
    _, info = env.reset(seed=0)
    history = {part: [(0, error)] for part, error in info["task_errors"].items()}
    assert list(history) == PARTS[task]
    rewards = []
    for action in actions_of(env, 6 * 4 * 4):
        _, reward, _, _, info = env.step(action)
        assert reward == mean(info["task_rewards"].values())
        assert info["error"] == mean(info["task_errors"].values())
        assert info["baseline_error"] == mean(info["task_baseline_errors"].values())
        assert info["loss"] == sum(info["task_losses"].values())
        if info["validated"]:
            for part, errors in history.items():
                baseline, error = extrapolated_error(errors, info["iteration"]), info["task_errors"][part]
                assert info["task_baseline_errors"][part] == baseline
                assert error == env.unwrapped.validation[part].error
                if info["phase"] == "update":
                    assert info["task_rewards"][part] == baseline - error
                errors.append((info["iteration"], error))
            if info["phase"] == "update":
                rewards.append(list(info["task_rewards"].values()))
    assert env.unwrapped.history == history
    assert len(rewards) == 6
    assert np.any(rewards, axis=0).all()
    if task == "spatiotemporal":  # the two tasks' gains are their own
        assert any(spatial != temporal for spatial, temporal in rewards)


@every_task
def test_info_has_the_documented_keys_and_plain_values(make_env, task):
    env = make_env(task=task)
    infos = [env.reset(seed=0)[1], *(step[4] for step in rollout(env, actions_of(env, 12)))]
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


@every_task
def test_what_is_handed_out_are_copies(make_env, task):
    env, twin = make_env(task=task), make_env(task=task)
    observation, info = env.reset(seed=0)
    twin.reset(seed=0)
    expected = observation.copy()
    observation[:] = 0
    for key in ("task_losses", "task_errors", "task_baseline_errors", "task_rewards"):
        info[key].clear()
    np.testing.assert_array_equal(env.step(action_of(env, 0))[0], expected)
    twin.step(action_of(env, 0))
    assert_same(rollout(env, actions_of(env, 30)), rollout(twin, actions_of(env, 30)))


@every_task
def test_an_action_is_copied(make_env, task):
    env, twin = make_env(task=task), make_env(task=task)
    env.reset(seed=0)
    twin.reset(seed=0)
    reused = np.array(action_of(env, 0))  # as a vector environment may
    for group in (3, 0, 1, 2) * 6:
        reused[...] = group
        assert_same([env.step(reused)], [twin.step(action_of(env, group))])


@every_task
def test_the_first_validation_is_near_chance(make_env, task):
    _, info = make_env(task=task).reset(seed=0)
    assert all(error > 0.9 for error in info["task_errors"].values())
    assert all(loss == pytest.approx(np.log(24)) for loss in info["task_losses"].values())
    assert info["task_baseline_errors"] == info["task_errors"]
    assert set(info["task_rewards"].values()) == {0}


# What an action does


def record_labels(world):
    """Keep the labels that would be trained on, by task, and train on nothing."""
    seen = {part: [] for part in world.tasks}

    def step(batches):
        for part, batch in batches.items():
            assert len(batch.pieces) == len(batch.labels)
            seen[part].append(batch.labels.copy())
        return dict.fromkeys(batches, 1.0)

    world.trainer.step = step
    return seen


@every_task
def test_an_action_draws_uniformly_from_its_group_of_each_task_only(make_env, task):
    sizes = {"batch_size": 512, "samples_per_action": 512, "free_iterations": 0, "iterations_per_update": 100}
    env = make_env(task=task, piece_size=16, cell_size=18, **sizes)
    env.reset(seed=0)
    world = env.unwrapped
    seen = record_labels(world)
    for group in range(4):
        chosen = dict(zip(PARTS[task], (group, (group + 1) % 4), strict=False))
        env.step(action_of(env, *chosen.values()))
        for part, which in chosen.items():
            members = np.flatnonzero(world.groups[part] == which)
            counts = np.bincount(seen[part][-1], minlength=24)
            assert set(np.flatnonzero(counts)) <= set(members)
            expected = 512 / len(members)
            assert ((counts[members] - expected) ** 2 / expected).sum() < 3 * len(members) + 15


@every_task
def test_each_action_decides_its_own_part_of_the_mini_batch(make_env, task):
    env = make_env(task=task, samples_per_action=2)
    env.reset(seed=0)
    world = env.unwrapped
    seen = record_labels(world)
    actions, groups_before = actions_of(env, 4, seed=1), world.groups
    rollout(env, actions)
    for column, part in enumerate(PARTS[task]):
        labels, groups = seen[part][0], groups_before[part]
        assert len(labels) == 8
        chosen = actions.reshape(4, -1)[:, column].clip(max=groups.max())  # an empty group stands for the easiest
        assert len(set(chosen)) > 1
        np.testing.assert_array_equal(groups[labels], chosen.repeat(2))


class _Recorder:
    """Images or clips that remember which of them were asked for."""

    def __init__(self, data):
        self._data, self.taken = data, []

    def __len__(self):
        return len(self._data)

    def __getattr__(self, name):
        return getattr(self._data, name)

    def take(self, which, *others):
        self.taken.extend(which.tolist())
        return self._data.take(which, *others)


@every_task
def test_validation_samples_are_never_trained_on(make_env, task):
    env = make_env(task=task, num_validation=50)
    env.reset(seed=0)
    world = env.unwrapped
    recorders = {}
    for part, each in world.tasks.items():
        each.data = recorders[part] = _Recorder(each.data)
    rollout(env, actions_of(env, 80))
    for part, recorder in recorders.items():
        held_out = set(world.validation_samples[part][:, 0])
        assert len(held_out) == {"spatial": 50, "temporal": 3}[part]  # 50 images; a fifth of 16 clips
        assert len(world.validation_samples[part]) == 50
        assert len(recorder.taken) > 100
        assert set(recorder.taken) == set(range(len(recorder))) - held_out


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
def test_an_action_that_is_none_is_refused_and_changes_nothing(make_env, task, expected, actions):
    env, twin = make_env(task=task), make_env(task=task)
    env.reset(seed=0)
    twin.reset(seed=0)
    for bad, good in zip(actions, actions_of(env, len(actions)), strict=True):
        with pytest.raises(gym.error.InvalidAction, match=rf"is not a group: pass {expected} from 0 to 3"):
            env.unwrapped.step(bad)
        assert_same([env.step(good)], [twin.step(good)])
    assert_same(rollout(env, actions_of(env, 12)), rollout(twin, actions_of(env, 12)))


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


@every_task
def test_an_empty_group_stands_for_the_easiest(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    world = env.unwrapped
    world._look_at({part: np.repeat([0, 1], 12) for part in PARTS[task]})
    for summary in world._observation.reshape(-1, 4, 2):
        np.testing.assert_array_equal(summary[:, 0], [0.5, 0.5, 0, 0])
    seen = record_labels(world)
    rollout(env, [action_of(env, 3)] * 4)
    for part in PARTS[task]:
        assert min(seen[part][0]) >= 12


@every_task
def test_stepping_before_reset(make_env, task):
    env = make_env(task=task)
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(action_of(env, 0))
    with pytest.raises(gym.error.ResetNeeded):
        _ = env.unwrapped.history


# Divergence


@pytest.mark.parametrize(
    ("task", "where"),
    [("spatial", "spatial"), ("temporal", "temporal"), ("spatiotemporal", "spatial"), ("spatiotemporal", "temporal")],
)
@pytest.mark.parametrize("broken", ["loss", "validation"])
def test_divergence_of_any_task_terminates_with_the_worst_errors(make_env, task, where, broken):
    env = make_env(task=task, free_iterations=0, iterations_per_update=1)
    env.reset(seed=0)
    rollout(env, [action_of(env, group) for group in range(4)])
    world = env.unwrapped
    last, history = world._observation.copy(), {part: list(past) for part, past in world.history.items()}
    if broken == "loss":
        world.trainer.network.heads[where].classifier.bias.data.fill_(torch.nan)
    else:
        step = world.trainer.step

        def step_and_break(batches):
            losses = step(batches)
            for parameter in world.trainer.evaluated.heads[where].parameters():
                parameter.data.fill_(torch.nan)
            return losses

        world.trainer.step = step_and_break
    for group in range(4):
        observation, reward, terminated, truncated, info = env.step(action_of(env, group))
    assert terminated
    assert not truncated
    assert info["diverged"] is True
    assert info["validated"] is False
    assert info["error"] == 1
    assert info["task_errors"] == dict.fromkeys(PARTS[task], 1)
    np.testing.assert_array_equal(observation, last)
    for part in PARTS[task]:
        assert np.isfinite(info["task_losses"][part]) == (broken == "validation" or part != where)
        assert info["task_baseline_errors"][part] == pytest.approx(extrapolated_error(history[part], 2))
        assert info["task_rewards"][part] == info["task_baseline_errors"][part] - 1
    assert reward == mean(info["task_rewards"].values())
    assert world.history == history
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action_of(env, 0))
    observation, info = env.reset(seed=0)
    assert np.isfinite(observation).all()
    assert info["diverged"] is False


# What researchers look at


@every_task
def test_validation_groups_and_permutations_fit_together(make_env, task):
    env = make_env(task=task)
    observation, info = env.reset(seed=0)
    world = env.unwrapped
    assert list(world.validation) == list(world.groups) == list(world.permutations) == PARTS[task]
    for part, summary in zip(PARTS[task], observation.reshape(-1, 4, 2), strict=True):
        validation, groups = world.validation[part], world.groups[part]
        assert validation.ratios.shape == validation.correct.shape == (24, 12)
        assert validation.correct.dtype == bool
        assert validation.error == info["task_errors"][part] == 1 - validation.correct.mean()
        assert world.permutations[part].shape == (24, PIECES[part])
        assert world.validation_samples[part].shape == (12, {"spatial": 1, "temporal": 9}[part])
        for group in range(4):
            assert summary[group, 0] == pytest.approx((groups == group).mean())
            assert summary[group, 1] == pytest.approx(np.median(validation.ratios[groups == group]))


@every_task
def test_the_network_answers_for_permuted_pieces_without_being_changed(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    rollout(env, actions_of(env, 20))
    world, twin, validated = (env.unwrapped, *(env.unwrapped.fork() for _ in range(2)))
    assert validated._validate()
    for part in PARTS[task]:
        samples = world.validation_samples[part]
        order = world.permutations[part][np.full(12, 5)]
        logits = world.network(part, normalise(world.tasks[part].centre_pieces(samples, order)))
        assert logits.shape == (12, 24)
        assert not logits.requires_grad
        np.testing.assert_array_equal(logits.argmax(1).numpy() == 5, validated.validation[part].correct[5])
    assert_same(rollout(world, actions_of(env, 20)), rollout(twin, actions_of(env, 20)))


def test_what_it_sees_is_what_an_image_viewer_shows(make_env):
    """The nine centre crops of X_val, laid out again, are the images themselves."""
    env = make_env(piece_size=36)
    env.reset(seed=0)
    world = env.unwrapped
    samples = world.validation_samples["spatial"]
    images = world.tasks["spatial"].data.take(samples[:, 0], world.device)
    pieces = world.tasks["spatial"].centre_pieces(samples, unshuffled(12, 9))
    rebuilt = pieces.view(12, 3, 3, 36, 36, 3).permute(0, 1, 3, 2, 4, 5).reshape(images.shape)
    assert torch.equal(rebuilt, images)


def test_what_it_sees_is_what_a_video_player_shows(make_env):
    """The centre crops of X_val are the middles of the clip's frames, in the order of time."""
    env = make_env(task="temporal", merge_reversed=False)
    env.reset(seed=0)
    task, samples = env.unwrapped.tasks["temporal"], env.unwrapped.validation_samples["temporal"]
    pieces = task.centre_pieces(samples, unshuffled(12, 8))
    for (clip, *places), shown in zip(samples, pieces, strict=True):
        film = task.data.frames.take(np.arange(task.data.starts[clip], task.data.starts[clip + 1]), CPU)
        assert torch.equal(shown, film[sorted(places), 2:34, 2:34])  # 32 of 37 pixels


# Records


@every_task
def test_a_run_remembers_every_validation(make_env, task):
    env = make_env(task=task)
    observation, info = env.reset(seed=0)
    world = env.unwrapped
    seen, counts, rewards = [(observation, info)], [np.zeros((len(world.tasks), 4), int)], []
    running = np.zeros_like(counts[0])
    for action in actions_of(env, 60):
        observation, reward, _, _, info = env.step(action)
        running[np.arange(len(world.tasks)), action] += 1
        if info["iteration"] > seen[-1][1]["iteration"] and not info["validated"]:
            assert world.choices.sum() % 4 == 0  # only full mini-batches count
        if info["validated"]:
            assert not world.choices.any()
            seen.append((observation, info))
            counts.append(running.copy())
            running[:] = 0
            rewards += [reward] if info["phase"] == "update" else []
    assert world.rewards == rewards
    assert [record.phase for record in world.records] == ["reset", *(info["phase"] for _, info in seen[1:])]
    for record, (observation, info), choices in zip(world.records, seen, counts, strict=True):
        assert record.iteration == info["iteration"]
        assert record.errors == info["task_errors"]
        assert record.cross_entropies == info["task_cross_entropies"]
        np.testing.assert_array_equal(record.observation, observation)
        np.testing.assert_array_equal(record.choices, choices)


# Fork, save, restore


@functools.cache
def one_environment(task):
    return gym.make("PermShuffle-v0", task=task, **SMALL)


@every_task
@given(st.integers(0, 25), st.integers(1, 3), st.integers(1, 20), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=34)  # 102 in all
def test_fork_and_parent_continue_identically_and_do_not_touch_each_other(task, start, generation, length, seed):
    """At a random point of a run, some generations deep: the last fork, given the same actions, is its ancestor."""
    env = one_environment(task)
    env.reset(seed=seed)
    rollout(env, actions_of(env, start, seed))
    parent = fork = env.unwrapped
    stray = parent.fork()
    for _ in range(generation):
        fork = fork.fork()
    rollout(stray, actions_of(env, length, [seed, 1]))
    actions = actions_of(env, length, [seed, 2])
    assert_same(rollout(parent, actions), rollout(fork, actions))
    assert all(map(torch.equal, weights_of(parent), weights_of(fork)))
    assert parent.history == fork.history
    assert parent.rewards == fork.rewards


@every_task
@pytest.mark.parametrize("steps", [0, 7, 24])
def test_a_saved_run_continues_bit_for_bit(make_env, tmp_path, task, steps):
    env, other = make_env(task=task), make_env(task=task)
    env.reset(seed=4)
    rollout(env, actions_of(env, steps))
    env.unwrapped.save(tmp_path / "run")
    observation, info = other.reset(options={"checkpoint": tmp_path / "run"})
    np.testing.assert_array_equal(observation, env.unwrapped._observation)
    assert info["iteration"] == env.unwrapped.trainer.iteration
    assert other.unwrapped.history == env.unwrapped.history
    assert_same(rollout(env, actions_of(env, 40, 1)), rollout(other, actions_of(env, 40, 1)))
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()  # the generator too


@every_task
def test_a_run_may_be_prolonged(make_env, tmp_path, task):
    env, longer = make_env(task=task, total_updates=1), make_env(task=task, total_updates=2)
    env.reset(seed=0)
    assert rollout(env, actions_of(env, 12))[-1][3]
    env.unwrapped.save(tmp_path / "run")
    longer.reset(options={"checkpoint": tmp_path / "run"})
    assert not longer.step(action_of(env, 0))[3]


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("spatial", {"num_groups": 3}, r"num_groups=4, this environment num_groups=3"),
        ("spatial", {"num_scenes": 61}, r"data=\{'spatial': 'scenes-\d+-60-108-0'\}"),
        ("spatial", {"learning_rate": 0.5, "momentum": 0.1}, r"2 differences: learning_rate, momentum"),
        ("temporal", {"num_clips": 17}, r"data=\{'temporal': 'clips-\d+-16-10-37-0'\}"),
        ("temporal", {"merge_reversed": True, "lstm": 17}, r"2 differences: merge_reversed, lstm"),
        ("spatiotemporal", {"num_clips": 17}, r"data=\{'spatial': 'scenes-.*', 'temporal': 'clips-.*'\}"),
        ("spatial", {"task": "temporal"}, r"task='spatial', this environment task='temporal'"),
        ("temporal", {"task": "spatiotemporal"}, r"task='temporal', this environment task='spatiotemporal'"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(make_env, tmp_path, task, overrides, message):
    env, other, twin = (
        make_env(task=task, merge_reversed=False),
        *(make_env(**{"task": task, "merge_reversed": False, **overrides}) for _ in range(2)),
    )
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "run")
    other.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(CheckpointError, match=message):
        other.reset(seed=9, options={"checkpoint": tmp_path / "run"})
    actions = [action_of(other, 0)] * 20
    assert_same(rollout(other, actions), rollout(twin, actions))


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


# A new run on another run's trunk


def saved_run(make_env, path, **overrides):
    """Train a little and save; the trunk that validation saw."""
    env = make_env(**overrides)
    env.reset(seed=0)
    rollout(env, actions_of(env, 12))
    env.unwrapped.save(path)
    return {name: value.clone() for name, value in env.unwrapped.trainer.evaluated.trunk.state_dict().items()}


@pytest.mark.parametrize(
    ("task", "theirs", "ours"),
    [
        ("temporal", 0.97, 0.97),
        ("temporal", 0.0, 0.97),
        ("temporal", 0.97, 0.0),
        ("spatiotemporal", 0.97, 0.97),
        ("spatial", 0.97, 0.97),
    ],
)
def test_a_run_begins_with_the_trunk_that_another_run_evaluated(make_env, tmp_path, task, theirs, ours):
    trunk = saved_run(make_env, tmp_path / "run", ema_decay=theirs)
    env, fresh = make_env(task=task, ema_decay=ours), make_env(task=task, ema_decay=ours)
    observation, info = env.reset(seed=6, options={"trunk": tmp_path / "run"})
    fresh.reset(seed=6)
    trainer, untouched = env.unwrapped.trainer, fresh.unwrapped.trainer
    for network in (trainer.network, trainer.evaluated):  # live and averaged
        assert all(torch.equal(value, trunk[name]) for name, value in network.trunk.state_dict().items())
    for network in (untouched.network, untouched.evaluated):
        assert not torch.equal(network.trunk[0].weight, trunk["0.weight"])
    assert all(map(torch.equal, trainer.network.heads.parameters(), untouched.network.heads.parameters()))
    assert info["iteration"] == info["update"] == 0
    assert info["validated"]
    for part in PARTS[task]:  # the seed decides all else
        np.testing.assert_array_equal(env.unwrapped.validation_samples[part], fresh.unwrapped.validation_samples[part])
        assert not np.array_equal(env.unwrapped.validation[part].ratios, fresh.unwrapped.validation[part].ratios)
    np.testing.assert_array_equal(observation, env.unwrapped._observation)
    again = make_env(task=task, ema_decay=ours)
    again.reset(seed=6, options={"trunk": str(tmp_path / "run")})
    assert_same(rollout(env, actions_of(env, 20)), rollout(again, actions_of(env, 20)))


def test_a_run_on_another_runs_trunk_is_saved_and_continued_like_any_other(make_env, tmp_path):
    saved_run(make_env, tmp_path / "first")
    env, other = make_env(task="temporal"), make_env(task="temporal")
    env.reset(seed=1, options={"trunk": tmp_path / "first"})
    rollout(env, actions_of(env, 10))
    env.unwrapped.save(tmp_path / "second")
    other.reset(options={"checkpoint": tmp_path / "second"})
    assert_same(rollout(env, actions_of(env, 20)), rollout(other, actions_of(env, 20)))


def test_the_trunk_of_a_saved_file_is_the_evaluated_one(make_env, tmp_path):
    trunk = saved_run(make_env, tmp_path / "run", task="spatiotemporal")
    found = trunk_of(checkpoint.read(tmp_path / "run")["environment"]["trainer"])
    assert found.keys() == trunk.keys()
    assert all(torch.equal(value, trunk[name]) for name, value in found.items())


def own_backbone() -> torch.nn.Module:
    """A trunk of somebody else, at module level so that it pickles."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


def anothers_backbone() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


anothers_backbone.__qualname__ = own_backbone.__qualname__  # as of two lambdas, or of a function that was changed


def spoil(make_env, folder):
    """Reset options that must be refused, by what is wrong with them."""
    saved_run(make_env, folder / "run")
    saved_run(make_env, folder / "own", backbone=own_backbone)
    checkpoint.write(folder / "agent", {"agent": {}})
    (folder / "text").write_text("not a checkpoint")
    content = (folder / "run").read_bytes()
    (folder / "truncated").write_bytes(content[: len(content) // 2])
    return {
        "unknown": ({"restore": folder / "run"}, ConfigurationError, r"unknown reset option 'restore'; there are"),
        "both": (
            {"checkpoint": folder / "run", "trunk": folder / "run"},
            ConfigurationError,
            r"'checkpoint' and 'trunk': a saved run has its trunk; pass one",
        ),
        "another backbone": (
            {"trunk": folder / "own"},
            CheckpointError,
            r"backbone='.*own_backbone'.*quarter-caffenet",
        ),
        "no file": ({"trunk": folder / "none"}, CheckpointError, r"no checkpoint at .*none"),
        "no checkpoint": ({"trunk": folder / "text"}, CheckpointError, r"text is truncated or not a checkpoint"),
        "half a file": ({"trunk": folder / "truncated"}, CheckpointError, r"truncated"),
        "no environment": ({"trunk": folder / "agent"}, CheckpointError, r"agent holds no environment: name a file"),
        "no environment to continue": ({"checkpoint": folder / "agent"}, CheckpointError, r"holds no environment"),
    }


@pytest.mark.parametrize("task", ["temporal", "spatiotemporal"])
def test_reset_options_that_do_not_do_leave_the_run_as_it_was(make_env, tmp_path, task):
    env, twin = make_env(task=task), make_env(task=task)
    env.reset(seed=1)
    twin.reset(seed=1)
    for options, error, message in spoil(make_env, tmp_path).values():
        with pytest.raises(error, match=message):
            env.reset(seed=9, options=options)
        actions = actions_of(env, 5)
        assert_same(rollout(env, actions), rollout(twin, actions))
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])  # the generator too


@pytest.mark.parametrize("option", ["trunk", "checkpoint"])
def test_a_trunk_of_another_shape_under_the_same_name_leaves_the_run_as_it_was(make_env, tmp_path, option):
    saved_run(make_env, tmp_path / "run", backbone=own_backbone)
    env, twin = (make_env(backbone=anothers_backbone) for _ in range(2))
    env.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(CheckpointError, match="under the same name"):
        env.reset(seed=9, options={option: tmp_path / "run"})
    actions = actions_of(env, 12)
    assert_same(rollout(env, actions), rollout(twin, actions))


def test_the_trunk_of_a_run_that_diverged_is_refused(make_env, tmp_path):
    broken, env, twin = (make_env() for _ in range(3))
    for each in (broken, env, twin):
        each.reset(seed=1)
    with torch.no_grad():
        for network in (broken.unwrapped.trainer.network, broken.unwrapped.trainer.evaluated):
            network.trunk[0].weight.fill_(torch.nan)
    broken.unwrapped.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not finite"):
        env.reset(seed=9, options={"trunk": tmp_path / "run"})
    assert_same(rollout(env, actions_of(env, 12)), rollout(twin, actions_of(env, 12)))


def backbone_without_numbers() -> torch.nn.Module:
    return torch.nn.Sequential(own_backbone(), torch.nn.Threshold(1e9, float("nan")))


def test_a_backbone_that_predicts_nothing_finite_is_told_at_once(make_env):
    with pytest.raises(ConfigurationError, match="not finite: check the backbone"):
        make_env(backbone=backbone_without_numbers).reset(seed=0)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "huge"}, ConfigurationError, r"unknown preset 'huge'"),
        ({"task": "colour"}, ConfigurationError, r"unknown task 'colour'; choose one of spatial, temporal, spatio"),
        ({"num_grups": 4}, ConfigurationError, r"did you mean 'num_groups'"),
        ({"num_groups": 25}, ConfigurationError, r"num_groups=25 is more than num_permutations=24"),
        ({"samples_per_action": 3}, ConfigurationError, r"batch_size=8 is not divisible by samples_per_action=3"),
        ({"num_validation": 60}, DataError, r"num_validation=60, but embedded scenes has only 60 images"),
        ({"images": "/nowhere"}, DataError, r"/nowhere"),
        ({"videos": "/clips"}, ConfigurationError, r"videos='/clips': task 'spatial' shuffles stills; pass images"),
        ({"task": "temporal", "videos": "/nowhere"}, DataError, r"/nowhere"),
        (
            {"task": "temporal", "images": "/photos"},
            ConfigurationError,
            r"images='/photos': task 'temporal' shuffles frames; pass videos",
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
        ({"backbone": "caffenet", "piece_size": 8}, ConfigurationError, r"cannot take pieces of 8 × 8"),
    ],
)
def test_bad_arguments_are_named_with_their_remedy(make_env, arguments, error, message):
    with pytest.raises(error, match=message):
        make_env(**arguments).reset(seed=0)


def test_a_render_mode_that_does_not_exist():
    with pytest.raises(ConfigurationError, match=r"render_mode='ansi'"):
        PermShuffleEnv(render_mode="ansi", **SMALL)


# Pictures, other backbones


@every_task
def test_the_picture_changes_at_validations_only(make_env, task):
    env = make_env(task=task, render_mode="rgb_array")
    env.reset(seed=0)
    last, pictures = env.render(), 1
    for action in actions_of(env, 20):
        info = env.step(action)[4]
        picture = env.render()
        assert picture.shape == (36 + 364 * len(PARTS[task]), 1000, 3)
        assert picture.dtype == np.uint8
        assert not picture.flags.writeable  # it may be handed out again
        assert (picture is last) == (not info["validated"])
        for part in range(len(PARTS[task]) if info["validated"] else 0):
            rows = slice(36 + 364 * part, 400 + 364 * part)
            assert not np.array_equal(picture[rows], last[rows])
        last, pictures = picture, pictures + info["validated"]
    assert pictures == 4


@every_task
def test_rendering_does_not_change_the_run(make_env, task):
    env, twin = make_env(task=task, render_mode="rgb_array"), make_env(task=task)
    env.reset(seed=0)
    twin.reset(seed=0)
    for action in actions_of(env, 16):
        env.render()
        assert_same([env.step(action)], [twin.step(action)])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])  # the generator too


def drawn_anew(make_env, env):
    """The picture of a run that has never been drawn."""
    fresh = make_env(task=env.task, render_mode="rgb_array").unwrapped
    fresh.load_state_dict(env.state_dict())
    return fresh.render()


def test_forks_copies_and_continued_runs_are_drawn_as_they_are(make_env, tmp_path):
    env = make_env(render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    rollout(env, [0] * 12)
    env.save(tmp_path / "run")
    saved, fork, copy = env.render(), env.fork(), pickle.loads(pickle.dumps(env))
    for each, group in ((fork, 1), (copy, 2), (env, 3)):
        np.testing.assert_array_equal(each.render(), saved)
        rollout(each, [group] * 12)
    pictures = [each.render() for each in (fork, copy, env)]
    for each, picture in zip((fork, copy, env), pictures, strict=True):
        np.testing.assert_array_equal(picture, drawn_anew(make_env, each))
    assert len({picture.tobytes() for picture in pictures}) == 3
    env.load_state_dict(fork.state_dict())  # another run with as many validations
    np.testing.assert_array_equal(env.render(), pictures[0])
    env.reset(options={"checkpoint": tmp_path / "run"})
    np.testing.assert_array_equal(env.render(), saved)


@pytest.mark.parametrize("task", ["spatial", "spatiotemporal"])
def test_a_run_that_diverged_is_drawn(make_env, task):
    env = make_env(task=task, render_mode="rgb_array")
    env.reset(seed=0)
    rollout(env, actions_of(env, 12))
    before = env.render()
    for network in (env.unwrapped.trainer.network, env.unwrapped.trainer.evaluated):
        network.heads["spatial"].classifier.bias.data.fill_(torch.nan)
    assert rollout(env, actions_of(env, 4))[-1][2]
    after = env.render()
    assert after.shape == before.shape
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("task", ["spatial", "spatiotemporal"])
def test_episodes_are_recorded(make_env, tmp_path, task):
    env = make_env(task=task, render_mode="rgb_array", total_updates=2)
    env = RecordEpisodeStatistics(RecordVideo(env, str(tmp_path / "videos")))
    env.reset(seed=0)
    *steps, last = rollout(env, actions_of(env, 24))
    env.close()
    assert last[3]
    assert last[4]["episode"]["r"] == pytest.approx(sum(reward for _, reward, *_ in [*steps, last]))
    assert last[4]["episode"]["l"] == 24
    (file,) = (tmp_path / "videos").iterdir()
    video, frames = cv2.VideoCapture(str(file)), []
    assert video.get(cv2.CAP_PROP_FPS) == env.metadata["render_fps"]
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) in (24, 25)  # one after reset and each step; moviepy may round the last one off
    assert {frame.shape for frame in frames} == {(36 + 364 * len(PARTS[task]), 1000, 3)}
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 100


class _Window(FigureManagerBase):
    """A window of matplotlib's on no screen."""

    opened: ClassVar[list["_Window"]] = []

    def __init__(self, canvas, num):
        super().__init__(canvas, num)
        self.raised, self.drawn, self.answered, self.destroyed = 0, 0, 0, False
        self.opened.append(self)

    def show(self):
        self.raised += 1

    def set_window_title(self, title):
        self.title = title

    def destroy(self):
        self.destroyed = True

    @property
    def picture(self):
        return self.canvas.figure.axes[0].images[0].get_array()


class _Canvas(FigureCanvasAgg):
    manager_class = _Window

    def draw_idle(self):
        self.manager.drawn += 1

    def flush_events(self):
        self.manager.answered += 1


@pytest.fixture
def windows(monkeypatch):
    """Let matplotlib open windows, on a machine without a screen too; the list of them."""
    backend = types.ModuleType("windows_on_no_screen")
    backend.FigureCanvas = _Canvas
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.setattr(_Window, "opened", [])
    before = matplotlib.get_backend()
    pyplot.switch_backend(f"module://{backend.__name__}")
    yield _Window.opened
    pyplot.close("all")
    pyplot.switch_backend(before)


@every_task
def test_a_window_follows_the_run(make_env, windows, task):
    env, twin = make_env(task=task, render_mode="human"), make_env(task=task, render_mode="rgb_array")
    (window,) = windows
    assert window.title == f"PermShuffle: {task}"
    assert window.raised == 0  # there is nothing to show yet
    env.reset(seed=0)
    twin.reset(seed=0)
    assert window.raised == 1
    np.testing.assert_array_equal(window.picture, twin.render())
    for action in actions_of(env, 12):
        drawn, (*_, info) = window.drawn, env.step(action)
        twin.step(action)
        assert window.drawn == drawn + info["validated"]
        np.testing.assert_array_equal(window.picture, twin.render())
    assert env.render() is None
    assert window.raised == 1  # it does not come to the front by itself
    assert window.answered == 1 + 12 / 4 + 1  # reset, every iteration, render
    assert tuple(window.canvas.figure.bbox.size) == (1000, 36 + 364 * len(PARTS[task]))
    env.close()
    assert window.destroyed
    assert windows == [window]


def test_a_run_goes_on_when_its_window_is_closed(make_env, windows):
    env = make_env(render_mode="human")
    env.reset(seed=0)
    pyplot.close("all")  # as whoever looks at it may
    rollout(env, actions_of(env, 12))
    assert windows[0].drawn == 0
    env.close()
    env.close()


def test_a_fork_does_not_show_itself_in_its_parents_window(make_env, windows):
    env = make_env(render_mode="human").unwrapped
    env.reset(seed=0)
    fork = env.fork()
    rollout(fork, actions_of(env, 12))
    fork.close()
    assert windows[0].drawn == 0
    assert not windows[0].destroyed
    rollout(env, actions_of(env, 12))
    assert windows[0].drawn == 2


class _NoScreen(_Canvas):
    @classmethod
    def new_manager(cls, figure, num):
        raise RuntimeError("cannot connect to the screen")


@pytest.mark.parametrize("backend", ["agg", "windows_on_no_screen"])
def test_without_a_screen_a_window_is_refused_before_anything_is_done(make_env, windows, monkeypatch, backend):
    if backend == "agg":
        pyplot.switch_backend("agg")
    else:
        monkeypatch.setattr(sys.modules[backend], "FigureCanvas", _NoScreen)
        pyplot.switch_backend(f"module://{backend}")
    message = rf"render_mode='human'.*backend is '.*{backend}'; use render_mode='rgb_array', or.* set MPLBACKEND"
    with pytest.raises(ConfigurationError, match=message):
        make_env(render_mode="human", images="/nowhere")
    assert not pyplot.get_fignums()
    assert not windows


def test_there_is_nothing_to_render_before_reset(make_env):
    with pytest.raises(gym.error.ResetNeeded):
        make_env(render_mode="rgb_array").unwrapped.render()


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


@every_task
def test_a_backbone_of_ones_own(make_env, task):
    env = make_env(task=task, backbone=own_backbone)
    env.reset(seed=0)
    assert isinstance(env.unwrapped.trainer.network.trunk[2], torch.nn.AdaptiveAvgPool2d)
    twin = pickle.loads(pickle.dumps(env))
    assert_same(rollout(env, actions_of(env, 20)), rollout(twin, actions_of(env, 20)))


@every_task
def test_the_identity_in_a_checkpoint_is_plain_json(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    identity = env.unwrapped.state_dict()["identity"]
    assert json.loads(json.dumps(identity)) == identity
    assert identity["task"] == task
    assert list(identity["data"]) == PARTS[task]


# Real data


def test_real_photos(make_env, real_data):
    env = make_env(images=real_data / "imagenette" / "val" / "n03000684")
    env.reset(seed=0)
    rollout(env, actions_of(env, 12))
    assert env.unwrapped.tasks["spatial"].data.labels is None


def test_real_photos_and_videos(make_env, real_data):
    folders = {"images": real_data / "imagenette" / "val" / "n03000684", "videos": real_data / "actions" / "videos"}
    env = make_env(task="spatiotemporal", **folders)
    env.reset(seed=0)
    *_, info = rollout(env, actions_of(env, 12))[-1]
    assert info["validated"]
    assert all(np.isfinite(loss) for loss in info["task_losses"].values())
    clips = env.unwrapped.tasks["temporal"].data
    assert clips.lengths.tolist() == [10] * len(clips)
    assert all(re.search(r"v_\w+_g\d+_c\d+", name) for name in clips.names)
    twin = pickle.loads(pickle.dumps(env))
    assert_same(rollout(env, actions_of(env, 12, 1)), rollout(twin, actions_of(env, 12, 1)))


def test_real_folders_of_frames(make_env, real_data):
    env = make_env(task="temporal", videos=real_data / "davis" / "JPEGImages")
    env.reset(seed=0)
    *_, info = rollout(env, actions_of(env, 12))[-1]
    assert info["validated"]
    assert np.isfinite(info["loss"])
    assert "blackswan" in env.unwrapped.tasks["temporal"].data.names
