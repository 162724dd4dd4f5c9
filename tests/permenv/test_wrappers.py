"""The views of the environment: one contract for every stack of them, and what each of them shows."""

import copy
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

from permenv import TASKS, ConfigurationError
from permenv.wrappers import (
    ActionBlock,
    CrossEntropyReward,
    ErrorAndProgress,
    FlatJointAction,
    MixtureAction,
    NormalizedReward,
    RatioMatrix,
    StateHistory,
    fork,
)
from tests.helpers import assert_same, rollout


def small_backbone() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


FAST = {"num_scenes": 24, "piece_size": 16, "cell_size": 18, "backbone": small_backbone}
FAST |= {"batch_size": 4, "samples_per_action": 1, "num_validation": 5, "total_updates": 20}
FAST |= {"learning_rate": 0.1, "ema_decay": 0.5}
"""What makes a cycle of 4 actions in a free iteration and 8 in the 2 of an update take a few hundredths of a second."""

PARTS = {"spatial": ["spatial"], "temporal": ["temporal"], "spatiotemporal": ["spatial", "temporal"]}

STACKS = {
    "mixture": MixtureAction,
    "block": ActionBlock,
    "flat joint": FlatJointAction,
    "history": lambda env: StateHistory(env, 3),
    "ratios": RatioMatrix,
    "error and progress": ErrorAndProgress,
    "cross-entropy": CrossEntropyReward,
    "normalized": NormalizedReward,
    "normalized cross-entropy": lambda env: NormalizedReward(CrossEntropyReward(env)),
    "ratios with error of a block": lambda env: ErrorAndProgress(RatioMatrix(ActionBlock(env))),
    "history of pairs": lambda env: NormalizedReward(StateHistory(FlatJointAction(env), 2)),
    "all": lambda env: NormalizedReward(
        CrossEntropyReward(ErrorAndProgress(StateHistory(MixtureAction(env, strength=2.0), 3)))
    ),
    "all upside down": lambda env: MixtureAction(
        ErrorAndProgress(StateHistory(NormalizedReward(CrossEntropyReward(env)), 3)), strength=2.0
    ),
}
JOINT_ONLY = {"flat joint", "history of pairs"}
CASES = [(stack, task) for stack in STACKS for task in TASKS if task == "spatiotemporal" or stack not in JOINT_ONLY]

every_task = pytest.mark.parametrize("task", TASKS)
every_stack = pytest.mark.parametrize(("stack", "task"), CASES)


@pytest.fixture
def make(make_env):
    """Return a function that makes a stack of views over a fast environment."""

    def make_stack(stack, task="spatial", **overrides):
        wrap = STACKS[stack] if isinstance(stack, str) else stack
        return wrap(make_env(task=task, **{**FAST, **overrides}))

    return make_stack


