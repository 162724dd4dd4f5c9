"""The wrappers that change the rewards."""

import copy
import dataclasses
import itertools
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit, TransformReward

from permenv import ConfigurationError, pretraining
from permenv.wrappers import (
    ActionBlock,
    CrossEntropyReward,
    ErrorReduction,
    FiniteHorizon,
    MixtureAction,
    NormalizedReward,
    fork,
)
from tests.helpers import assert_same, rollout
from tests.permenv.wrappers.helpers import PARTS, actions_of, break_network, every_stack, every_task, is_rewarded, mean

# ErrorReduction

REDUCTIONS = {
    "alone": ErrorReduction,
    "over a mixture": lambda env: ErrorReduction(MixtureAction(env)),
    "under a mixture": lambda env: MixtureAction(ErrorReduction(env)),
    "over a block": lambda env: ErrorReduction(ActionBlock(env)),
    "under a block": lambda env: ActionBlock(ErrorReduction(env)),
}
every_reduction = pytest.mark.parametrize("wrap", REDUCTIONS.values(), ids=REDUCTIONS)


@pytest.fixture
def varied_errors(monkeypatch):
    """Replace E, which hardly changes in runs this short, by a function of the weights and the task."""
    validate = pretraining.validate

    def validate_with_other_errors(network, name, *rest):
        total = sum(parameter.double().sum().item() for parameter in network.parameters())
        found = validate(network, name, *rest)
        wrong = int(1000 * (total + len(name)) % 1 * found.correct.size)
        correct = np.arange(found.correct.size).reshape(found.correct.shape) >= wrong
        ratios = np.where(correct, found.ratios.clip(min=1), found.ratios.clip(max=1))
        return dataclasses.replace(found, ratios=ratios, correct=correct, error=1 - float(correct.mean()))

    monkeypatch.setattr(pretraining, "validate", validate_with_other_errors)


def play_to_the_end(env, seed=0):
    """Return the remaining steps of an episode under random actions."""
    space, steps = copy.deepcopy(env.action_space), []
    space.seed(seed)
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(space.sample()))
    return steps


@every_task
@every_reduction
@pytest.mark.parametrize("free", [0, 1, 3])
def test_the_return_is_the_reduction_of_the_error(varied_errors, make, task, wrap, free):
    env = make(wrap, task, free_iterations=free, total_updates=3)
    _, start = env.reset(seed=0)
    steps = play_to_the_end(env)
    end = steps[-1][4]
    assert sum(step[1] for step in steps) == pytest.approx(start["error"] - end["error"], abs=1e-12)
    for part in PARTS[task]:
        reduction = start["task_errors"][part] - end["task_errors"][part]
        assert sum(step[4]["task_rewards"][part] for step in steps) == pytest.approx(reduction, abs=1e-12)
    assert [step[1] for step in steps if step[4]["validated"]] == env.get_wrapper_attr("rewards")
    assert all(step[1] == 0 for step in steps if not step[4]["validated"])
    assert len(env.get_wrapper_attr("rewards")) == (6 if free else 3)
    assert np.count_nonzero(env.get_wrapper_attr("rewards")) >= 2


@every_task
def test_every_validation_is_rewarded_with_the_reduction_since_the_one_before(varied_errors, make, task):
    env = make("error reduction", task)
    env.reset(seed=0)
    infos = [step[4] for step in rollout(env, actions_of(env, cycles=2)) if step[4]["validated"]]
    for before, after, info in itertools.zip_longest(env.unwrapped.records[:-1], env.unwrapped.records[1:], infos):
        expected = {part: before.errors[part] - after.errors[part] for part in PARTS[task]}
        assert info["task_rewards"] == expected
    assert [info["phase"] for info in infos] == ["free", "update"] * 2


@every_task
@every_reduction
def test_the_return_is_kept_by_fork_pickle_save_and_restore(varied_errors, make, tmp_path, task, wrap):
    env, restored = (make(wrap, task, total_updates=3) for _ in range(2))
    _, start = env.reset(seed=0)
    steps = rollout(env, actions_of(env, cycles=1.5))
    env.unwrapped.save(tmp_path / "run")
    restored.reset(options={"checkpoint": tmp_path / "run"})
    twins = [fork(env), pickle.loads(pickle.dumps(env)), restored]
    rest = play_to_the_end(env)
    for twin in twins:
        assert_same(play_to_the_end(twin), rest)
        assert twin.get_wrapper_attr("rewards") == env.get_wrapper_attr("rewards")
    reduction = start["error"] - rest[-1][4]["error"]
    assert sum(step[1] for step in steps + rest) == pytest.approx(reduction, abs=1e-12)
    assert sum(env.get_wrapper_attr("rewards")) == pytest.approx(reduction, abs=1e-12)


