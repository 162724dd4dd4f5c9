"""Forks, checkpoints and pickles continue a run exactly; what does not fit raises an error and changes nothing."""

import copy
import functools
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv import CheckpointError, ConfigurationError, checkpoint
from permenv.wrappers import MixtureAction
from tests.helpers import (
    PARTS,
    SMALL,
    action_of,
    assert_same,
    assert_same_weights,
    every_task,
    joint_first,
    random_actions,
    rollout,
    small_backbone,
    small_run,
)

# Forks


@functools.cache
def one_environment(task):
    return gym.make("PermShuffle-v0", task=task, **SMALL)


def check_forks(task, start, generation, length, seed):
    """After `start` steps, a fork of a fork continues like its ancestor; another fork in between changes nothing."""
    env = one_environment(task)
    env.reset(seed=seed)
    rollout(env, random_actions(env, start, seed))
    parent = fork = env.unwrapped
    stray = parent.fork()
    for _ in range(generation):
        fork = fork.fork()
    rollout(stray, random_actions(env, length, [seed, 1]))
    actions = random_actions(env, length, [seed, 2])
    assert_same(rollout(parent, actions), rollout(fork, actions))
    assert_same_weights(parent, fork)
    assert parent.run.history == fork.run.history
    assert parent.rewards == fork.rewards


@pytest.mark.parametrize("start", [0, 3, 13])  # before, in and after mini-batches and validations
@joint_first
def test_a_fork_and_its_parent_continue_identically_and_independently(task, start):
    check_forks(task, start, generation=2, length=14, seed=start)


@pytest.mark.ci
@pytest.mark.parametrize("task", PARTS)
@given(st.integers(0, 25), st.integers(1, 3), st.integers(1, 20), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=34)  # 102 in all
def test_forks_at_random_moments_continue_like_their_parents(task, start, generation, length, seed):
    check_forks(task, start, generation, length, seed)


def test_a_fork_draws_its_own_random_actions(make_env):
    env = make_env()
    env.reset(seed=0)
    env.action_space.seed(0)
    expected = [env.action_space.sample() for _ in range(5)]
    env.action_space.seed(0)
    fork = env.unwrapped.fork()
    assert [fork.action_space.sample() for _ in range(5)] == expected  # as the original would
    assert [env.action_space.sample() for _ in range(5)] == expected


# Pickles


@every_task
@pytest.mark.parametrize("steps", [None, pytest.param(0, marks=pytest.mark.ci), 13])
def test_the_environment_pickles(task, steps):
    env = gym.make("PermShuffle-v0", task=task, **SMALL)
    if steps is not None:
        env.reset(seed=1)
        rollout(env, random_actions(env, steps))
    twin = pickle.loads(pickle.dumps(env))
    assert twin.unwrapped.task == task
    if steps is None:
        np.testing.assert_array_equal(env.reset(seed=2)[0], twin.reset(seed=2)[0])
    assert_same(rollout(env, random_actions(env, 16, 5)), rollout(twin, random_actions(env, 16, 5)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_copy_draws_what_the_original_would(make_env, copied, begun):
    env = make_env()
    env.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    if begun:
        env.reset()
    env.action_space.seed(1)
    env.observation_space.seed(2)
    twin = copied(env)
    assert [twin.action_space.sample() for _ in range(5)] == [env.action_space.sample() for _ in range(5)]
    np.testing.assert_array_equal(twin.observation_space.sample(), env.observation_space.sample())
    assert twin.unwrapped.np_random_seed == env.unwrapped.np_random_seed == -1
    np.testing.assert_array_equal(twin.reset()[0], env.reset()[0])


@joint_first
def test_a_run_with_a_users_backbone_pickles(make_env, task):
    env = make_env(task=task, backbone=small_backbone)
    env.reset(seed=0)
    assert isinstance(env.unwrapped.run.trainer.network.trunk[2], torch.nn.AdaptiveAvgPool2d)
    twin = pickle.loads(pickle.dumps(env))
    assert_same(rollout(env, random_actions(env, 14)), rollout(twin, random_actions(env, 14)))


# Checkpoints


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_state_in_memory_stays_as_it_was_while_the_run_goes_on(ema_decay):
    run, other = small_run(ema_decay=ema_decay), small_run(ema_decay=ema_decay)
    for each in (run, other):
        each.iterate()
    state = run.state_dict()
    for _ in range(3):
        run.iterate()
    run.load_state_dict(state)
    assert run.iteration == 1
    assert_same_weights(run, other)
    assert [run.iterate() for _ in range(2)] == [other.iterate() for _ in range(2)]


def a_layer_twice() -> torch.nn.Module:
    """A user's trunk whose second and third layer have their weights in common."""
    shared = torch.nn.Conv2d(4, 4, 3, padding=1)
    first = torch.nn.Conv2d(3, 4, 5, stride=2)
    return torch.nn.Sequential(first, shared, torch.nn.ReLU(), shared, torch.nn.AdaptiveAvgPool2d(2))


def test_a_run_whose_backbone_uses_a_layer_twice_is_saved_and_continued(tmp_path):
    run, other = (small_run(seed=seed, backbone=a_layer_twice) for seed in (0, 1))
    run.iterate()
    run.save(tmp_path / "run")
    other.load(tmp_path / "run")
    trunk = other.trainer.network.trunk
    assert trunk[1] is trunk[3]
    assert [run.iterate() for _ in range(3)] == [other.iterate() for _ in range(3)]


@joint_first
@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.ci), 7, pytest.param(24, marks=pytest.mark.ci)])
def test_a_saved_run_continues_bit_for_bit(make_env, tmp_path, task, steps):
    env, other = make_env(task=task), make_env(task=task)
    env.reset(seed=4)
    rollout(env, random_actions(env, steps))
    env.unwrapped.save(tmp_path / "run")
    observation, info = other.reset(options={"checkpoint": tmp_path / "run"})
    np.testing.assert_array_equal(observation, env.unwrapped.run.observation)
    assert info["iteration"] == env.unwrapped.run.trainer.iteration
    assert other.unwrapped.run.history == env.unwrapped.run.history
    assert_same(rollout(env, random_actions(env, 16, 1)), rollout(other, random_actions(env, 16, 1)))
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()  # the generators are equal too


