"""Agents by their names."""

import numpy as np
import pytest

from agents import (
    AGENTS,
    Agent,
    GaussianReinforce,
    InversePolicy,
    Learner,
    Pgpe,
    RandomPolicy,
    Reinforce,
    agent_class,
    make,
    options_of,
)
from tests.agents.helpers import SINGLE, Bandit, JointBandit, assert_equal_trees, run


@pytest.mark.parametrize("bandit", [Bandit, JointBandit])
def test_every_agent_is_made_by_its_name_and_acts(bandit):
    classes = set()
    for name in AGENTS:
        env = bandit()
        env.reset(seed=0)
        agent = make(name, env, seed=0)
        classes.add(type(agent))
        assert type(agent) is agent_class(name)
        actions = run(agent, 0, 60, env)
        assert all(env.action_space.contains(np.array(action)) for action in actions)
        assert run(make(name, env, seed=0), 0, 60, env) == actions
    assert len(classes) == len(AGENTS) == 11


def test_make_derives_separate_seeds():
    env = Bandit()
    outer, inner = (int(word) for word in np.random.SeedSequence(5).generate_state(2))
    for name, expected in {
        "random": RandomPolicy(*SINGLE, seed=outer),
        "reinforce": Reinforce(*SINGLE, seed=inner),
        "inverse": InversePolicy(Reinforce(*SINGLE, seed=inner), seed=outer, policy_learns=True),
    }.items():
        agent = make(name, env, seed=5)
        assert_equal_trees(agent.state_dict(), expected.state_dict())
        assert run(agent, seed=5, steps=60) == run(expected, seed=5, steps=60)


def test_make_passes_options_on(make_env):
    env = make_env(total_updates=7)
    assert make("hardest-first", env, seed=0).updates == 7
    assert make("easiest-first", env, seed=0, updates=3, start=0.2).updates == 3
    assert make("inverse", env, seed=0, hidden=5).policy.hidden == 5
    assert make("fixed", env, seed=0, group=2).group == 2
    assert make("lookahead", env, seed=0, share=0.3).env is env


def test_the_options_of_an_agent_are_those_of_its_class():
    assert options_of("exp3") == {"gamma": float, "eta": float | None}
    assert options_of("easiest-first") == options_of("hardest-first") == {"start": float, "updates": int}
    assert options_of("inverse") == options_of("reinforce")
    assert {"learning_rate", "hidden", "credit"} < options_of("reinforce").keys()
    assert "seed" not in options_of("reinforce")
    assert options_of("random") == {}
    with pytest.raises(ValueError, match="There is no agent 'exp4'"):
        options_of("exp4")


def test_make_with_the_seed_of_the_environment_draws_other_numbers():
    env = Bandit()
    env.reset(seed=3)
    numbers = env.np_random.random(20)
    for name in AGENTS:
        assert not np.isin(make(name, env, seed=3)._generator.random(20), numbers).any()


def test_an_unknown_name_is_refused_with_similar_ones():
    with pytest.raises(ValueError, match="no agent 'uniforn': did you mean 'uniform'"):
        make("uniforn", Bandit(), seed=0)
    with pytest.raises(ValueError, match="no agent 'zzz': choose one of random, uniform, fixed"):
        make("zzz", Bandit(), seed=0)


class Alternating(Agent):
    """An agent of a user: the first groups in turn."""

    def __init__(self, observation_space, action_space, *, seed, first=0):
        super().__init__(observation_space, action_space, seed=seed)
        self.next = first

    def act(self, observation):
        self.next += 1
        return np.int64(self.next % 2)


def test_an_agent_of_ones_own_is_made_by_its_module_and_class():
    env = Bandit()
    observation, _ = env.reset(seed=0)
    agent = make(f"{__name__}:Alternating", env, seed=0, first=1)
    assert [agent.act(observation) for _ in range(3)] == [0, 1, 0]
    assert options_of(f"{__name__}:Alternating").keys() == {"first"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:Mine", "No module named 'no'.*PYTHONPATH"),
        (f"{__name__}:Nothing", "has no attribute 'Nothing'"),
        (f"{__name__}:np", "is no subclass of agents.Agent"),
        (":Mine", "Empty module name"),
    ],
)
def test_a_name_that_leads_to_no_agent_is_refused(name, message):
    with pytest.raises(ValueError, match=f"There is no agent.*{message}"):
        make(name, Bandit(), seed=0)


class Counting(Agent):
    """An agent of a user that learns, with the state of its base class."""

    def act(self, observation):
        return np.int64(self.steps % 2)

    def learn(self, transition):
        self.steps += 1
        return {}


class Saved(Counting):
    """The same with a state of its own."""

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.steps = state["steps"]


class HalfSaved(Counting):
    """The same with a state that is not loaded."""

    state_dict = Saved.state_dict


class Preferring(Learner):
    """A learner of a user with the state of its base class."""

    def probabilities(self, observation):
        return self.preferences

    def _update(self, observation, counts, gains, behaviour):
        self.preferences = counts / counts.sum()
        return {}


@pytest.mark.parametrize(("kind", "method"), [(Counting, "learn"), (HalfSaved, "learn"), (Preferring, "_update")])
def test_an_agent_that_would_lose_what_it_learned_is_refused(kind, method):
    message = f"has a {method} of its own, but not its own state_dict and load_state_dict"
    with pytest.raises(ValueError, match=message):
        kind.require_state()


def test_agents_that_save_what_they_learn_or_do_not_learn_are_not_refused():
    for kind in (Saved, Alternating, InversePolicy, GaussianReinforce, Pgpe, *AGENTS.values()):
        kind.require_state()