@every_task
@pytest.mark.parametrize("cycles", [0, 1, 1.5])
def test_a_run_that_diverges_counts_as_error_1(varied_errors, make, task, cycles):
    env = make("error reduction", task)
    _, start = env.reset(seed=0)
    steps = rollout(env, actions_of(env, cycles=cycles))
    break_network(env)
    steps += play_to_the_end(env)
    assert steps[-1][4]["diverged"]
    assert sum(step[1] for step in steps) == pytest.approx(start["error"] - 1, abs=1e-12)
    assert sum(env.rewards) == pytest.approx(start["error"] - 1, abs=1e-12)


@every_task
def test_the_sum_of_the_environments_own_rewards_is_only_the_last_reduction(varied_errors, make, task):
    env = make("error reduction", task, free_iterations=0, total_updates=4)
    env.reset(seed=0)
    play_to_the_end(env)
    assert sum(env.unwrapped.rewards) == pytest.approx(env.rewards[-1], abs=1e-12)
    assert abs(sum(env.rewards) - env.rewards[-1]) > 0.01


# CrossEntropyReward


def slow_cross_entropy(run, part):
    """Shuffle every sample by every permutation and apply the network."""
    pieces = run.tasks[part].pieces(run.held_out[part])
    losses = []
    for label, permutation in enumerate(run.permutations[part]):
        logits = run.network(part, pieces[:, permutation.tolist()]).double()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.full((len(pieces),), label)).item())
    return mean(losses)


@every_task
def test_the_reward_of_the_cross_entropy_is_equation_7(make, task):
    env = make("cross-entropy", task)
    env.reset(seed=0)
    run = env.unwrapped.run
    history = {part: [(0, slow_cross_entropy(run, part))] for part in PARTS[task]}
    rewards = []
    for action in actions_of(env, cycles=4):
        _, reward, *_, info = env.step(action)
        gains = dict.fromkeys(PARTS[task], 0.0)
        if info["validated"]:
            for part, past in history.items():
                when, value = info["iteration"], slow_cross_entropy(run, part)
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
    assert env.rewards != env.unwrapped.rewards


@every_task
def test_the_first_reward_of_the_cross_entropy_by_hand(make, task):
    env = make("cross-entropy", task)
    env.reset(seed=0)
    rollout(env, actions_of(env, cycles=1))
    first, second, third = (mean(record.cross_entropies.values()) for record in env.unwrapped.records)
    assert env.rewards == [pytest.approx(second + 2 * (second - first) - third)]  # after 0, 1 and 3 iterations


# NormalizedReward


@every_task
@pytest.mark.parametrize("below", [lambda env: env, CrossEntropyReward, ErrorReduction])
def test_a_normalized_reward_is_divided_by_the_root_mean_square_of_the_rewards_so_far(make, task, below):
    env, twin = make(lambda env: NormalizedReward(below(env)), task), make(below, task)
    env.reset(seed=1)
    twin.reset(seed=1)
    expected, rewards = [], []
    for action in actions_of(env, cycles=4):
        _, reward, *_, info = env.step(action)
        _, raw, *_, raw_info = twin.step(action)
        if is_rewarded(env, info):
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
    assert len(expected) == (8 if below is ErrorReduction else 4)


def test_normalized_rewards_are_0_while_all_rewards_are_0(make, monkeypatch):
    env = make("normalized", free_iterations=0)
    env.reset(seed=0)
    unchanged = dict(env.unwrapped.validation)
    monkeypatch.setattr(pretraining, "validate", lambda network, name, *_: unchanged[name])
    rollout(env, actions_of(env, cycles=2))
    assert env.rewards == [0.0] * 3
    assert env.unwrapped.rewards == [0.0] * 3


class Doubled(gym.Wrapper):
    """A reward of a user, from a wrapper that also keeps a list named `rewards`, as SB3's Monitor does."""

    def __init__(self, env, factor=2.0):
        super().__init__(env)
        self.factor, self.rewards = factor, []

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        info["task_rewards"] = {task: self.factor * gain for task, gain in info["task_rewards"].items()}
        return observation, self.factor * reward, terminated, truncated, info