@joint_first
def test_a_saved_run_continues_with_more_updates(make_env, tmp_path, task):
    env, longer = make_env(task=task, total_updates=1), make_env(task=task, total_updates=2)
    env.reset(seed=0)
    assert rollout(env, random_actions(env, 12))[-1][3]
    env.unwrapped.save(tmp_path / "run")
    longer.reset(options={"checkpoint": tmp_path / "run"})
    assert not longer.step(action_of(env, 0))[3]


@joint_first
def test_a_seed_beside_a_checkpoint_decides_the_runs_after_the_saved_one(make_env, tmp_path, task):
    env, other, fresh = (make_env(task=task) for _ in range(3))
    env.reset(seed=4)
    rollout(env, random_actions(env, 7))
    env.unwrapped.save(tmp_path / "run")
    other.reset(seed=5, options={"checkpoint": tmp_path / "run"})
    assert other.unwrapped.np_random_seed == 5
    assert_same(rollout(other, random_actions(env, 16, 1)), rollout(env, random_actions(env, 16, 1)))
    assert_same_weights(other, env)
    fresh.reset(seed=5)
    following = other.reset()[0]
    np.testing.assert_array_equal(following, fresh.reset()[0])
    assert not np.array_equal(following, env.reset()[0])


def test_a_seed_beside_a_checkpoint_decides_what_a_wrapper_draws(make_env, tmp_path):
    env = MixtureAction(make_env())
    env.reset(seed=4)
    env.unwrapped.save(tmp_path / "run")
    choices = []
    for seed in (None, 5, 5, 6):
        env.reset(seed=seed, options={"checkpoint": tmp_path / "run"})
        env.step(np.zeros(4, np.float32))
        choices.append(env.unwrapped.records[-1].choices.tolist())
    assert choices[1] == choices[2]
    assert choices[0] != choices[1] != choices[3]


