"""The decision process: when iterations and validations are due, what an action draws, rewards, divergence."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from permenv.grouping import observe
from permenv.reward import extrapolate
from tests.helpers import PARTS, action_of, every_task, joint_first, mean, random_actions, rollout, weights_of

# When things are due


@every_task
@pytest.mark.parametrize(("free", "update", "m"), [(0, 1, 8), (0, 3, 2), (2, 1, 4), (1, 2, 1)])
def test_iterations_validations_updates_and_the_end_come_when_they_are_due(make_env, task, free, update, m):
    """When iterations, validations, updates and the end come, action by action."""
    env = make_env(task=task, free_iterations=free, iterations_per_update=update, samples_per_action=m, total_updates=2)
    observation, info = env.reset(seed=0)
    assert info["validated"]
    assert info["iteration"] == info["update"] == 0
    per_iteration, cycle = 8 // m, free + update
    announced = env.unwrapped.episode.next_validation
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
        if info["validated"]:
            assert iterations == announced
            announced = env.unwrapped.episode.next_validation
        else:
            np.testing.assert_array_equal(observation, observation_before)
        if not ends_update:
            assert reward == 0
            assert set(info["task_rewards"].values()) == {0}
    assert announced is None
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action_of(env, 0))


# Rewards


@joint_first
def test_rewards_are_equation_7_on_each_tasks_errors_and_their_mean(make_env, task):
    env = make_env(task=task, free_iterations=1, iterations_per_update=3, total_updates=4, learning_rate=0.2)
    _, info = env.reset(seed=1)
    history = {part: [(0, error)] for part, error in info["task_errors"].items()}
    assert list(history) == PARTS[task]
    rewards = []
    for action in random_actions(env, 4 * 4 * 4):
        _, reward, _, _, info = env.step(action)
        assert reward == mean(info["task_rewards"].values())
        assert info["error"] == mean(info["task_errors"].values())
        assert info["baseline_error"] == mean(info["task_baseline_errors"].values())
        assert info["loss"] == sum(info["task_losses"].values())
        if info["validated"]:
            for part, errors in history.items():
                baseline, error = extrapolate(errors, info["iteration"]), info["task_errors"][part]
                assert info["task_baseline_errors"][part] == baseline
                assert error == env.unwrapped.validation[part].error
                if info["phase"] == "update":
                    assert info["task_rewards"][part] == baseline - error
                errors.append((info["iteration"], error))
            if info["phase"] == "update":
                rewards.append(list(info["task_rewards"].values()))
    assert env.unwrapped.run.history == history
    assert len(rewards) == 4
    assert np.any(rewards, axis=0).all()
    if task == "spatiotemporal":  # the two tasks' gains are their own
        assert any(spatial != temporal for spatial, temporal in rewards)


@joint_first
def test_the_undiscounted_return_is_the_error_reduction_of_the_last_update(make_env, task):
    """r_t = g_t - g_(t-1), where g_t is the error reduction of update t: their sum telescopes."""
    env = make_env(task=task, free_iterations=0, iterations_per_update=2, total_updates=5, learning_rate=0.2)
    env.reset(seed=0)
    steps = rollout(env, random_actions(env, 5 * 2 * 4))
    assert steps[-1][3]
    errors = [mean(record.errors.values()) for record in env.unwrapped.records]
    assert len(errors) == 6
    undiscounted_return = sum(reward for _, reward, *_ in steps)
    assert undiscounted_return == pytest.approx(errors[-2] - errors[-1])
    assert undiscounted_return != pytest.approx(errors[0] - errors[-1])  # not what was learned in the episode
    np.testing.assert_allclose(np.cumsum(env.unwrapped.rewards), -np.diff(errors), atol=1e-12)


# Records


@joint_first
def test_every_validation_is_recorded(make_env, task):
    env = make_env(task=task)
    observation, info = env.reset(seed=0)
    base_env = env.unwrapped
    seen, counts, rewards = [(observation, info)], [np.zeros((len(base_env.tasks), 4), int)], []
    running = np.zeros_like(counts[0])
    for action in random_actions(env, 36):
        observation, reward, _, _, info = env.step(action)
        running[np.arange(len(base_env.tasks)), action] += 1
        if info["iteration"] > seen[-1][1]["iteration"] and not info["validated"]:
            assert base_env.run.choices.sum() % 4 == 0  # only full mini-batches count
        if info["validated"]:
            assert not base_env.run.choices.any()
            seen.append((observation, info))
            counts.append(running.copy())
            running[:] = 0
            rewards += [reward] if info["phase"] == "update" else []
    assert base_env.rewards == rewards
    assert [record.phase for record in base_env.records] == ["reset", *(info["phase"] for _, info in seen[1:])]
    for record, (observation, info), choices in zip(base_env.records, seen, counts, strict=True):
        assert record.iteration == info["iteration"]
        assert record.errors == info["task_errors"]
        assert record.cross_entropies == info["task_cross_entropies"]
        np.testing.assert_array_equal(record.observation, observation)
        np.testing.assert_array_equal(record.choices, choices)


# What an action draws


def record_labels(run):
    """Keep the labels that would be trained on, by task, and train on nothing."""
    seen = {part: [] for part in run.tasks}

    def step(batches):
        for part, batch in batches.items():
            assert len(batch.pieces) == len(batch.labels)
            seen[part].append(batch.labels.copy())
        return dict.fromkeys(batches, 1.0)

    run.trainer.step = step
    return seen


@every_task
def test_an_action_draws_uniformly_from_its_group_of_each_task_only(make_env, task):
    sizes = {"batch_size": 512, "samples_per_action": 512, "free_iterations": 0, "iterations_per_update": 100}
    env = make_env(task=task, **sizes)
    env.reset(seed=0)
    base_env = env.unwrapped
    seen = record_labels(base_env.run)
    for group in range(4):
        chosen = dict(zip(PARTS[task], (group, (group + 1) % 4), strict=False))
        env.step(action_of(env, *chosen.values()))
        for part, which in chosen.items():
            members = np.flatnonzero(base_env.groups[part] == which)
            counts = np.bincount(seen[part][-1], minlength=24)
            assert set(np.flatnonzero(counts)) <= set(members)
            expected = 512 / len(members)
            assert ((counts[members] - expected) ** 2 / expected).sum() < 3 * len(members) + 15


@every_task
def test_each_action_decides_its_own_part_of_the_mini_batch(make_env, task):
    env = make_env(task=task, samples_per_action=2)
    env.reset(seed=0)
    base_env = env.unwrapped
    seen = record_labels(base_env.run)
    actions, groups_before = random_actions(env, 4, seed=1), base_env.groups
    rollout(env, actions)
    for column, part in enumerate(PARTS[task]):
        labels, groups = seen[part][0], groups_before[part]
        assert len(labels) == 8
        chosen = actions.reshape(4, -1)[:, column].clip(max=groups.max())  # an empty group stands for the easiest
        assert len(set(chosen)) > 1
        np.testing.assert_array_equal(groups[labels], chosen.repeat(2))


@every_task
def test_an_empty_group_stands_for_the_easiest(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    base_env = env.unwrapped
    base_env.run._set_groups({part: np.repeat([0, 1], 12) for part in PARTS[task]})
    ratios = {part: each.ratios for part, each in base_env.validation.items()}
    for summary in observe(ratios, base_env.groups, 4).reshape(-1, 4, 2):
        np.testing.assert_array_equal(summary[:, 0], [0.5, 0.5, 0, 0])
    seen = record_labels(base_env.run)
    rollout(env, [action_of(env, 3)] * 4)
    for part in PARTS[task]:
        assert min(seen[part][0]) >= 12


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
    base_env = env.unwrapped
    last, history = base_env.run.observation.copy(), {part: list(past) for part, past in base_env.run.history.items()}
    if broken == "loss":
        base_env.run.trainer.network.heads[where].classifier.bias.data.fill_(torch.nan)
    else:
        step = base_env.run.trainer.step

        def step_and_break(batches):
            losses = step(batches)
            for parameter in base_env.run.trainer.eval_network.heads[where].parameters():
                parameter.data.fill_(torch.nan)
            return losses

        base_env.run.trainer.step = step_and_break
    for group in range(4):
        observation, reward, terminated, truncated, info = env.step(action_of(env, group))
    assert terminated
    assert not truncated
    assert info["diverged"] is True
    assert info["validated"] is False
    assert info["error"] == 1
    assert info["task_errors"] == dict.fromkeys(PARTS[task], 1)
    assert info["task_cross_entropies"] == dict.fromkeys(PARTS[task], np.log(24))
    np.testing.assert_array_equal(observation, last)
    for part in PARTS[task]:
        assert np.isfinite(info["task_losses"][part]) == (broken == "validation" or part != where)
        assert info["task_baseline_errors"][part] == pytest.approx(extrapolate(history[part], 2))
        assert info["task_rewards"][part] == info["task_baseline_errors"][part] - 1
    assert reward == mean(info["task_rewards"].values())
    assert base_env.run.history == history
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action_of(env, 0))
    observation, info = env.reset(seed=0)
    assert np.isfinite(observation).all()
    assert info["diverged"] is False


@pytest.mark.parametrize(("iterations", "phase"), [(4, "free"), (6, "update")])
def test_a_divergence_is_rewarded_among_free_iterations_and_within_an_update_too(make_env, iterations, phase):
    """The baseline is read at the iteration whose loss was not finite, the first of two of its phase."""
    env = make_env(free_iterations=2, iterations_per_update=2)
    env.reset(seed=0)
    rollout(env, random_actions(env, 4 * iterations))
    base_env = env.unwrapped
    base_env.run.trainer.network.heads["spatial"].classifier.bias.data.fill_(torch.nan)
    baseline = extrapolate(base_env.run.history["spatial"], iterations + 1)
    *earlier, (_, reward, terminated, _, info) = rollout(env, random_actions(env, 4))
    assert all(step[1] == 0 for step in earlier)
    assert terminated
    assert info["phase"] == phase
    assert reward == baseline - 1
    assert len(base_env.rewards) == 2
    assert base_env.rewards[-1] == reward
