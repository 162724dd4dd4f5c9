"""Many runs at once: `gym.make_vec` in its modes."""

import os
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from permenv import ConfigurationError
from permenv.device import resolve_device
from tests.helpers import SMALL, TASKS

FORKED = {"context": "fork"}
MODES = {"sync": ("sync", {}), "async": ("async", FORKED)}

every_task = pytest.mark.parametrize("task", TASKS)
every_mode = pytest.mark.parametrize("mode", MODES)
# Python 3.12 and later warn of any fork among threads; that ours end well is what is tested
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def make_vec():
    """Return a function that makes `PermShuffle-v0` several times, each as small as a test needs it."""
    made = []

    def make(mode="sync", num_envs=2, vector_kwargs=None, wrappers=None, **overrides):
        mode, arguments = MODES[mode]
        env = gym.make_vec(
            "PermShuffle-v0",
            num_envs=num_envs,
            vectorization_mode=mode,
            vector_kwargs={**arguments, **(vector_kwargs or {})},
            wrappers=wrappers,
            **{**SMALL, **overrides},
        )
        made.append(env)
        return env

    yield make
    for env in made:
        env.close(terminate=True)  # a worker that hangs must not hang the test


def actions_of(env, count):
    """Random actions, (count, num_envs) or (count, num_envs, tasks)."""
    return np.random.default_rng(0).integers(SMALL["num_groups"], size=(count, *env.action_space.shape))


def single_runs(make_env, seeds, actions, options=None, **overrides):
    """What the vector environment should give, from environments of their own with next-step autoreset.

    Returns:
        By environment, the results of reset and then of every step: (observation, reward, terminated, truncated, info).
    """
    runs = []
    for index, seed in enumerate(seeds):
        env = make_env(**overrides)
        observation, info = env.reset(seed=seed, options=options)
        run, over = [(observation, 0.0, False, False, info)], False
        for action in actions[:, index]:
            if over:
                observation, info = env.reset()
                run.append((observation, 0.0, False, False, info))
            else:
                run.append(env.step(action))
            over = run[-1][2] or run[-1][3]
        runs.append(run)
    return runs


def info_of(infos, index):
    """The info of one environment, out of the vector's."""
    return {
        name: info_of(value, index) if isinstance(value, dict) else value[index]
        for name, value in infos.items()
        if not name.startswith("_") and infos[f"_{name}"][index]
    }


def assert_is_single_runs(env, reset, actions, expected):
    observations, infos = reset
    results = [(observations, np.zeros(env.num_envs), *np.zeros((2, env.num_envs), dtype=bool), infos)]
    results += [env.step(action) for action in actions]
    for step, (observations, *numbers, infos) in enumerate(results):
        assert env.observation_space.contains(observations)
        for index, run in enumerate(expected):
            observation, *others, info = run[step]
            np.testing.assert_array_equal(observations[index], observation)
            assert [values[index] for values in numbers] == others
            assert info_of(infos, index) == info


@every_mode
@every_task
def test_each_run_is_its_single_run(make_env, make_vec, mode, task):
    env = make_vec(mode, task=task)
    actions = actions_of(env, 24)  # six iterations, four validations
    assert_is_single_runs(env, env.reset(seed=3), actions, single_runs(make_env, [3, 4], actions, task=task))


@pytest.mark.ci
def test_spawned_processes_run_their_single_runs(make_env, make_vec):
    env = make_vec("async", vector_kwargs={"context": "spawn"}, task="spatiotemporal")
    actions = actions_of(env, 16)
    expected = single_runs(make_env, [3, 4], actions, task="spatiotemporal")
    assert_is_single_runs(env, env.reset(seed=3), actions, expected)


@every_mode
def test_a_run_that_is_over_begins_anew_with_the_next_step(make_env, make_vec, mode):
    env = make_vec(mode, total_updates=1)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    actions = actions_of(env, 30)
    expected = single_runs(make_env, [5, 6], actions, total_updates=1)
    assert sum(result[3] for result in expected[0]) == 2  # each episode has three iterations of four actions
    assert_is_single_runs(env, env.reset(seed=5), actions, expected)


