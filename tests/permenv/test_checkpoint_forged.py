"""Forged checkpoints of runs: each is refused and leaves the environment as it was, or is loaded to the letter."""

import copy
import functools

import gymnasium as gym
import numpy as np
import pytest
import torch

from permenv import CheckpointError, checkpoint
from tests.forging import digest, forge
from tests.helpers import PARTS, SMALL, random_actions, rollout, small_backbone

STEPS = (0, 7, 14, 31)
"""After so many actions states are forged: at the start, in a mini-batch, and after validations."""


@functools.cache
def one_environment(task):
    return gym.make("PermShuffle-v0", task=task, **SMALL)


@functools.cache
def good_state(task, steps):
    env = one_environment(task)
    env.reset(seed=steps)
    rollout(env, random_actions(env, steps))
    return env.unwrapped.fork().state_dict()  # of a fork, because its tensors are the network's own


def check_forged(task, seeds, path):
    """Forge a state with each seed; return how many were refused."""
    env = one_environment(task)
    env.reset(seed=99)
    rollout(env, random_actions(env, 5))
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        forged, change = forge(good_state(task, STEPS[seed % len(STEPS)]), rng)
        checkpoint.write(path, forged)
        before = digest(env.unwrapped.state_dict())
        refusal = None
        try:
            env.reset(options={"checkpoint": path})
        except CheckpointError as error:
            refusal = str(error)
        if refusal is not None:
            assert refusal.startswith(str(path)) and "\n" not in refusal, change  # noqa: PT018
            assert digest(env.unwrapped.state_dict()) == before, f"seed {seed}: {change} has moved something"
            refused += 1
            continue
        assert digest(env.unwrapped.state_dict()) == digest(forged), f"seed {seed}: {change} is not as in the file"
        for action in random_actions(env, 13, seed):  # a cycle: it goes on
            if any(env.step(action)[2:4]):
                break
    return refused


def forged_at(state, path, value):
    """Replace what stands at a path such as "run/seed"; a function changes it, DELETE removes it."""
    *keys, last = (int(key) if key.lstrip("-").isdigit() else key for key in path.split("/"))
    for key in keys:
        state = state[key]
    if value is DELETE:
        del state[last]
    else:
        state[last] = value(state[last]) if callable(value) else value


DELETE = object()
NAN = float("nan")


