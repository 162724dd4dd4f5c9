"""What code computes, counted from the shapes of its tensors, against counting by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.counting import Counter, extrapolate
from tests.helpers import small_run


def total(counter, field="flops", name=None):
    """Sum up a field of the operations, of one name if it is given."""
    return sum(getattr(each, field) for each in counter.operations if name in (None, each.name))


def test_flops_and_bytes_of_a_small_network_are_those_counted_by_hand():
    convolution, linear = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Linear(4 * 8 * 8, 5, bias=False)
    images = torch.ones(2, 3, 8, 8)
    with Counter() as counter:
        linear(convolution(images).flatten(1)).sum().backward()
    pixels, weights = 2 * 8 * 8, 4 * 3 * 9
    assert total(counter, name="convolution") == 2 * pixels * weights
    assert total(counter, name="convolution_backward") == 2 * pixels * weights  # the images need no gradient
    assert total(counter, name="mm") == 3 * 2 * 2 * 256 * 5  # forward, and the gradients of both factors
    assert total(counter, "bytes", "convolution") == 4 * (images.numel() + weights + 4 * pixels)


def test_a_recurrent_layer_multiplies_its_weights_at_every_step():
    layer = nn.LSTM(6, 7, batch_first=True)
    with Counter() as counter:
        layer(torch.ones(3, 5, 6))[0].sum().backward()
    products = 2 * 3 * 5 * (4 * 7 * 6 + 4 * 7 * 7)
    assert total(counter) == pytest.approx(3 * products, rel=0.35)  # where torch divides it, some products are saved


def test_an_iteration_has_the_flops_that_torch_counts():
    run = small_run("spatial")
    with FlopCounterMode(display=False) as expected:
        run.iterate()
    with Counter() as counter:
        run.iterate()
    assert total(counter) == expected.get_total_flops() > 0


def test_views_move_nothing_and_what_is_chosen_is_read_alone():
    table = torch.ones(1000, 4)
    with Counter() as counter:
        table.T.reshape(4, 1000)[:, :10].unsqueeze(0)
    assert not counter.operations
    with Counter() as counter:
        table[torch.tensor([3, 5])]
    (chosen,) = counter.operations
    assert chosen.bytes == 2 * 2 * 4 * 4


def test_memory_is_that_of_the_tensors_that_are_alive():
    with Counter() as counter:
        first = torch.zeros(100)
        second = first + 1
        del first
        third = second + 1
        del second, third
        torch.zeros(10)
    assert [each.live for each in counter.operations] == [400, 800, 800, 40]


def test_each_tensor_is_moved_once_at_the_least():
    numbers = torch.ones(100)
    with Counter() as counter:
        numbers.add_(1)
        numbers.add_(1)
    assert total(counter, "bytes") == 4 * 400
    assert counter.least_bytes == 2 * 400  # read once, written once


def test_what_changes_in_place_is_written():
    weights, gradients = torch.ones(50), torch.ones(50)
    with Counter() as counter:
        torch._foreach_add_([weights], [gradients])
    assert total(counter, "bytes") == 3 * 200


def test_operations_grow_linearly_with_the_batch():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    counted = {}
    for size in (2, 4, 32):
        network.zero_grad()
        with Counter() as counter:
            network(torch.ones(size, 3, 8, 8)).sum().backward()
        counted[size] = counter.operations
    predicted = extrapolate(counted[2], counted[4], (32 - 2) / (4 - 2))
    for one, other in zip(predicted, counted[32], strict=True):
        assert one == other


def test_other_operations_cannot_be_extrapolated():
    counted = []
    for function in (torch.relu, torch.tanh):
        with Counter() as counter:
            function(torch.ones(3))
        counted.append(counter.operations)
    with pytest.raises(ValueError, match="depend on the size"):
        extrapolate(*counted, 2.0)