def test_wrappers_in_between_do_not_change_what_a_reward_is_normalised_by(make):
    env = make(lambda env: NormalizedReward(Doubled(CrossEntropyReward(env), factor=1.0)))
    twin = make("normalized cross-entropy")
    for each in (env, twin):
        each.reset(seed=1)
    actions = actions_of(env, cycles=3)
    assert [step[1] for step in rollout(env, actions)] == [step[1] for step in rollout(twin, actions)]


def test_a_reward_that_another_wrapper_has_changed_is_not_normalised_by_that_of_the_run(make):
    env = make(lambda env: NormalizedReward(Doubled(CrossEntropyReward(env))))
    env.reset(seed=1)
    with pytest.raises(ConfigurationError, match="put that wrapper over NormalizedReward"):
        rollout(env, actions_of(env, cycles=2))
    clipped = make(
        lambda env: NormalizedReward(TransformReward(CrossEntropyReward(env), lambda reward: max(reward, 0)))
    )
    clipped.reset(seed=1)
    break_network(clipped)  # a divergence is never rewarded
    with pytest.raises(ConfigurationError, match="the reward below is 0"):
        rollout(clipped, actions_of(clipped, cycles=2))
    over = make(lambda env: Doubled(NormalizedReward(CrossEntropyReward(env))))
    over.reset(seed=1)
    assert any(step[1] for step in rollout(over, actions_of(over, cycles=2)))


def test_rewards_are_normalised_once(make):
    with pytest.raises(ConfigurationError, match="leave one of the two out"):
        make(lambda env: NormalizedReward(MixtureAction(NormalizedReward(env))))


# FiniteHorizon


def test_a_run_that_is_cut_by_another_wrapper_is_still_truncated(make):
    env = make(lambda env: FiniteHorizon(TimeLimit(env, 3)))
    env.reset(seed=0)
    steps = rollout(env, actions_of(env, cycles=1)[:3])
    assert steps[-1][2:4] == (False, True)


@every_task
def test_the_last_update_ends_a_finite_horizon(make, task):
    env, twin = make("finite horizon", task, total_updates=2), make(lambda env: env, task, total_updates=2)
    env.reset(seed=0)
    twin.reset(seed=0)
    actions = actions_of(twin, cycles=2)
    ours, theirs = rollout(env, actions), rollout(twin, actions)
    assert [step[2:4] for step in ours] == [(False, False)] * (len(actions) - 1) + [(True, False)]
    assert theirs[-1][2:4] == (False, True)
    assert_same([(*step[:2], step[4]) for step in ours], [(*step[:2], step[4]) for step in theirs])


# Divergence


@every_stack
@pytest.mark.parametrize("updates", [0, 1])
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
    assert len(env.get_wrapper_attr("rewards")) == (2 if "ErrorReduction" in str(env) else 1) * updates + 1
    assert env.get_wrapper_attr("rewards")[-1] == reward
    twin = pickle.loads(pickle.dumps(env))
    assert twin.get_wrapper_attr("rewards") == env.get_wrapper_attr("rewards")


@every_task
def test_a_run_that_diverges_counts_as_the_cross_entropy_of_a_guess(make, task):
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
def test_divergence_is_never_rewarded_whatever_the_cross_entropy_was_before(make, task):
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
def test_rewards_are_finite_under_a_huge_learning_rate(make, task):
    env = make("all", task, learning_rate=1e6, ema_decay=0.0)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        assert math.isfinite(reward)
        assert all(map(math.isfinite, info["task_rewards"].values()))
    assert reward <= 0
    assert max(env.rewards) <= math.sqrt(len(env.rewards))


@pytest.mark.parametrize("kind", [ErrorReduction, CrossEntropyReward])
def test_a_step_computes_its_own_reward_alone(make_env, kind, monkeypatch):
    computed, gain = [], kind._gain

    def count(wrapper, earlier, reached):
        computed.append(len(earlier))
        return gain(wrapper, earlier, reached)

    monkeypatch.setattr(kind, "_gain", count)
    env = kind(MixtureAction(make_env(total_updates=4, free_iterations=0, learning_rate=0.2)))
    env.reset(seed=0)
    env.action_space.seed(0)
    rewards = [env.step(env.action_space.sample())[1] for _ in range(4)]
    assert computed == [1, 2, 2, 2]
    assert env.rewards == rewards
    assert any(rewards)