def with_entry(value):
    """Return what replaces the first entry of an array or tensor."""

    def change(array):
        array = copy.deepcopy(array)
        array[(0,) * array.ndim] = value
        return array

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run/tasks/spatial/permutations", lambda psi: psi[::-1].copy(), "other permutations of task 'spatial'"),
        ("run/tasks/spatial/permutations", lambda psi: psi[:-1].copy(), "permutations is an array .* with shape"),
        ("episode/iterations_in_cycle", 1000, "episode has a surplus key 'iterations_in_cycle'"),
        ("run/trainer/iteration", 1000, "run/trainer must have averaged the weights once an iteration"),
        ("run/trainer/iteration", NAN, "run/trainer/iteration is nan, it must be a number of type int"),
        ("run/trainer/iteration", -1, "run/trainer/iteration is -1"),
        ("run/trainer/iteration", 4.0, "run/trainer/iteration is 4.0, it must be a number of type int"),
        ("run/trainer/momentum", {}, "run/trainer must have a momentum after its first iteration"),
        ("run/trainer/momentum/trunk.0.weight", DELETE, "run/trainer/momentum lacks 'trunk.0.weight'"),
        ("run/trainer/network/trunk.0.weight", DELETE, "another network .* lacks 'trunk.0.weight'"),
        ("run/trainer/network/trunk.0.weight", lambda weight: weight.double(), "another network .* of torch.float64"),
        ("run/trainer/network/trunk.0.weight", lambda weight: weight[:1].clone(), "another network .* with shape"),
        ("run/trainer/averaged", None, "run/trainer/averaged is None, it must be a dict"),
        ("run/trainer/averaged/n_averaged", lambda count: count - 1, "have averaged the weights once an iteration"),
        ("run/tasks/spatial/ratios", with_entry(NAN), "ratios has entries from nan to nan"),
        ("run/tasks/spatial/ratios", with_entry(2.5), "ratios has entries from .* to 2.5, they must lie in"),
        ("run/tasks/spatial/correct", lambda correct: ~correct, "must have ratios of at least 1 where the"),
        ("run/tasks/spatial/held_out", lambda held_out: held_out.astype(float), "held_out is an array of float64"),
        ("run/tasks/spatial/held_out", with_entry(60), "held_out must be samples of the data"),
        ("run/tasks/spatial/held_out", with_entry(-1), "held_out must be samples of the data"),
        ("run/tasks/spatial/held_out", lambda held_out: held_out * 0, "held_out must be samples of the data"),
        ("run/tasks/temporal/held_out", lambda held_out: held_out[:, ::-1].copy(), "temporal/held_out must be samples"),
        ("run/tasks/temporal/held_out", lambda held_out: held_out + 5, "temporal/held_out must be samples"),
        ("run/tasks/spatial/groups", with_entry(4), "groups has entries from 0 to 4, they must lie in"),
        ("run/tasks/temporal", DELETE, "run/tasks lacks 'temporal'"),
        ("run/records", [], "run/records must begin with a reset"),
        ("run/records/0/iteration", 5, "run/records must begin with a reset"),
        ("run/records/-1/iteration", 10**6, "run must have its last record no later than its last iteration"),
        ("run/records/-1/errors/spatial", 0.5, "run must have the errors and the observation of its last validation"),
        ("run/records/-1/phase", "cycle", "phase is 'cycle', it must be 'reset' or 'free' or 'update'"),
        ("run/losses/spatial", NAN, "run must have finite losses of at least 0, or have diverged"),
        ("run/diverged", 0, "run/diverged is 0, it must be True or False"),
        ("run/diverged", True, "episode must"),
        ("run/seed", -1, "run/seed is -1, it must be at least 0"),
        ("run/identity/grid", 3.0, "it has grid=3.0, this run grid=3"),
        ("run/identity/split", DELETE, "all differences: split"),
        ("run/identity/new", 1, "all differences: 'new'"),
        ("episode/rewards", [], "episode must hold 2 rewards, one of each update"),
        ("episode/rewards/0", NAN, "episode/rewards/0 is nan, it must be finite"),
        ("episode/num_choices", 4, "episode/num_choices is 4, it must lie in"),
        ("episode/choices", with_entry(4), "episode/choices has entries"),
        ("episode/validated", lambda validated: not validated, "episode must"),
        ("episode/phase", lambda phase: {"free": "update", "update": "free"}[phase], "episode must be in the phase"),
        ("random/generator/bit_generator", "seed", "random/generator/bit_generator is 'seed'"),
        ("random", DELETE, "is of no known kind"),
    ],
)
def test_a_forged_value_is_refused_by_its_place(path, value, message, tmp_path):
    env = one_environment("spatiotemporal")
    env.reset(seed=3)
    forged = copy.deepcopy(good_state("spatiotemporal", 26))
    forged_at(forged, path, value)
    checkpoint.write(tmp_path / "forged", forged)
    before = digest(env.unwrapped.state_dict())
    with pytest.raises(CheckpointError, match=f"forged.*{message}"):
        env.reset(options={"checkpoint": tmp_path / "forged"})
    assert digest(env.unwrapped.state_dict()) == before


def test_the_trunk_of_a_forged_run_is_refused_by_name(tmp_path):
    env = one_environment("temporal")
    for path, value, message in [
        ("run/identity", DELETE, "run lacks 'identity'"),
        ("run/identity/backbone", DELETE, "its trunk is backbone=None, this run's backbone='quarter-caffenet'"),
        ("run/trainer", 1, "run/trainer is 1, it must be a dict"),
        ("run/trainer/averaged", [], "run/trainer/averaged is \\[\\], it must be a dict"),
        ("run/trainer/averaged/module.trunk.0.weight", torch.zeros(1), "another trunk under the same name: .*shape"),
        ("run/trainer/averaged/module.trunk.0.weight", with_entry(NAN), "its trunk is not finite"),
    ]:
        forged = copy.deepcopy(good_state("spatial", 26))
        forged_at(forged, path, value)
        checkpoint.write(tmp_path / "forged", forged)
        with pytest.raises(CheckpointError, match=f"forged: .*{message}"):
            env.reset(options={"trunk": tmp_path / "forged"})


def test_a_user_s_parameter_without_a_gradient_has_no_momentum(make_env, tmp_path):
    env, other = (make_env(backbone=backbone_with_an_idle_layer) for _ in range(2))
    env.reset(seed=0)
    rollout(env, random_actions(env, 9))
    env.unwrapped.save(tmp_path / "run")
    other.reset(options={"checkpoint": tmp_path / "run"})
    assert digest(other.unwrapped.state_dict()) == digest(env.unwrapped.state_dict())


class Idle(torch.nn.Linear):
    """Parameters that nothing depends on."""

    def forward(self, pieces):
        return pieces


def backbone_with_an_idle_layer() -> torch.nn.Module:
    return torch.nn.Sequential(Idle(2, 2), small_backbone())


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.ci) for task in PARTS])
def test_a_forged_checkpoint_is_refused_or_loaded_to_the_letter(task, tmp_path):
    assert check_forged(task, range(100), tmp_path / "forged") >= 50


@pytest.mark.long
@pytest.mark.parametrize("task", PARTS)
def test_many_forged_checkpoints_are_refused_or_loaded_to_the_letter(task, tmp_path):
    assert check_forged(task, range(1000, 3000), tmp_path / "forged") >= 1000
