"""The rollout: the order of its calls, where it stops, and how it continues."""

import gymnasium as gym
import numpy as np
import pytest

from agents import RandomPolicy, Transition, rollout
from permenv.wrappers import fork
from tests.agents.helpers import JOINT, SINGLE, Bandit, JointBandit, assert_equal_trees, random_policy, reinforce

PERIOD = Bandit.free_steps + Bandit.update_steps


class Log(RandomPolicy):
    """Draws at random and writes down the calls and what it learned from."""

    def __init__(self, calls: list):
        super().__init__(*SINGLE, seed=0)
        self.calls, self.learned = calls, []

    def act(self, observation):
        self.calls.append("act")
        return super().act(observation)

    def learn(self, transition):
        self.calls.append("learn")
        self.learned.append(transition)
        return {}


class Terminating(Bandit):
    """A bandit that terminates at a step."""

    def __init__(self, last_step: int):
        super().__init__()
        self.last_step = last_step

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        over = self.steps == self.last_step
        return observation, reward, over, truncated and not over, {**info, "validated": info["validated"] and not over}


@pytest.fixture
def bandit():
    """Return a bandit after a reset, and its observation."""
    env = Bandit()
    observation, _ = env.reset(seed=0)
    return env, observation


def plain_loop(env, agent, seed):
    """Return the transitions of an episode, by the loop written out."""
    observation, _ = env.reset(seed=seed)
    transitions, done = [], False
    while not done:
        action = agent.act(observation)
        next_observation, reward, terminated, truncated, info = env.step(action)
        transitions.append(Transition(observation, action, reward, next_observation, terminated, truncated, info))
        agent.learn(transitions[-1])
        observation, done = next_observation, terminated or truncated
    return transitions


def fields(transition):
    return vars(transition)


@pytest.mark.parametrize(("env", "spaces"), [(Bandit(), SINGLE), (JointBandit(), JOINT)], ids=["single", "joint"])
def test_an_episode_equals_the_loop_written_out(env, spaces):
    ours, theirs = reinforce(spaces=spaces), reinforce(spaces=spaces)
    transitions = []
    last = rollout(env, ours, seed=3, on_step=transitions.append)
    assert last is transitions[-1]
    expected = plain_loop(env, theirs, seed=3)
    assert_equal_trees([*map(fields, transitions)], [*map(fields, expected)])
    assert_equal_trees(ours.state_dict(), theirs.state_dict())
    assert len(transitions) == PERIOD * Bandit.num_updates
    assert last.done
    assert last.truncated


def test_the_agent_learns_before_the_callbacks_and_before_its_next_action():
    calls = []
    env = Bandit()
    step = env.step
    env.step = lambda action: calls.append("step") or step(action)
    rollout(
        env,
        Log(calls),
        seed=0,
        updates=2,
        on_step=lambda _: calls.append("on_step"),
        on_update=lambda _: calls.append("on_update"),
    )
    a_step = ["act", "step", "learn", "on_step"]
    assert calls == (a_step * PERIOD + ["on_update"]) * 2


def test_on_update_is_called_with_the_last_transition_of_every_update():
    transitions, ends = [], []
    rollout(Bandit(), random_policy(), seed=0, on_step=transitions.append, on_update=ends.append)
    assert len(ends) == Bandit.num_updates
    assert all(end is transitions[PERIOD * (update + 1) - 1] for update, end in enumerate(ends))


@pytest.mark.parametrize("updates", [1, 2, 6])
def test_it_stops_after_that_many_updates(updates):
    env = Bandit()
    last = rollout(env, random_policy(), seed=0, updates=updates)
    assert env.steps == PERIOD * updates
    assert last.done == (updates == Bandit.num_updates)
    assert last.info["validated"]


def test_it_stops_at_the_end_of_the_episode_before_that_many_updates():
    env = Bandit()
    assert rollout(env, random_policy(), seed=0, updates=100).truncated
    assert env.steps == PERIOD * Bandit.num_updates


def test_a_termination_ends_it_without_a_completed_update():
    env, log, ends = Terminating(PERIOD + 5), Log([]), []
    last = rollout(env, log, seed=0, on_update=ends.append)
    assert last.terminated
    assert last.done
    assert log.learned[-1] is last
    assert env.steps == PERIOD + 5
    assert len(ends) == 1


def test_it_continues_from_an_observation_in_parts_like_in_one_go():
    whole, parts = [], []
    rollout(Bandit(), reinforce(), seed=1, on_step=whole.append)
    env, agent = Bandit(), reinforce()
    last = rollout(env, agent, seed=1, updates=2, on_step=parts.append)
    while not last.done:
        last = rollout(env, agent, observation=last.next_observation, updates=3, on_step=parts.append)
    assert_equal_trees([*map(fields, parts)], [*map(fields, whole)])


def test_an_update_under_way_counts_as_the_first(bandit):
    env, observation = bandit
    for _ in range(Bandit.free_steps + 2):
        observation, *_ = env.step(0)
    rollout(env, random_policy(), observation=observation, updates=1)
    assert env.steps == PERIOD


def test_without_learning_the_agent_only_acts():
    log = Log([])
    rollout(Bandit(), log, seed=0, updates=1, learn=False)
    assert log.calls == ["act"] * PERIOD
    agent = reinforce()
    before = agent.state_dict()
    rollout(Bandit(), agent, seed=0, learn=False)
    after = agent.state_dict()
    assert after.pop("generator") != before.pop("generator")
    assert_equal_trees(after, before)


def test_a_fork_of_a_run_is_continued_and_a_checkpoint_restored(make_env, tmp_path):
    env = make_env(total_updates=3)
    last = rollout(env, RandomPolicy(env.observation_space, env.action_space, seed=0), seed=0, updates=1)
    env.unwrapped.save(tmp_path / "run")
    restored = make_env(total_updates=3)
    ends = []
    for start, options in (
        (fork(env), {"observation": last.next_observation}),
        (restored, {"options": {"checkpoint": tmp_path / "run"}}),
        (env, {"observation": last.next_observation}),
    ):
        agent = RandomPolicy(env.observation_space, env.action_space, seed=5)
        errors = []
        end = rollout(
            start, agent, on_update=lambda transition, own=errors: own.append(transition.info["error"]), **options
        )
        assert end.truncated
        assert len(errors) == 2
        ends.append((end.info, errors))
    assert ends[0] == ends[1] == ends[2]
    assert env.unwrapped.rewards == restored.unwrapped.rewards


def test_a_finished_episode_is_not_continued(make_env):
    env = make_env(total_updates=1)
    agent = RandomPolicy(env.observation_space, env.action_space, seed=0)
    last = rollout(env, agent, seed=0)
    with pytest.raises(gym.error.ResetNeeded):
        rollout(env, agent, observation=last.next_observation)


@pytest.mark.parametrize("updates", [0, -1])
def test_a_number_of_updates_below_1_is_refused(updates):
    with pytest.raises(ValueError, match=f"updates is {updates}, it must be at least 1"):
        rollout(Bandit(), random_policy(), updates=updates)


@pytest.mark.parametrize("reset", [{"seed": 0}, {"options": {"checkpoint": "x"}}])
def test_an_observation_and_a_reset_are_refused_together(bandit, reset):
    env, observation = bandit
    with pytest.raises(ValueError, match=r"observation is given.*Leave out either"):
        rollout(env, random_policy(), observation=observation, **reset)
    assert env.steps == 0
    assert np.array_equal(env.observation, observation)