@pytest.mark.parametrize(
    ("diverged", "message"),
    [
        (False, r"is over, it has completed all of its updates: .* without a checkpoint of this one, or raise total"),
        (True, r"diverged at iteration 3: begin another one with reset\(\), or continue an earlier checkpoint"),
    ],
)
def test_a_restored_run_that_is_over_takes_no_step(make_env, tmp_path, diverged, message):
    env, other = make_env(total_updates=1), make_env(total_updates=1)
    env.reset(seed=0)
    rollout(env, random_actions(env, 8))
    if diverged:
        env.unwrapped.run.trainer.network.heads["spatial"].classifier.bias.data.fill_(torch.nan)
    *_, last = rollout(env, random_actions(env, 4))
    env.unwrapped.save(tmp_path / "run")
    observation, info = other.reset(options={"checkpoint": tmp_path / "run"})
    np.testing.assert_array_equal(observation, last[0])
    assert (info["update"], info["diverged"]) == (1 - diverged, diverged)
    assert info["task_errors"] == last[4]["task_errors"]
    with pytest.raises(gym.error.ResetNeeded, match=message):
        other.step(0)
    other.reset(seed=0)
    other.step(0)


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("spatial", {"num_groups": 3}, r"num_groups=4, this run num_groups=3"),
        ("spatial", {"num_scenes": 61}, r"data=\{'spatial': 'scenes-\d+-60-54-0'\}"),
        ("spatial", {"learning_rate": 0.5, "momentum": 0.1}, r"all differences: learning_rate, momentum"),
        ("temporal", {"num_clips": 17}, r"data=\{'temporal': 'clips-\d+-16-10-18-0'\}"),
        ("temporal", {"merge_reversed": True, "lstm": 17}, r"all differences: merge_reversed, lstm"),
        ("spatiotemporal", {"num_clips": 17}, r"data=\{'spatial': 'scenes-.*', 'temporal': 'clips-.*'\}"),
        ("spatial", {"task": "temporal"}, r"data=\{'spatial': '.*'\}, this run data=\{'temporal': "),
        (
            "temporal",
            {"task": "spatiotemporal"},
            r"data=\{'temporal': '.*'\}, this run data=\{'spatial': .*'temporal': ",
        ),
    ],
)
def test_a_checkpoint_of_another_configuration_raises_an_error(make_env, tmp_path, task, overrides, message):
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
    actions = [action_of(other, 0)] * 12
    assert_same(rollout(other, actions), rollout(twin, actions))


def test_a_truncated_checkpoint_raises_an_error_and_stays_as_it_is(make_env, tmp_path):
    env = make_env()
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    (tmp_path / "run").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        env.reset(options={"checkpoint": tmp_path / "run"})
    assert (tmp_path / "run").read_bytes() == content[:-100]


@pytest.mark.parametrize("move", ["iterate", "validate"])
def test_a_run_that_was_moved_beside_the_environment_is_not_saved(make_env, tmp_path, move):
    env = make_env(iterations_per_update=1) if move == "iterate" else make_env()
    env.reset(seed=0)
    for _ in range(2):
        getattr(env.unwrapped.run, move)()
    for save in (lambda: env.unwrapped.save(tmp_path / "run"), lambda: pickle.dumps(env.unwrapped)):
        with pytest.raises(CheckpointError, match=r"run\.validate\(\) was called .* save the run with run\.save"):
            save()
    assert not (tmp_path / "run").exists()
    env.unwrapped.run.save(tmp_path / "run")


def test_a_run_continues_in_its_precision_where_auto_stands_for_another_one(make_env, tmp_path, monkeypatch):
    def native(is_native):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: is_native)

    native(True)
    env = make_env(precision="auto")
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "run")
    pickled = pickle.dumps(env.unwrapped.run)
    native(False)
    assert pickle.loads(pickled).trainer.precision == "bf16"
    other = make_env(precision="auto")
    other.reset(options={"checkpoint": tmp_path / "run"})
    twin = other.unwrapped.fork()
    assert env.unwrapped.run.trainer.precision == other.unwrapped.run.trainer.precision == "bf16"
    actions = random_actions(env, 12, 0)
    expected = rollout(env, actions)
    assert_same(rollout(other, actions), expected)
    assert_same(rollout(twin, actions), expected)
    with pytest.raises(CheckpointError, match="precision"):
        make_env(precision="float32").reset(options={"checkpoint": tmp_path / "run"})


def test_saving_before_reset_raises_an_error(make_env, tmp_path):
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        make_env().unwrapped.save(tmp_path / "run")