@every_mode
def test_seeds_may_be_a_list(make_env, make_vec, mode):
    env = make_vec(mode)
    actions = actions_of(env, 8)
    assert_is_single_runs(env, env.reset(seed=[8, 2]), actions, single_runs(make_env, [8, 2], actions))


@every_mode
@pytest.mark.parametrize("option", ["checkpoint", "trunk"])
def test_reset_options_reach_every_run(make_env, make_vec, tmp_path, mode, option):
    saved = make_env()
    saved.reset(seed=1)
    for _ in range(16):
        saved.step(0)
    saved.unwrapped.save(tmp_path / "run")
    env, options = make_vec(mode), {option: tmp_path / "run"}
    actions = actions_of(env, 8)
    expected = single_runs(make_env, [3, 4], actions, options)
    assert_is_single_runs(env, env.reset(seed=3, options=dict(options)), actions, expected)


@every_mode
def test_runs_after_a_checkpoint_differ_as_their_seeds_do(make_env, make_vec, tmp_path, mode):
    saved, single = make_env(total_updates=1), make_env(total_updates=1)
    saved.reset(seed=1)
    saved.unwrapped.save(tmp_path / "run")
    env = make_vec(mode, total_updates=1)
    reset = env.reset(seed=3, options={"checkpoint": tmp_path / "run"})
    observations = [reset[0], *(env.step(actions)[0] for actions in [[0, 0]] * 13)]  # the 13th step begins the next run
    for first, second in observations[:13]:
        np.testing.assert_array_equal(first, second)
    for seed, observation in zip([3, 4], observations[13], strict=True):
        single.reset(seed=seed)
        np.testing.assert_array_equal(observation, single.reset()[0])
    assert not np.array_equal(*observations[13])


# Processes and threads


class Threads(gym.Wrapper):
    """Tells how many threads torch has where the environment lives."""

    @property
    def threads(self):
        return torch.get_num_threads()


@pytest.fixture
def by_value():
    """Send `Threads` itself to new processes: where they import it, they import conftest, which sets threads."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def two_threads():
    """Have torch use two threads, and have used them."""
    torch.set_num_threads(2)
    torch.ones(10**7).sum()
    yield
    torch.set_num_threads(1)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("context", "setting", "threads"), [("fork", None, 1), ("fork", "2", 1), ("spawn", None, 1), ("spawn", "2", 2)]
)
def test_a_worker_process_has_one_thread_unless_told_otherwise(
    make_vec, monkeypatch, by_value, two_threads, context, setting, threads
):
    if setting is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    env = make_vec("async", num_envs=1, vector_kwargs={"context": context}, wrappers=[Threads])
    assert env.get_attr("threads") == (min(threads, os.cpu_count()),)
    assert torch.get_num_threads() == 2


def test_an_environment_leaves_the_threads_of_the_main_process_alone(make_vec, two_threads):
    make_vec("sync").reset(seed=0)
    assert torch.get_num_threads() == 2


def test_a_fork_of_a_process_with_threads_does_not_hang(make_vec, two_threads):
    """OpenMP's threads do not survive a fork, but a second one would be waited for."""
    env = make_vec("async")
    env.reset_async(seed=0)
    env.reset_wait(timeout=100)
    for action in actions_of(env, 4):
        env.step_async(action)
        *_, infos = env.step_wait(timeout=100)
    assert infos["iteration"].tolist() == [1, 1]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_gpu_in_a_forked_process_is_refused_with_the_remedy(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as torch says there
    with pytest.raises(ConfigurationError, match=rf"device='{device}'.*vector_kwargs=\{{'context': 'spawn'\}}"):
        resolve_device(device)
    assert resolve_device("cpu") == torch.device("cpu")
