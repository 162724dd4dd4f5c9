"""What the figures share."""

import numpy as np
import pytest

import agents
from experiments.paper.shared import at_checkpoints, follow, moments_of, shares_of
from permenv.wrappers.base import base_env_of
from tests.helpers import small_run


def test_choices_of_groups_are_spread_over_their_permutations():
    groups = np.array([0, 1, 1, 0, 1, 2])
    shares = shares_of(groups, np.array([4, 3, 1, 2]))  # group 3 is empty and stands for group 2
    assert shares == pytest.approx(np.array([2, 1, 1, 2, 1, 3]) / 10)


@pytest.mark.parametrize("free", [0, 1])
def test_choices_belong_to_the_validation_before_their_update(make_small_env, free):
    env = make_small_env(free_iterations=free, total_updates=3)
    seen = follow(env, agents.make("fixed", env, seed=0, group=1), "spatial", seed=1)
    assert [each.iteration for each in seen] == [free, 2 + 2 * free, 4 + 3 * free]
    records = base_env_of(env).records
    for each, before in zip(seen, records[free :: 1 + free], strict=False):
        assert each.validation.error == before.errors["spatial"]
        chosen = each.shares > 0
        assert each.shares[chosen] == pytest.approx(1 / chosen.sum())
        assert chosen.mean() == pytest.approx(before.observation[1, 0], abs=1e-6), "those of group 1, and no others"


def test_a_run_stops_at_checkpoints():
    run = small_run()
    assert [(moment, run.iteration) for moment in at_checkpoints(run, [2, 5])] == [(2, 2), (5, 5)]


def test_a_run_that_diverges_has_no_checkpoints():
    run = small_run(learning_rate=1e30)
    with pytest.raises(RuntimeError, match="seed 0 diverged at iteration"):
        list(at_checkpoints(run, [20]))


def test_moments_are_at_least_one_and_different():
    assert moments_of(30, [0.01, 0.02, 0.5, 1]) == [1, 15, 30]
