"""Several ranks compute what one computes."""

import os
import time

import numpy as np
import pytest
import torch
from torch import nn

from permenv import ConfigurationError
from permenv.batch_norm import synchronise
from permenv.distributed import ALONE, Ranks, current
from permenv.tasks import SpatialTask
from tests.helpers import small_run
from tests.ranks import float64_run, largest_difference, run_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked from a process that is warm")

CPU = torch.device("cpu")

# One rank


def test_a_single_rank_returns_what_it_is_given():
    rows, values = torch.ones(3, 2), np.ones(3)
    assert current() == ALONE == Ranks(0, 1)
    assert all(each(rows) is rows for each in (ALONE.total, ALONE.mean, ALONE.mean_, ALONE.gather))
    assert ALONE.broadcast(values) is values
    assert ALONE.shard(5) == slice(0, 5)
    ALONE.require_same("seed", 0)
    ALONE.barrier()


def test_a_single_ranks_batch_normalisation_is_torchs():
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(network, ALONE, CPU)
    assert type(network[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("count", [4, 7, 12])
def test_shards_divide_rows_in_order_and_evenly(size, count):
    shards = [np.arange(count)[Ranks(rank, size).shard(count)] for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shards), np.arange(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


# What cannot be divided


@pytest.mark.parametrize(
    ("overrides", "size", "message"),
    [
        ({"batch_size": 8}, 3, r"batch_size=8 on 3 ranks: must be a multiple.* set batch_size=9 or start fewer ranks"),
        ({"num_validation": 3}, 4, r"num_validation=3 on 4 ranks: each needs a sample; raise num_validation or start"),
    ],
)
def test_a_run_that_the_ranks_cannot_divide_is_refused(overrides, size, message):
    config = small_run(**overrides).config
    with pytest.raises(ConfigurationError, match=message):
        Ranks(0, size).require_shards(config)


def test_a_batch_normalisation_of_another_class_is_refused():
    class Derived(nn.BatchNorm2d):
        """As timm derives it, with an activation."""

    with pytest.raises(ConfigurationError, match=r"layer '1' is a Derived, which 2 ranks cannot share: use a backbone"):
        synchronise(nn.Sequential(nn.Conv2d(3, 3, 1), Derived(3)), Ranks(0, 2), CPU)


# Pieces


def test_a_shard_of_pieces_is_a_part_of_all():
    run = small_run()
    task, rows = run.tasks["spatial"], slice(3, 6)
    samples, orders = np.arange(8)[:, None], task.permutations[:8]
    pieces = task.pieces(samples, orders, np.random.default_rng(0))
    shard = task.shard_of_pieces(rows, samples, orders, np.random.default_rng(0))
    torch.testing.assert_close(shard, pieces[rows], rtol=0, atol=1e-6)


class Brighter(SpatialTask):
    """A user's task that makes pieces of its own."""

    def pieces(self, samples, orders=None, rng=None):
        return super().pieces(samples, orders, rng) + 1


def test_a_shard_of_the_pieces_of_a_users_task_is_made_by_it():
    task = small_run().tasks["spatial"]
    own = Brighter(task.config, task.permutations, task.data, CPU)
    samples = np.arange(4)[:, None]
    expected = own.pieces(samples, None, np.random.default_rng(0))[1:3]
    torch.testing.assert_close(own.shard_of_pieces(slice(1, 3), samples, None, np.random.default_rng(0)), expected)


# Two ranks


def sums():
    """What the methods of two ranks return."""
    ranks = current()
    rows = torch.arange(10.0).view(5, 2)
    own, replaced = (torch.tensor([1.0, float("inf") if ranks.rank else 2.0, ranks.rank]) for _ in range(2))
    found = {
        "total": ranks.total(own).tolist(),
        "mean": ranks.mean(own).tolist(),
        "own": own[2].item() == ranks.rank,  # a new tensor was returned
        "replaced": ranks.mean_(replaced) is replaced and replaced.tolist(),
        "gathered": torch.equal(ranks.gather(rows[ranks.shard(5)]), rows),
        "broadcast": ranks.broadcast(np.array([ranks.rank + 5])).tolist(),
    }
    ranks.require_same("seed", 3)
    return found


def test_sums_means_and_gathered_rows():
    mean = [1.0, float("inf"), 0.5]
    expected = {"total": [2.0, float("inf"), 1.0], "mean": mean, "own": True, "replaced": mean}
    expected |= {"gathered": True, "broadcast": [5]}
    assert run_ranks(2, sums) == [expected, expected]


def normalised(inputs, weights):
    """Output, gradients and statistics of three layers for this rank's shard of the inputs and of the loss."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.BatchNorm1d(36, momentum=None),
        nn.Linear(36, 1),
    )
    layers.double()
    ranks = current()
    synchronise(layers, ranks, CPU)
    rows = ranks.shard(len(inputs))
    shard = inputs[rows].clone().requires_grad_()
    outputs = layers(shard).squeeze(1)
    layers(shard + 1)  # the running statistics move twice
    (outputs * weights[rows]).mean().backward()
    found = {
        "outputs": ranks.gather(outputs.detach()),
        "inputs": ranks.gather(shard.grad) / ranks.size,
        **{name: ranks.mean(parameter.grad) for name, parameter in layers.named_parameters()},
        **{name: buffer.clone() for name, buffer in layers.named_buffers()},
    }
    layers.eval()
    return {name: value.numpy() for name, value in (found | {"eval": layers(inputs).detach()}).items()}


def test_batch_normalisation_is_that_of_the_whole_batch():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 3, 5, 5, generator=generator, dtype=torch.float64) * 2 + 1
    weights = torch.randn(8, generator=generator, dtype=torch.float64)
    (whole,) = run_ranks(1, normalised, inputs, weights)
    assert {"1.running_var", "1.num_batches_tracked", "4.running_mean", "eval"} < whole.keys()
    for shared in run_ranks(2, normalised, inputs, weights):
        for name, value in whole.items():
            np.testing.assert_allclose(shared[name], value, rtol=1e-12, atol=1e-13, err_msg=name)


def other_choices():
    """A run whose ranks choose otherwise, as with an agent that draws from the global generator."""
    run = small_run()
    run.iterate(np.full((4, 1), current().rank))
    run.validate()


@pytest.mark.ci
def test_ranks_that_do_not_replay_the_same_run_are_found_out():
    _, second = run_ranks(2, other_choices)
    assert second.startswith("RankError: rank 1 does not replay the run of rank 0, it has another choice of groups: ")


def late():
    """The second rank comes too late."""
    if not current().is_first:
        time.sleep(6)
    current().barrier()


@pytest.mark.ci
def test_a_rank_waits_for_another_only_so_long():
    first, second = run_ranks(2, late, patience=3)
    assert first.startswith("RankError: the other ranks cannot be reached (")
    assert second.startswith("RankError: ")


# The same run

ROUNDING = {10: 1e-11, 100: 1e-8}
"""By iterations, the largest difference in float64 of any weight, average, momentum, ratio or loss: each iteration
multiplies what the ones before have rounded otherwise, as it does any other change of a last bit."""


@pytest.mark.ci
def test_two_halves_of_a_batch_are_the_whole():
    whole, groups = float64_run("spatiotemporal", 10)
    for shared, its in run_ranks(2, float64_run, "spatiotemporal", 10, groups):
        assert len(its) == len(groups) == 2
        assert 0 < largest_difference(whole, shared) < ROUNDING[10]


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_after_a_hundred_iterations_shards_are_still_the_whole(size, capsys):
    whole, groups = float64_run("spatiotemporal", 100)
    found = [shared for shared, _ in run_ranks(size, float64_run, "spatiotemporal", 100, groups)]
    differences = [largest_difference(whole, shared) for shared in found]
    last_bit = largest_difference(whole, float64_run("spatiotemporal", 100, groups, factor=1 + 2**-52)[0])
    with capsys.disabled():
        print(f"\n{size} ranks, 100 iterations in float64: largest difference {max(differences):.2e}; of a run that ")
        print(f"begins with weights that differ in their last bit {last_bit:.2e}")
    assert max(differences) < ROUNDING[100]
    assert max(differences) < 100 * last_bit
    assert all(largest_difference(found[0], other) == 0 for other in found[1:])


LEARNABLE = {
    **{"num_permutations": 6, "num_groups": 3, "num_validation": 20, "num_scenes": 120, "batch_size": 16},
    **{"learning_rate": 0.03, "backbone": "two-convolutions", "fc6": 32, "fc7": 64},
}
"""Numbers with which E falls from 5/6 to about 0.6 within 300 iterations."""


def last_errors(seeds, iterations):
    """E of float32 runs of their own groups, after some iterations."""
    errors = []
    for seed in range(seeds):
        run = small_run(seed=seed, **LEARNABLE)
        rng = np.random.default_rng(seed)
        for iteration in range(iterations):
            if iteration % 20 == 0 and iteration:
                run.validate()
            run.iterate(rng.integers(run.config.num_groups, size=(16, 1)))
        run.validate()
        errors.append(run.records[-1].errors["spatial"])
    return errors


@pytest.mark.long
def test_runs_of_their_own_groups_come_to_the_same_errors_on_average(capsys):
    """Rounding moves a permutation from group to group, so that single runs differ."""
    (alone,) = run_ranks(1, last_errors, 12, 300)
    shared, _ = run_ranks(2, last_errors, 12, 300)
    difference = np.mean(shared) - np.mean(alone)
    deviation = np.sqrt(np.var(alone, ddof=1) / 12 + np.var(shared, ddof=1) / 12)
    with capsys.disabled():
        print(f"\nE of 12 seeds: one rank {np.mean(alone):.4f}, two ranks {np.mean(shared):.4f} ± {deviation:.4f}")
    assert max(np.mean(alone), np.mean(shared)) < 0.75  # they have learned; chance is 0.833
    assert alone != shared
    assert abs(difference) < 3 * deviation


# Checkpoints


def saved_by(place, iterations):
    """Train a while in float32 and save."""
    run = small_run("spatiotemporal", precision="float32")
    for _ in range(iterations):
        run.iterate()
    run.validate()
    if current().is_first:
        run.save(place)
    return run.records[-1].errors


@pytest.mark.ci
def test_another_number_of_ranks_continues_a_checkpoint(tmp_path):
    """The batch stays the same, so the number of ranks changes rounding and nothing else."""
    first, second = run_ranks(2, saved_by, tmp_path / "run", 3)
    assert first == second
    run = small_run("spatiotemporal", precision="float32")
    run.load(tmp_path / "run")
    assert (run.iteration, run.records[-1].errors) == (3, first)
    whole = small_run("spatiotemporal", precision="float32")
    for _ in range(3):
        whole.iterate()
    for name, value in whole.trainer.network.state_dict().items():
        torch.testing.assert_close(run.trainer.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)