@joint_first
def test_the_identity_in_a_checkpoint_is_plain_json(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    identity = env.unwrapped.state_dict()["run"]["identity"]
    assert json.loads(json.dumps(identity)) == identity
    assert list(identity["data"]) == PARTS[task]


# A new run on another run's trunk


def saved_run(make_env, path, **overrides):
    """Train a little and save; return the trunk that was validated."""
    env = make_env(**overrides)
    env.reset(seed=0)
    rollout(env, random_actions(env, 12))
    env.unwrapped.save(path)
    return {name: value.clone() for name, value in env.unwrapped.run.trainer.eval_network.trunk.state_dict().items()}


@pytest.mark.parametrize(
    ("task", "theirs", "ours"),
    [
        ("temporal", 0.97, 0.97),
        ("temporal", 0.0, 0.97),
        ("temporal", 0.97, 0.0),
        pytest.param("spatiotemporal", 0.97, 0.97, marks=pytest.mark.ci),
        pytest.param("spatial", 0.97, 0.97, marks=pytest.mark.ci),
    ],
)
def test_a_run_begins_with_the_trunk_that_another_run_validated(make_env, tmp_path, task, theirs, ours):
    trunk = saved_run(make_env, tmp_path / "run", ema_decay=theirs)
    env, fresh = make_env(task=task, ema_decay=ours), make_env(task=task, ema_decay=ours)
    observation, info = env.reset(seed=6, options={"trunk": tmp_path / "run"})
    fresh.reset(seed=6)
    trainer, untouched = env.unwrapped.run.trainer, fresh.unwrapped.run.trainer
    for network in (trainer.network, trainer.eval_network):  # live and averaged
        assert all(torch.equal(value, trunk[name]) for name, value in network.trunk.state_dict().items())
    for network in (untouched.network, untouched.eval_network):
        assert not torch.equal(network.trunk[0].weight, trunk["0.weight"])
    assert all(map(torch.equal, trainer.network.heads.parameters(), untouched.network.heads.parameters()))
    assert info["iteration"] == info["update"] == 0
    assert info["validated"]
    for part in PARTS[task]:  # the seed decides everything else
        np.testing.assert_array_equal(env.unwrapped.run.held_out[part], fresh.unwrapped.run.held_out[part])
        assert not np.array_equal(env.unwrapped.validation[part].ratios, fresh.unwrapped.validation[part].ratios)
    np.testing.assert_array_equal(observation, env.unwrapped.run.observation)
    again = make_env(task=task, ema_decay=ours)
    again.reset(seed=6, options={"trunk": str(tmp_path / "run")})
    assert_same(rollout(env, random_actions(env, 14)), rollout(again, random_actions(env, 14)))


def test_a_run_on_another_runs_trunk_is_saved_and_continued(make_env, tmp_path):
    saved_run(make_env, tmp_path / "first")
    env, other = make_env(task="temporal"), make_env(task="temporal")
    env.reset(seed=1, options={"trunk": tmp_path / "first"})
    rollout(env, random_actions(env, 10))
    env.unwrapped.save(tmp_path / "second")
    other.reset(options={"checkpoint": tmp_path / "second"})
    assert_same(rollout(env, random_actions(env, 14)), rollout(other, random_actions(env, 14)))


def anothers_backbone() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


anothers_backbone.__qualname__ = small_backbone.__qualname__
anothers_backbone.__module__ = small_backbone.__module__  # as of a function that was changed


def invalid_options(make_env, folder):
    """Return reset options that raise an error, by what is wrong with them."""
    saved_run(make_env, folder / "run")
    saved_run(make_env, folder / "own", backbone=small_backbone)
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
            r"backbone='.*small_backbone'.*quarter-caffenet",
        ),
        "no file": ({"trunk": folder / "none"}, CheckpointError, r"no checkpoint at .*none"),
        "no checkpoint": ({"trunk": folder / "text"}, CheckpointError, r"text is truncated or not a checkpoint"),
        "half a file": ({"trunk": folder / "truncated"}, CheckpointError, r"truncated"),
        "no run": ({"trunk": folder / "agent"}, CheckpointError, r"agent holds no run: name a file"),
        "no run to continue": ({"checkpoint": folder / "agent"}, CheckpointError, r"holds no run"),
    }


@pytest.mark.parametrize("task", [pytest.param("temporal", marks=pytest.mark.ci), "spatiotemporal"])
def test_invalid_reset_options_leave_the_run_as_it_was(make_env, tmp_path, task):
    env, twin = make_env(task=task), make_env(task=task)
    env.reset(seed=1)
    twin.reset(seed=1)
    for options, error, message in invalid_options(make_env, tmp_path).values():
        with pytest.raises(error, match=message):
            env.reset(seed=9, options=options)
        actions = random_actions(env, 5)
        assert_same(rollout(env, actions), rollout(twin, actions))
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])  # the generators are equal too


