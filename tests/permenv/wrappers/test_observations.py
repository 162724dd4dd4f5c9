"""The wrappers that change the observations."""

import math

import numpy as np
import pytest

from permenv.wrappers import ErrorAndProgress, RatioMatrix, StateHistory
from tests.helpers import rollout
from tests.permenv.wrappers.helpers import PARTS, actions_of, every_task


@every_task
def test_a_history_is_the_states_of_the_last_validations(make, task):
    env, twin = make("history", task), make(lambda env: env, task)
    shape = (3, 2, 4, 2) if task == "spatiotemporal" else (3, 4, 2)
    assert env.observation_space.shape == shape
    np.testing.assert_array_equal(env.observation_space.low[..., 0], 0)
    np.testing.assert_array_equal(env.observation_space.low[..., 1], 0.5)
    np.testing.assert_array_equal(env.observation_space.high[..., 1], 2)
    states = [twin.reset(seed=0)[0]] * 3
    np.testing.assert_array_equal(env.reset(seed=0)[0], states)
    for action in actions_of(env, cycles=2.5):
        state, *_, info = twin.step(action)
        if info["validated"]:
            states.append(state)
        np.testing.assert_array_equal(env.step(action)[0], states[-3:])
    assert len(states) == 3 + 5


@every_task
def test_the_ratios_are_those_of_the_last_validation(make, task):
    env = make("ratios", task)
    assert env.observation_space.shape == ((2, 24, 5) if task == "spatiotemporal" else (24, 5))
    assert env.observation_space.low.min() == env.observation_space.low.max() == 0.5
    assert env.observation_space.high.min() == env.observation_space.high.max() == 2
    observation, _ = env.reset(seed=0)
    for action in actions_of(env):
        for row, part in enumerate(PARTS[task]):
            np.testing.assert_array_equal(observation.reshape(-1, 24, 5)[row], env.unwrapped.validation[part].ratios)
        observation[:] = 0  # a copy
        observation, *_ = env.step(action)


@every_task
@pytest.mark.parametrize("below", [lambda env: env, lambda env: StateHistory(env, 2), RatioMatrix])
def test_error_and_progress_follow_the_observation_below(make, task, below):
    env, twin = make(lambda env: ErrorAndProgress(below(env)), task, total_updates=2), make(below, task)
    size, tasks = math.prod(twin.observation_space.shape), len(PARTS[task])
    assert env.observation_space.shape == (size + tasks + 1,)
    np.testing.assert_array_equal(env.observation_space.low[:size], twin.observation_space.low.ravel())
    np.testing.assert_array_equal(env.observation_space.high[:size], twin.observation_space.high.ravel())
    assert set(env.observation_space.low[size:]) == {0}
    assert set(env.observation_space.high[size:]) == {1}
    (observation, info), (expected, _) = env.reset(seed=0), twin.reset(seed=0)
    progress = []
    for action in [*actions_of(env, cycles=2), None]:
        np.testing.assert_array_equal(observation[:size], expected.ravel())
        np.testing.assert_array_equal(observation[size:-1], np.float32([*info["task_errors"].values()]))
        progress.append(observation[-1])
        if action is not None:
            observation, *_, truncated, info = env.step(action)
            expected, *_ = twin.step(action)
    assert truncated
    np.testing.assert_allclose(progress, [0] * 4 + [1 / 6] * 8 + [3 / 6] * 4 + [4 / 6] * 8 + [1], rtol=1e-6)


@every_task
def test_a_summary_is_read_from_the_last_two_validations(make, task):
    env, twin = make("summary", task, total_updates=2), make(lambda env: env, task)
    tasks = len(PARTS[task])
    np.testing.assert_array_equal(env.observation_space.low, np.float32([*[0, -1, 0.5, 0.5] * tasks, 0]))
    np.testing.assert_array_equal(env.observation_space.high, np.float32([*[1, 1, 2, 2] * tasks, 1]))
    (observation, info), (state, _) = env.reset(seed=0), twin.reset(seed=0)
    errors, progress = [info["task_errors"]] * 2, []
    for action in [*actions_of(env, cycles=2), None]:
        for row, part in enumerate(errors[-1]):
            error, medians = errors[-1][part], state.reshape(tasks, -1, 2)[row, :, 1]
            expected = [error, errors[-2][part] - error, medians.max(), medians.min()]
            np.testing.assert_allclose(observation[4 * row : 4 * row + 4], expected, atol=1e-6)
        progress.append(observation[-1])
        if action is not None:
            observation, *_, info = env.step(action)
            state, *_ = twin.step(action)
            if info["validated"]:
                errors.append(info["task_errors"])
    assert len(errors) == 2 + 4
    np.testing.assert_allclose(progress, [0] * 4 + [1 / 6] * 8 + [3 / 6] * 4 + [4 / 6] * 8 + [1], rtol=1e-6)


@pytest.mark.parametrize("stack", ["error and progress", "summary"])
def test_the_progress_of_a_longer_run_is_clipped_to_1(make, stack, tmp_path):
    env, shorter = make(stack, total_updates=3), make(stack, total_updates=1)
    env.reset(seed=0)
    rollout(env, actions_of(env, cycles=2))
    env.unwrapped.save(tmp_path / "run")
    observation, _ = shorter.reset(options={"checkpoint": tmp_path / "run"})
    assert observation in shorter.observation_space
    assert observation[-1] == 1
