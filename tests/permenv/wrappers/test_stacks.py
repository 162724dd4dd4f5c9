"""What holds for every stack of wrappers: checkers, determinism, fork, save and restore, errors."""

import itertools
import math
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    RecordEpisodeStatistics,
    TimeLimit,
    TransformObservation,
)
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from permenv import ConfigurationError
from permenv.wrappers import (
    ActionBlock,
    CrossEntropyReward,
    ErrorAndProgress,
    ErrorReduction,
    FlatJointAction,
    MixtureAction,
    NormalizedReward,
    PoolAction,
    RatioMatrix,
    RunSummary,
    StateHistory,
    fork,
)
from tests.helpers import assert_same, rollout
from tests.permenv.wrappers.helpers import STACKS, actions_of, every_stack, every_task, is_rewarded, mean, state_of

# The contract


@every_stack
def test_passes_the_environment_checker_of_gymnasium(make, stack, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*is different from the unwrapped version")  # it is a wrapper
        check_env(make(stack, task), skip_render_check=True)


@every_stack
def test_passes_the_environment_checker_of_stable_baselines3(make, stack, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(make(stack, task)))


@every_stack
def test_a_seed_determines_the_steps_which_are_in_the_spaces_also_when_made_from_the_spec(make, stack, task):
    first = make(stack, task)
    second = gym.make(first.spec)
    assert str(first) == str(second)
    assert first.observation_space == second.observation_space
    assert first.action_space == second.action_space
    actions = actions_of(first, cycles=2)
    trajectory, again = ([(*env.reset(seed=3), 0.0), *rollout(env, actions)] for env in (first, second))
    assert_same(trajectory, again)
    start, steps = trajectory[0][0], trajectory[1:]
    assert start in first.observation_space
    for observation, reward, *_, info in steps:
        assert observation in first.observation_space
        assert observation.dtype == np.float32
        assert type(reward) is float
        assert reward == pytest.approx(mean(info["task_rewards"].values()))
    assert len({observation.tobytes() for observation, *_ in trajectory}) == 5
    rewarded = [is_rewarded(first, info) for *_, info in steps]
    rewards = [step[1] for step, counts in zip(steps, rewarded, strict=True) if counts]
    assert rewards == first.get_wrapper_attr("rewards")
    assert len(rewards) == (4 if "ErrorReduction" in str(first) else 2)
    assert all(step[1] == 0 for step, counts in zip(steps, rewarded, strict=True) if not counts)


@every_stack
def test_a_stack_pickles_forks_and_restores_in_the_middle_of_a_run(make, tmp_path, stack, task):
    env, restored = make(stack, task), make(stack, task)
    env.reset(seed=1)
    *_, (last, *_) = rollout(env, actions_of(env))
    env.unwrapped.save(tmp_path / "run")
    pickled, forked, other = pickle.loads(pickle.dumps(env)), fork(env), fork(env)
    np.testing.assert_array_equal(restored.reset(options={"checkpoint": tmp_path / "run"})[0], last)
    before, count = state_of(env), len(env.unwrapped.records)
    rollout(other, actions_of(env, 4, cycles=1))
    assert state_of(env) == before
    assert len(env.unwrapped.records) == count < len(other.unwrapped.records)
    actions = actions_of(env, 5, cycles=1)
    trajectory = rollout(env, actions)
    assert state_of(env)[0] != before[0]
    for twin in (pickled, forked, restored):
        assert str(twin) == str(env)
        assert_same(trajectory, rollout(twin, actions))
        assert state_of(twin) == state_of(env)
        assert twin.get_wrapper_attr("rewards") == env.get_wrapper_attr("rewards")


@every_stack
def test_a_reset_is_needed_first(make, stack, task):
    env = make(stack, task)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded):
        env.get_wrapper_attr("rewards")
    with pytest.raises(gym.error.ResetNeeded):
        fork(env)


@every_task
def test_wrappers_that_change_different_things_can_be_stacked_in_any_order(make, task):
    trajectories = []
    wrappers = (MixtureAction, lambda env: StateHistory(env, 2), CrossEntropyReward)
    for order in itertools.permutations(wrappers):
        env = make(lambda env, order=order: order[2](order[1](order[0](env))), task)
        env.reset(seed=0)
        trajectories.append(rollout(env, actions_of(env, cycles=2)))
    for trajectory in trajectories[1:]:
        assert_same(trajectory, trajectories[0])