@pytest.mark.parametrize("option", ["trunk", "checkpoint"])
def test_a_trunk_of_another_shape_under_the_same_name_leaves_the_run_as_it_was(make_env, tmp_path, option):
    saved_run(make_env, tmp_path / "run", backbone=small_backbone)
    env, twin = (make_env(backbone=anothers_backbone) for _ in range(2))
    env.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(CheckpointError, match="under the same name"):
        env.reset(seed=9, options={option: tmp_path / "run"})
    actions = random_actions(env, 12)
    assert_same(rollout(env, actions), rollout(twin, actions))


def test_the_trunk_of_a_run_that_diverged_raises_an_error(make_env, tmp_path):
    broken, env, twin = (make_env() for _ in range(3))
    for each in (broken, env, twin):
        each.reset(seed=1)
    with torch.no_grad():
        for network in (broken.unwrapped.run.trainer.network, broken.unwrapped.run.trainer.eval_network):
            network.trunk[0].weight.fill_(torch.nan)
    broken.unwrapped.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not finite"):
        env.reset(seed=9, options={"trunk": tmp_path / "run"})
    assert_same(rollout(env, random_actions(env, 12)), rollout(twin, random_actions(env, 12)))


# Exceptions in the middle of a step


def fail(*_, **__):
    """Stop where Ctrl-C might."""
    raise KeyboardInterrupt


@joint_first
@pytest.mark.parametrize(
    "start", [3, 7, 11]
)  # the last action of a mini-batch; the second and third end in validations
def test_a_step_that_fails_before_the_network_has_moved_changes_nothing(make_env, task, start, monkeypatch, tmp_path):
    env, whole = make_env(task=task), make_env(task=task)
    actions = random_actions(env, 24)
    for each in (env, whole):
        each.reset(seed=0)
        rollout(each, actions[:start])
    env.unwrapped.save(tmp_path / "before")
    with monkeypatch.context() as patch:
        patch.setattr(env.unwrapped.tasks[PARTS[task][-1]], "shard_of_pieces", fail)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                env.step(actions[start])
    env.unwrapped.save(tmp_path / "after")
    again = make_env(task=task)
    again.reset(options={"checkpoint": tmp_path / "after"})
    expected = rollout(whole, actions[start:])
    assert_same(rollout(env, actions[start:]), expected)
    assert_same(rollout(again, actions[start:]), expected)
    assert_same_weights(env, whole)


@pytest.mark.parametrize(
    "place",
    [
        "permenv.training.Trainer._losses",  # the batch statistics may have moved
        "permenv.training.Trainer._descend",
        "permenv.training.Trainer._update_averages",
        "permenv.pretraining.validate",
        "permenv.pretraining.group_permutations",
        "permenv.episode.reward",
    ],
)
def test_a_run_that_an_exception_has_ended_halfway_says_so_until_it_begins_again(
    make_env, place, monkeypatch, tmp_path
):
    env = make_env(free_iterations=0)
    actions = random_actions(env, 16)
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "begun")
    rollout(env, actions[:7])
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(KeyboardInterrupt):
            env.step(actions[7])
    for use in (lambda: env.step(actions[7]), lambda: env.unwrapped.save(tmp_path / "x"), env.unwrapped.fork):
        with pytest.raises(
            RuntimeError, match="halfway, so that it can neither go on nor be saved or forked: continue"
        ):
            use()
    assert not (tmp_path / "x").exists()
    env.reset(options={"checkpoint": tmp_path / "begun"})
    continued = rollout(env, actions)
    env.reset(seed=0)
    assert_same(continued, rollout(env, actions))


def test_a_run_by_itself_that_an_exception_has_ended_halfway_says_so(monkeypatch, tmp_path):
    run = small_run()
    with monkeypatch.context() as patch:
        patch.setattr("permenv.training.Trainer._descend", fail)
        with pytest.raises(KeyboardInterrupt):
            run.iterate()
    for use in (run.iterate, run.validate, run.fork, lambda: run.save(tmp_path / "x")):
        with pytest.raises(RuntimeError, match="halfway"):
            use()
    other = small_run()
    other.save(tmp_path / "other")
    run.load(tmp_path / "other")
    assert run.iterate() == other.iterate()
