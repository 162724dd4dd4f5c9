"""Forged states of agents: each is refused and leaves the agent as it was, or is loaded to the letter."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from agents import GaussianReinforce, Pgpe, Transition, collect
from permenv import CheckpointError, checkpoint
from tests.agents.helpers import BUILDERS, CONTEXTS, JOINT, SINGLE, Target, run
from tests.forging import digest, forge

BOX = gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Box(-1, 1, (2,))


def gaussian(seed=0):
    return GaussianReinforce(*BOX, seed=seed, episodes_per_update=2)


def pgpe(seed=0):
    return Pgpe(*BOX, seed=seed)


def play(agent, steps):
    """Let any of the agents act and learn."""
    if isinstance(agent, Pgpe):
        env = Target(CONTEXTS, steps=2)
        env.observe = lambda: env.np_random.uniform(-1, 1, (2, 3)).astype(np.float32)
        env.targets, env.context = {0: 0.4}, 0
        for update in range(steps // 4):
            agent.update([collect(env, agent, 4 * update + number) for number in range(4)])
        return
    if not isinstance(agent, GaussianReinforce):
        run(agent, seed=0, steps=steps)
        return
    rng = np.random.default_rng(0)
    for step in range(steps):
        observation = rng.uniform(-1, 1, (2, 3))
        ends = step % 4 == 3
        agent.learn(Transition(observation, agent.act(observation), rng.normal(), observation, ends, False, {}))


AGENTS = {
    **{f"{name}-single": partial(build, spaces=SINGLE) for name, build in BUILDERS.items()},
    **{f"{name}-joint": partial(build, spaces=JOINT) for name, build in BUILDERS.items()},
    "gaussian": gaussian,
    "pgpe": pgpe,
}
STEPS = (0, 9, 38)
"""After so many steps states are forged: before the first update, in it, and after several."""


def check_forged(build, seeds, path):
    """Forge a state with each seed; return how many were refused."""
    agent, refused, good = build(seed=2), 0, {}
    play(agent, 14)
    for steps in STEPS:
        other = build(seed=1)
        play(other, steps)
        good[steps] = other.state_dict()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        forged, change = forge({"agent": good[STEPS[seed % len(STEPS)]]}, rng)
        checkpoint.write(path, forged)
        before, refusal = digest(agent.state_dict()), None
        try:
            agent.load(path)
        except CheckpointError as error:
            refusal = str(error)
        if refusal is not None:
            assert refusal.startswith(str(path)) and "\n" not in refusal, change  # noqa: PT018
            assert digest(agent.state_dict()) == before, f"seed {seed}: {change} has moved something"
            refused += 1
            continue
        assert digest(agent.state_dict()) == digest(forged["agent"]), f"seed {seed}: {change} is not as in the file"
        try:
            play(agent, 14)
        except ValueError as error:  # which groups are empty is known to the environment only
            assert str(error).startswith("Groups were chosen"), f"seed {seed}: {change}"  # noqa: PT017
            agent = build(seed=2)
    return refused


@pytest.mark.parametrize("build", AGENTS.values(), ids=AGENTS)
def test_a_forged_state_is_refused_or_loaded_to_the_letter(build, tmp_path):
    assert check_forged(build, range(20), tmp_path / "forged") >= 12


@pytest.mark.long
@pytest.mark.parametrize("build", AGENTS.values(), ids=AGENTS)
def test_many_forged_states_are_refused_or_loaded_to_the_letter(build, tmp_path):
    assert check_forged(build, range(1000, 1500), tmp_path / "forged") >= 300