@every_task
def test_a_run_saved_under_one_stack_continues_under_another(make, tmp_path, task):
    env, other = make("all", task), make("ratios with error of a block", task)
    env.reset(seed=0)
    rollout(env, actions_of(env))
    env.unwrapped.save(tmp_path / "run")
    observation, _ = other.reset(options={"checkpoint": tmp_path / "run"})
    assert observation in other.observation_space
    rollout(other, actions_of(other))
    assert len(other.unwrapped.rewards) == 3
    assert other.unwrapped.rewards[:1] == env.unwrapped.rewards


def test_fork_copies_the_state_of_other_wrappers(make):
    env = make(
        lambda env: RecordEpisodeStatistics(
            FrameStackObservation(FlattenObservation(TimeLimit(NormalizedReward(env), 40)), 3)
        )
    )
    env.reset(seed=0)
    rollout(env, actions_of(env))
    twin, other = fork(env), fork(env)
    rollout(other, actions_of(env, 4, cycles=1))
    actions = actions_of(env, 5)
    assert_same(rollout(env, actions), rollout(twin, actions))
    while not (last := env.step(0))[3]:
        pass
    assert last[4]["episode"]["l"] == 40


def test_fork_of_a_bare_environment_is_its_fork(make):
    env = make("history").unwrapped
    env.reset(seed=0)
    twin = fork(env)
    assert type(twin) is type(env)
    assert_same(rollout(env, actions_of(env)), rollout(twin, actions_of(env)))


# Errors


@pytest.mark.parametrize(
    ("wrap", "task", "message"),
    [
        (lambda env: MixtureAction(env, strength=0), "spatial", r"MixtureAction\(strength=0\): must be a positive"),
        (lambda env: MixtureAction(env, strength=math.nan), "spatial", r"strength=nan"),
        (lambda env: MixtureAction(env, strength=math.inf), "spatial", r"strength=inf"),
        (lambda env: MixtureAction(env, strength=True), "spatial", r"strength=True"),
        (lambda env: MixtureAction(env, strength="1"), "spatial", r"strength='1'"),
        (lambda env: PoolAction(env, smallest=0), "spatial", r"PoolAction\(smallest=0\): must be a number above 0 and"),
        (lambda env: PoolAction(env, smallest=1.0), "spatial", r"smallest=1.0\): must be a number above 0 and below 1"),
        (lambda env: PoolAction(env, smallest=math.nan), "spatial", r"smallest=nan"),
        (lambda env: PoolAction(env, smallest=True), "spatial", r"smallest=True"),
        (lambda env: PoolAction(env, smallest="0.1"), "spatial", r"smallest='0.1'"),
        (lambda env: PoolAction(env, hardest_first=1), "spatial", r"hardest_first=1\): must be True or False"),
        (lambda env: StateHistory(env, 0), "spatial", r"StateHistory\(length=0\): must be an integer of at least 1"),
        (lambda env: StateHistory(env, 2.0), "spatial", r"length=2.0"),
        (lambda env: StateHistory(env, True), "spatial", r"length=True"),
        (
            lambda env: MixtureAction(ActionBlock(env)),
            "spatial",
            r"MixtureAction over the actions MultiDiscrete.*it chooses groups, Discrete\(4\); leave out one",
        ),
        (
            lambda env: PoolAction(MixtureAction(env)),
            "spatial",
            r"PoolAction over the actions Box.*it chooses groups, Discrete\(4\); leave out one",
        ),
        (
            lambda env: ActionBlock(FlatJointAction(env)),
            "spatiotemporal",
            r"ActionBlock over the actions Discrete\(16\): it chooses groups, MultiDiscrete\(\[4 4\]\)",
        ),
        (
            FlatJointAction,
            "temporal",
            r"FlatJointAction over task='temporal': its actions are Discrete\(4\) already; leave .* task='spatiotemp",
        ),
        (lambda env: StateHistory(RatioMatrix(env), 2), "spatial", r"StateHistory over the observation Box\(0.5, 2.0"),
        (lambda env: RatioMatrix(StateHistory(env, 2)), "temporal", r"put RatioMatrix below .* or leave out one of"),
        (lambda env: RunSummary(StateHistory(env, 2)), "temporal", r"put RunSummary below .* or leave out one of"),
        (lambda env: RatioMatrix(FlattenObservation(env)), "spatial", r"RatioMatrix over the observation"),
        (lambda env: StateHistory(ErrorAndProgress(env), 2), "spatial", r"put StateHistory below the wrapper that"),
        (
            lambda env: ErrorAndProgress(
                TransformObservation(env, lambda _: 0, observation_space=gym.spaces.Discrete(1))
            ),
            "spatial",
            r"ErrorAndProgress over the observation Discrete\(1\): it appends to a Box; put it below",
        ),
        (lambda env: CrossEntropyReward(NormalizedReward(env)), "spatial", r"over NormalizedReward: it replaces"),
        (lambda env: CrossEntropyReward(MixtureAction(CrossEntropyReward(env))), "spatial", r"over CrossEntropyReward"),
        (lambda env: CrossEntropyReward(ErrorReduction(env)), "spatial", r"CrossEntropyReward over ErrorReduction"),
        (lambda env: ErrorReduction(CrossEntropyReward(env)), "temporal", r"ErrorReduction over CrossEntropyReward"),
        (lambda env: ErrorReduction(ErrorReduction(env)), "spatial", r"ErrorReduction over ErrorReduction"),
        (lambda env: ErrorReduction(NormalizedReward(env)), "spatial", r"put NormalizedReward over ErrorReduction"),
    ],
)
def test_wrappers_that_do_not_fit_are_refused_with_a_remedy(make, wrap, task, message):
    with pytest.raises(ConfigurationError, match=message):
        make(wrap, task)