def actions_of(env, seed=0, cycles=1.5):
    """Random actions for so many cycles of free iterations and an update."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    steps_in_cycle = 2 if "Mixture" in str(env) or "Block" in str(env) else 12
    return [space.sample() for _ in range(round(cycles * steps_in_cycle))]


def state_of(env):
    """The weights and the generator of a run."""
    world = env.unwrapped
    return [p.tolist() for p in world.trainer.network.parameters()], world.np_random.bit_generator.state


def mean(values):
    return sum(values) / len(values)


# The contract


@every_stack
def test_gymnasiums_checker_has_nothing_to_say(make, stack, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*is different from the unwrapped version")  # it is a wrapper
        check_env(make(stack, task), skip_render_check=True)


@every_stack
def test_stable_baselines_checker_has_nothing_to_say(make, stack, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(make(stack, task)))


@every_stack
def test_the_same_seed_gives_the_same_steps_inside_the_spaces_also_to_what_the_spec_makes(make, stack, task):
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
    rewards = [step[1] for step in steps if step[4]["validated"] and step[4]["phase"] == "update"]
    assert rewards == first.get_wrapper_attr("rewards")
    assert len(rewards) == 2


@every_stack
def test_a_stack_pickles_forks_and_restores_in_the_middle_of_a_run(make, tmp_path, stack, task):
    env, restored = make(stack, task), make(stack, task)
    env.reset(seed=1)
    *_, (last, *_) = rollout(env, actions_of(env))
    env.unwrapped.save(tmp_path / "run")
    pickled, forked, other = pickle.loads(pickle.dumps(env)), fork(env), fork(env)
    np.testing.assert_array_equal(restored.reset(seed=2, options={"checkpoint": tmp_path / "run"})[0], last)
    before, count = state_of(env), len(env.unwrapped.records)
    rollout(other, actions_of(env, 4, cycles=1))
    assert state_of(env) == before
    assert len(env.unwrapped.records) == count < len(other.unwrapped.records)
    actions = actions_of(env, 5, cycles=1)
    trajectory = rollout(env, actions)
    assert not all(itertools.starmap(np.array_equal, zip(state_of(env)[0], state_of(other)[0], strict=True)))
    for twin in (pickled, forked, restored):
        assert str(twin) == str(env)
        assert_same(trajectory, rollout(twin, actions))
        assert state_of(twin) == state_of(env)
        assert twin.get_wrapper_attr("rewards") == env.get_wrapper_attr("rewards")


@every_stack
def test_nothing_happens_before_a_reset(make, stack, task):
    env = make(stack, task)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded):
        env.get_wrapper_attr("rewards")
    with pytest.raises(gym.error.ResetNeeded):
        fork(env)


@every_task
def test_views_of_different_things_go_in_any_order(make, task):
    trajectories = []
    views = (MixtureAction, lambda env: StateHistory(env, 2), CrossEntropyReward)
    for order in itertools.permutations(views):
        env = make(lambda env, order=order: order[2](order[1](order[0](env))), task)
        env.reset(seed=0)
        trajectories.append(rollout(env, actions_of(env, cycles=2)))
    for trajectory in trajectories[1:]:
        assert_same(trajectory, trajectories[0])


@every_task
def test_a_run_saved_under_one_stack_goes_on_under_another(make, tmp_path, task):
    env, other = make("all", task), make("ratios with error of a block", task)
    env.reset(seed=0)
    rollout(env, actions_of(env))
    env.unwrapped.save(tmp_path / "run")
    observation, _ = other.reset(options={"checkpoint": tmp_path / "run"})
    assert observation in other.observation_space
    rollout(other, actions_of(other))
    assert len(other.unwrapped.rewards) == 3
    assert other.unwrapped.rewards[:1] == env.unwrapped.rewards


def test_fork_copies_what_the_wrappers_of_others_keep(make):
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


# What cannot be


@pytest.mark.parametrize(
    ("wrap", "task", "message"),
    [
        (lambda env: MixtureAction(env, strength=0), "spatial", r"MixtureAction\(strength=0\): must be a positive"),
        (lambda env: MixtureAction(env, strength=math.nan), "spatial", r"strength=nan"),
        (lambda env: MixtureAction(env, strength=math.inf), "spatial", r"strength=inf"),
        (lambda env: MixtureAction(env, strength=True), "spatial", r"strength=True"),
        (lambda env: MixtureAction(env, strength="1"), "spatial", r"strength='1'"),
        (lambda env: StateHistory(env, 0), "spatial", r"StateHistory\(length=0\): must be an integer of at least 1"),
        (lambda env: StateHistory(env, 2.0), "spatial", r"length=2.0"),
        (lambda env: StateHistory(env, True), "spatial", r"length=True"),
        (
            lambda env: MixtureAction(ActionBlock(env)),
            "spatial",
            r"MixtureAction over the actions MultiDiscrete.*it chooses groups, Discrete\(4\); leave out one",
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
    ],
)
def test_what_cannot_be_is_refused_with_its_remedy(make, wrap, task, message):
    with pytest.raises(ConfigurationError, match=message):
        make(wrap, task)


@pytest.mark.parametrize("stack", STACKS)
def test_another_environment_is_refused(stack):
    with pytest.raises(ConfigurationError, match=r"CartPole.* is another environment: pass PermShuffle-v0"):
        STACKS[stack](gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match=r"is another environment"):
        fork(gym.make("CartPole-v1"))


ZEROS = np.zeros(4, np.float32)


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
            ("block", "spatial", bad, r"is not a block of groups: pass an array \(8,\) of integers from 0 to 3")
            for bad in ([0] * 7 + [4], [-1] + [0] * 7, [0] * 9, [0.0] * 8, [False] * 8, 0, [[0] * 8], None)
        ),
        ("block", "spatiotemporal", [0] * 8, r"pass an array \(16,\)"),
        *(
            ("flat joint", "spatiotemporal", bad, r"is not a pair of groups: pass an integer from 0 to 15")
            for bad in (16, -1, 1.0, True, [1], [1, 2], "1", None)
        ),
    ],
)
def test_an_action_that_is_none_is_refused_and_changes_nothing(make, stack, task, bad, message):
    env = make(lambda env: STACKS[stack](env.unwrapped), task)
    env.reset(seed=0)
    before = state_of(env)
    with pytest.raises(gym.error.InvalidAction, match=message):
        env.step(bad)
    assert state_of(env) == before
    assert env.step(env.action_space.sample())[4]["iteration"] == (0 if stack == "flat joint" else 1)


# Actions


def stub_training(env):
    """Keep the labels that would be trained on, by task, and train on nothing."""
    world = env.unwrapped
    seen = {part: [] for part in world.tasks}

    def step(batches):
        for part, batch in batches.items():
            seen[part].extend(batch.labels.tolist())
        world.trainer.iteration += 1
        return dict.fromkeys(batches, 1.0)

    world.trainer.step = step
    for each in world.tasks.values():
        each.training_pieces = lambda samples, labels, generator: torch.zeros(len(samples), 1)
    return seen


def assert_drawn_like(counts, probabilities):
    expected = counts.sum() * probabilities
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert ((counts - expected) ** 2 / expected).sum() < 3 * len(expected) + 15


MANY = {"batch_size": 1000, "free_iterations": 0, "iterations_per_update": 4}


@every_task
def test_mixture_0_draws_all_permutations_alike(make, task):
    env = make("mixture", task, **MANY)
    env.reset(seed=0)
    sizes = env.unwrapped.records[-1].observation.reshape(-1, 4, 2)[..., 0]
    assert np.ptp(sizes) > 0.1  # to draw all groups alike would be something else
    np.testing.assert_allclose(env.probabilities(np.zeros(env.action_space.shape)), sizes, rtol=1e-6)
    seen = stub_training(env)
    env.step(np.zeros(env.action_space.shape, np.float32))
    for part in PARTS[task]:
        assert len(seen[part]) == 4000
        assert_drawn_like(np.bincount(seen[part], minlength=24), np.full(24, 1 / 24))


@every_task
@pytest.mark.parametrize("strength", [0.5, 1, 3.0])
def test_a_mixture_leans_by_its_strength_each_task_its_own_way(make, task, strength):
    env = make(lambda env: MixtureAction(env, strength), task, **MANY)
    env.reset(seed=0)
    world = env.unwrapped
    rows = np.array([[1, -1, 0, 0.5], [-0.5, 0, 1, -1]])[: len(PARTS[task])]
    groups = dict(world.groups)
    seen = stub_training(env)
    expected = []
    for part, row in zip(PARTS[task], rows, strict=True):
        weights = np.array([(groups[part] == j).mean() * math.exp(strength * row[j]) for j in range(4)])
        expected.append(weights / weights.sum())
    np.testing.assert_allclose(env.probabilities(rows.reshape(env.action_space.shape)), expected, rtol=1e-6)
    env.step(rows.reshape(env.action_space.shape).astype(np.float32))
    for part, probabilities in zip(PARTS[task], expected, strict=True):
        drawn = groups[part][np.array(seen[part])]
        assert_drawn_like(np.bincount(drawn, minlength=4), probabilities)


def test_each_sample_of_a_mixture_has_a_group_of_its_own_but_for_an_actions(make):
    env = make("mixture", samples_per_action=4, batch_size=8, free_iterations=0)
    env.reset(seed=0)
    taken, step = [], env.env.step
    env.env.step = lambda action: taken.append(action) or step(action)
    rollout(env, actions_of(env, cycles=5))
    assert len(taken) == 10 * 2 * 2
    assert set(taken) == {0, 1, 2, 3}


def test_a_mixture_looks_at_the_states_of_the_run_whatever_is_shown_below(make):
    plain, over = make("mixture"), make(lambda env: MixtureAction(RatioMatrix(env)))
    plain.reset(seed=0)
    over.reset(seed=0)
    for action in actions_of(plain, cycles=2):
        sizes = np.bincount(plain.unwrapped.groups["spatial"], minlength=4) / 24
        np.testing.assert_allclose(plain.probabilities(np.zeros(4)), [sizes], rtol=1e-6)
        np.testing.assert_array_equal(plain.probabilities(action), over.probabilities(action))
        assert_same([plain.step(action)[1:]], [over.step(action)[1:]])


def test_a_mixture_is_clipped_and_a_constant_changes_nothing(make):
    env = make("mixture")
    env.reset(seed=0)
    np.testing.assert_array_equal(env.probabilities([3, -5, 0.5, 0]), env.probabilities([1, -1, 0.5, 0]))
    np.testing.assert_allclose(env.probabilities([0.75, 0.25, 0.5, 0.25]), env.probabilities([0.5, 0, 0.25, 0]))
    np.testing.assert_array_equal(env.probabilities(np.array([1, 0, 0, -1], np.int8)), env.probabilities([1, 0, 0, -1]))


@pytest.mark.parametrize("strength", [1.0, 1e6])
def test_an_empty_group_is_never_drawn_however_much_it_is_wanted(make, strength):
    env = make(lambda env: MixtureAction(env, strength), learning_rate=0)
    env.reset(seed=0)
    trainer = env.unwrapped.trainer
    for network in (trainer.network, trainer.evaluated):
        for parameter in network.parameters():
            parameter.data.zero_()  # all rows of s become the same
    observation, *_ = env.step(np.zeros(4))
    np.testing.assert_array_equal(observation[:, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(env.probabilities([-1, 1, 1, 1]), [[1, 0, 0, 0]])
    seen = stub_training(env)
    env.step([-1, 1, 1, 1])
    assert len(seen["spatial"]) == 8


@every_task
def test_a_block_is_its_actions_one_by_one(make, task):
    env, one_by_one = make("block", task, free_iterations=0), make(lambda env: env, task, free_iterations=0)
    assert env.action_space.shape == (8 * len(PARTS[task]),)
    env.reset(seed=0)
    one_by_one.reset(seed=0)
    for block in actions_of(env, cycles=2):
        *_, last = rollout(one_by_one, block.reshape(8, *one_by_one.action_space.shape))
        assert_same([env.step(block)], [last])
        assert last[4]["validated"]


@every_task
@pytest.mark.parametrize("free", [1, 2, 5])
def test_a_block_is_played_in_the_free_iterations_too_from_its_start(make, task, free):
    env, one_by_one = (make(stack, task, free_iterations=free) for stack in ("block", lambda env: env))
    env.reset(seed=0)
    one_by_one.reset(seed=0)
    first, second = (block.reshape(8, *one_by_one.action_space.shape) for block in actions_of(env, cycles=1))
    *_, last = rollout(one_by_one, [first[k % 8] for k in range(4 * free)])
    assert_same([env.step(first.ravel())], [last])
    assert (last[1], last[4]["phase"], last[4]["validated"]) == (0, "free", True)
    *_, last = rollout(one_by_one, second)
    assert_same([env.step(second.ravel())], [last])
    assert (last[4]["phase"], last[4]["update"]) == ("update", 1)


@every_task
@pytest.mark.parametrize("stack", ["mixture", "block"])
@pytest.mark.parametrize("free", [0, 2])
def test_a_phase_is_a_step(make, task, stack, free):
    env = make(stack, task, free_iterations=free, total_updates=3)
    env.reset(seed=0)
    steps = rollout(env, actions_of(env, cycles=3 if free else 1.5))
    phases = ["free", "update"] * 3 if free else ["update"] * 3
    assert [step[4]["phase"] for step in steps] == phases
    iterations = [2, 4, 6, 8, 10, 12] if free else [2, 4, 6]
    assert [step[4]["iteration"] for step in steps] == iterations
    assert all(step[4]["validated"] for step in steps)
    assert [step[3] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [step[1] for step in steps if step[4]["phase"] == "update"] == env.unwrapped.rewards
    assert all(step[1] == 0 for step in steps if step[4]["phase"] == "free")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_a_pair_of_groups_is_one_number(make):
    env, pairs = make("flat joint", "spatiotemporal"), make(lambda env: env, "spatiotemporal")
    assert env.action_space == gym.spaces.Discrete(16)
    env.reset(seed=0)
    pairs.reset(seed=0)
    for spatial, temporal in [(0, 0), (3, 1), (1, 3), (2, 2)] * 3:
        assert_same([env.step(np.int64(4 * spatial + temporal))], [pairs.step(np.array([spatial, temporal]))])
    assert pairs.unwrapped.records[-1].choices.tolist() == [[2, 2, 2, 2]] * 2


# Observations


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
def test_error_and_progress_stand_behind_the_observation_below(make, task, below):
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


def test_the_progress_of_a_run_that_was_longer_is_1(make, tmp_path):
    env, shorter = make("error and progress", total_updates=3), make("error and progress", total_updates=1)
    env.reset(seed=0)
    rollout(env, actions_of(env, cycles=2))
    env.unwrapped.save(tmp_path / "run")
    observation, _ = shorter.reset(options={"checkpoint": tmp_path / "run"})
    assert observation in shorter.observation_space
    assert observation[-1] == 1


# Rewards


def slow_cross_entropy(world, part):
    """Shuffle every sample by every permutation and ask the network."""
    pieces = world.tasks[part].validation_pieces(world.validation_samples[part])
    losses = []
    for label, permutation in enumerate(world.permutations[part]):
        logits = world.network(part, pieces[:, permutation.tolist()]).double()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.full((len(pieces),), label)).item())
    return mean(losses)


@every_task
def test_the_cross_entropys_reward_is_equation_7_on_it(make, task):
    env = make("cross-entropy", task)
    env.reset(seed=0)
    world = env.unwrapped
    history = {part: [(0, slow_cross_entropy(world, part))] for part in PARTS[task]}
    rewards = []
    for action in actions_of(env, cycles=4):
        _, reward, *_, info = env.step(action)
        gains = dict.fromkeys(PARTS[task], 0.0)
        if info["validated"]:
            for part, past in history.items():
                when, value = info["iteration"], slow_cross_entropy(world, part)
                assert info["task_cross_entropies"][part] == pytest.approx(value, rel=1e-5)
                baseline = past[-1][1]
                if len(past) > 1:
                    (u, first), (v, second) = past[-2:]
                    baseline += (second - first) / (v - u) * (when - v)
                past.append((when, value))
                if info["phase"] == "update":
                    gains[part] = baseline - value
            if info["phase"] == "update":
                rewards.append(reward)
        assert info["task_rewards"] == pytest.approx(gains, rel=1e-3, abs=1e-5)
        assert reward == pytest.approx(mean(gains.values()), rel=1e-3, abs=1e-5)
    assert len(rewards) == 4
    assert max(map(abs, rewards)) > 1e-3  # far from the tolerance
    assert rewards == env.rewards
    assert env.rewards != world.rewards


@every_task
def test_the_first_rewards_of_the_cross_entropy_by_hand(make, task):
    env = make("cross-entropy", task)
    env.reset(seed=0)
    rollout(env, actions_of(env, cycles=1))
    first, second, third = (mean(record.cross_entropies.values()) for record in env.unwrapped.records)
    assert env.rewards == [pytest.approx(second + 2 * (second - first) - third)]  # after 0, 1 and 3 iterations


@every_task
@pytest.mark.parametrize("below", [lambda env: env, CrossEntropyReward])
def test_a_normalized_reward_is_a_share_of_the_rewards_so_far(make, task, below):
    env, twin = make(lambda env: NormalizedReward(below(env)), task), make(below, task)
    env.reset(seed=0)
    twin.reset(seed=0)
    expected, rewards = [], []
    for action in actions_of(env, cycles=4):
        _, reward, *_, info = env.step(action)
        _, raw, *_, raw_info = twin.step(action)
        if info["validated"] and info["phase"] == "update":
            rewards.append(raw)
            scale = math.sqrt(mean([each**2 for each in rewards]))
            expected.append(reward)
            assert reward == pytest.approx(raw / scale)
            assert info["task_rewards"] == pytest.approx({k: v / scale for k, v in raw_info["task_rewards"].items()})
        else:
            assert reward == 0
            assert set(info["task_rewards"].values()) == {0}
        assert {**info, "task_rewards": 0} == {**raw_info, "task_rewards": 0}
    assert expected == env.rewards
    assert abs(expected[0]) == pytest.approx(1)
    assert len(expected) == 4


def test_normalized_rewards_of_nothing_are_0(make):
    env = make("normalized", learning_rate=0, ema_decay=0.0, free_iterations=0)
    env.reset(seed=0)
    world = env.unwrapped
    world._validate = lambda: True  # batch statistics move what the network predicts
    rollout(env, actions_of(env, cycles=2))
    assert env.rewards == [0.0] * 3
    assert len(world.rewards) == 3


def break_network(env):
    for parameter in env.unwrapped.trainer.network.parameters():
        parameter.data.fill_(torch.nan)


@pytest.mark.parametrize(
    ("stack", "task", "updates"),
    [*((*case, 1) for case in CASES), *((stack, task, 0) for stack in ("all", "normalized") for task in TASKS)],
)
def test_a_run_that_diverges_ends_with_finite_rewards(make, stack, task, updates):
    env = make(stack, task)
    observation, _ = env.reset(seed=0)
    for action in actions_of(env, cycles=updates):
        observation, *_ = env.step(action)
    break_network(env)
    steps = []
    while not steps or not steps[-1][2]:
        steps.append(env.step(env.action_space.sample()))
    last, reward, _, truncated, info = steps[-1]
    assert not truncated
    assert info["diverged"]
    np.testing.assert_array_equal(last, observation)
    assert math.isfinite(reward)
    assert all(map(math.isfinite, info["task_rewards"].values()))
    assert reward == pytest.approx(mean(info["task_rewards"].values()))
    assert len(env.get_wrapper_attr("rewards")) == updates + 1
    assert env.get_wrapper_attr("rewards")[-1] == reward
    twin = pickle.loads(pickle.dumps(env))
    assert twin.get_wrapper_attr("rewards") == env.get_wrapper_attr("rewards")


@every_task
def test_a_run_that_diverges_counts_as_a_guess_to_the_cross_entropy(make, task):
    env = make("cross-entropy", task)
    env.reset(seed=0)
    rollout(env, actions_of(env, cycles=1))
    first, second = ({part: 0.9 - 0.1 * k - 0.2 * i for k, part in enumerate(PARTS[task])} for i in range(2))
    for record, known in zip(env.unwrapped.records[-2:], (first, second), strict=True):
        record.cross_entropies.update(known)  # after 1 and 3 iterations
    break_network(env)
    *_, (_, reward, terminated, _, info) = rollout(env, actions_of(env, cycles=1)[:4])
    assert terminated
    assert info["iteration"] == 3
    assert info["task_rewards"] == pytest.approx({part: value - math.log(24) for part, value in second.items()})
    assert reward == mean(info["task_rewards"].values()) == env.rewards[-1]


@every_task
def test_divergence_is_never_rewarded_however_bad_the_cross_entropy_was_before(make, task):
    env = make("cross-entropy", task)
    env.reset(seed=0)
    rollout(env, actions_of(env, cycles=1))
    env.unwrapped.records[-1].cross_entropies.update(dict.fromkeys(PARTS[task], 1e30))
    break_network(env)
    *_, (_, reward, terminated, _, info) = rollout(env, actions_of(env, cycles=1)[:4])
    assert terminated
    assert info["task_rewards"] == dict.fromkeys(PARTS[task], 0)
    assert reward == 0


@every_task
def test_a_huge_learning_rate_gives_finite_rewards_to_its_end(make, task):
    env = make("all", task, learning_rate=1e6, ema_decay=0.0)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        assert math.isfinite(reward)
        assert all(map(math.isfinite, info["task_rewards"].values()))
    assert reward <= 0
    assert max(env.rewards) <= math.sqrt(len(env.rewards))


# Algorithms of others


@pytest.mark.parametrize(
    ("algorithm", "stack", "task", "arguments"),
    [
        (PPO, "all", "spatial", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (PPO, "mixture", "spatiotemporal", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (SAC, "all", "temporal", {"learning_starts": 4, "batch_size": 4}),
        (SAC, "mixture", "spatiotemporal", {"learning_starts": 4, "batch_size": 4}),
        (PPO, "ratios with error of a block", "spatial", {"n_steps": 8, "batch_size": 4, "n_epochs": 1}),
        (DQN, "history of pairs", "spatiotemporal", {"learning_starts": 8, "batch_size": 4, "buffer_size": 50}),
    ],
)
def test_algorithms_of_stable_baselines_train(make, algorithm, stack, task, arguments):
    env = FlattenObservation(make(stack, task, total_updates=2))
    model = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu", seed=0, **arguments)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(16 if "Action" in str(env) and "Flat" not in str(env.env) else 40)
    assert not all(map(torch.equal, before, model.policy.parameters()))
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation, deterministic=True)
    assert env.step(action)[0] in env.observation_space
