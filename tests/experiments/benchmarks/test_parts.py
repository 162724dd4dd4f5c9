"""The parts of an iteration, and the limits of a device."""

import pytest
import torch

from experiments.benchmarks.counting import Operation
from experiments.benchmarks.limits import Limits, measure_limits
from experiments.benchmarks.parts import PARTS, _middle, count_iteration, time_iteration, watching
from experiments.benchmarks.timing import Clock, Stopwatch
from tests.helpers import assert_same_weights, joint_first, small_run


@joint_first
def test_every_part_of_an_iteration_is_found_and_the_run_is_as_it_was(task):
    run, other = small_run(task), small_run(task)
    watch = Stopwatch(Clock(torch.device("cpu")))
    with watching(run, watch):
        watched = run.iterate()
    assert watched == other.iterate()
    assert set(watch.lap()) == set(PARTS)
    run.iterate(), other.iterate()
    assert_same_weights(run, other)
    assert not watch.seconds  # nothing is watched any more
    assert "backward" not in vars(run.trainer)
    assert torch.Tensor.backward.__name__ == "backward"


def test_the_memory_of_the_gradients_remains():
    run = small_run()
    run.iterate()
    operations, least_bytes = count_iteration(run)
    gradients = sum(parameter.nbytes for parameter in run.trainer.network.parameters())
    assert operations[-1].live >= gradients
    assert max(each.live for each in operations) > operations[-1].live
    assert gradients < least_bytes < sum(each.bytes for each in operations)


def test_parts_are_means_over_the_middle_half_so_that_they_sum_to_the_whole():
    laps = [{"forward": 2.0, "rest": 1.0}, {"forward": 90.0}, {"forward": 4.0, "rest": 1.0}, {"rest": 0.1}]
    assert _middle(laps) == {**dict.fromkeys(PARTS, 0.0), "forward": 3.0, "rest": 1.0}


def test_an_iteration_is_timed_whole_and_by_part():
    whole, parts = time_iteration(small_run(), 4)
    assert whole > 0
    assert set(parts) == set(PARTS)
    assert sum(parts.values()) == pytest.approx(whole, rel=1)


def test_an_operation_takes_the_longest_of_flops_bytes_and_its_start():
    limits = Limits(flops_per_second=100, bytes_per_second=10, seconds_per_operation=0.5)

    def operation(flops, moved):
        return Operation("mm", "forward", flops, moved, False, 0)

    assert limits.bound([operation(300, 10), operation(100, 20), operation(0, 1)]) == 3 + 2 + 0.5


@pytest.mark.ci
def test_the_limits_of_this_machine_are_those_of_a_computer():
    limits = measure_limits(torch.device("cpu"), torch.float32)
    assert 1e9 < limits.flops_per_second < 1e15
    assert 1e8 < limits.bytes_per_second < 1e13
    assert 1e-8 < limits.seconds_per_operation < 1e-3