@pytest.mark.parametrize("stack", STACKS)
def test_another_environment_is_refused(stack):
    with pytest.raises(ConfigurationError, match=r"CartPole.* is another environment: pass PermShuffle-v0"):
        STACKS[stack](gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match=r"is another environment"):
        fork(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("stack", "task", "bad", "message"),
    [
        *(
            ("mixture", "spatial", bad, r"is not a mixture: pass an array \(4,\) of finite numbers")
            for bad in (
                [0, 0, math.nan, 0],
                [0, math.inf, 0, 0],
                [0, 0, 0],
                [[0, 0, 0, 0]],
                0.5,
                [[0], [1, 2]],
                ["0"] * 4,
                [True] * 4,
                [1j] * 4,
                None,
            )
        ),
        ("mixture", "spatiotemporal", np.zeros(8), r"pass an array \(2, 4\)"),
        ("mixture", "spatiotemporal", np.full((2, 4), np.nan), r"pass an array \(2, 4\)"),
        *(
            ("pool", "spatial", bad, r"is not a pool: pass an array \(1,\) of finite numbers")
            for bad in ([math.nan], [math.inf], [0, 0], [[0]], 0.5, [[0], [1, 2]], ["0"], [True], [1j], None)
        ),
        ("pool", "spatiotemporal", [0.0], r"pass an array \(2,\)"),
        ("pool", "spatiotemporal", np.zeros((2, 1)), r"pass an array \(2,\)"),
        *(
            ("block", "spatial", bad, r"is not a block of groups: pass an array \(8,\) of integers from 0 to 3")
            for bad in ([0] * 7 + [4], [-1] + [0] * 7, [0] * 9, [0.0] * 8, [False] * 8, 0, [[0] * 8], None)
        ),
        ("block", "spatiotemporal", [0] * 8, r"pass an array \(16,\)"),
        *(
            (
                "flat joint",
                "spatiotemporal",
                bad,
                r"does not stand for a group of each task: pass an integer from 0 to 15",
            )
            for bad in (16, -1, 1.0, True, [1], [1, 2], "1", None)
        ),
    ],
)
def test_an_invalid_action_is_refused_and_changes_nothing(make, stack, task, bad, message):
    env = make(lambda env: STACKS[stack](env.unwrapped), task)
    env.reset(seed=0)
    before = state_of(env)
    with pytest.raises(gym.error.InvalidAction, match=message):
        env.step(bad)
    assert state_of(env) == before
    assert env.step(env.action_space.sample())[4]["iteration"] == (0 if stack == "flat joint" else 1)


# Stable-Baselines3


@pytest.mark.parametrize(
    ("algorithm", "stack", "task", "arguments"),
    [
        (PPO, "all", "spatial", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (PPO, "normalized error reduction of a block", "temporal", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (PPO, "mixture", "spatiotemporal", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (SAC, "all", "temporal", {"learning_starts": 4, "batch_size": 4}),
        (SAC, "mixture", "spatiotemporal", {"learning_starts": 4, "batch_size": 4}),
        (SAC, "pool", "spatiotemporal", {"learning_starts": 4, "batch_size": 4}),
        (PPO, "ratios with error of a block", "spatial", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (DQN, "history of pairs", "spatiotemporal", {"learning_starts": 8, "batch_size": 4, "buffer_size": 50}),
    ],
)
def test_algorithms_of_stable_baselines3_train(make, algorithm, stack, task, arguments):
    env = FlattenObservation(make(stack, task, total_updates=2))
    model = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu", seed=0, **arguments)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(16 if "Action" in str(env) and "Flat" not in str(env.env) else 40)
    assert not all(map(torch.equal, before, model.policy.parameters()))
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation, deterministic=True)
    assert env.step(action)[0] in env.observation_space
