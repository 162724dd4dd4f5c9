"""Fine-tuning: rates, gradients, divergence, and mini-batches that are drawn while the network trains."""

import threading

import numpy as np
import pytest
import torch

from permenv.transfer.finetuning import Schedule, epochs, fine_tune


def test_an_epoch_has_every_element_once():
    batches = epochs(np.random.default_rng(0), 10, 4)
    drawn = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_rates_drop_and_gradients_are_limited():
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    values = []

    def loss_of(factors):
        values.append((layer.weight.item(), layer.bias.item()))
        return -(layer.weight.sum() * factors[0] + layer.bias.sum() * factors[1])

    schedule = Schedule(4, 0.1, 2, drop=0.5, momentum=0.0, weight_decay=0.0, largest_gradient=1.0)
    fine_tune(layer, schedule, lambda: (3, 4), loss_of, label="test", progress=False)  # the norm of the gradient is 5
    assert values[-1] == (layer.weight.item(), layer.bias.item()), "the last loss is that after the last step"
    steps = np.diff(np.array(values), axis=0)
    assert steps[:, 0] == pytest.approx([0.06, 0.06, 0.03, 0.03], abs=1e-6)  # 0.1 · 3 / 5, then half
    assert steps[:, 1] == pytest.approx([0.16, 0.16, 0.08, 0.08], abs=1e-6)  # twice the rate


def made_up():
    """A network, a function that draws noisy rows, and one that returns their loss."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    rng = np.random.default_rng(0)
    batches = epochs(rng, 30, 4)
    data = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)

    def draw():
        return torch.from_numpy(data[next(batches)] + rng.normal(size=(4, 5)).astype(np.float32))

    return network, draw, lambda batch: network(batch).square().mean()


def test_mini_batches_that_are_drawn_ahead_change_no_bit():
    schedule = Schedule(20, 0.1, 100, momentum=0.9, weight_decay=0.1)
    network, draw, loss_of = made_up()
    losses = fine_tune(network, schedule, draw, loss_of, label="test", progress=False)
    plain, draw, loss_of = made_up()
    weights, biases = list(plain.parameters())[::2], list(plain.parameters())[1::2]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.2}], lr=0.1, momentum=0.9
    )
    expected = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(draw())
        expected.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses.tolist() == expected
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), plain.parameters(), strict=True))


def test_the_next_mini_batch_is_drawn_meanwhile_and_no_further_one():
    layer, drawn, threads, begun = torch.nn.Linear(1, 1), [], set(), threading.Event()

    def draw():
        drawn.append(len(drawn))
        threads.add(threading.current_thread())
        if len(drawn) == 2:
            begun.set()
        return drawn[-1]

    def loss_of(number):
        assert begun.wait(30), "the second is drawn while the first is trained on"
        assert len(drawn) <= number + 2
        return layer.weight.sum()

    fine_tune(layer, Schedule(5, 0.1, 100), draw, loss_of, label="test", progress=False)
    assert drawn == [0, 1, 2, 3, 4]
    assert len(threads) == 1
    assert not next(iter(threads)).is_alive()


def test_no_step_is_taken_with_a_loss_that_is_not_finite():
    layer, threads = torch.nn.Linear(1, 1), threading.active_count()
    factors = iter([1.0, 1.0, float("nan"), 1.0])
    seen = []

    def loss_of(factor):
        seen.append(layer.weight.item())
        return layer.weight.sum() * factor

    with pytest.raises(FloatingPointError, match=r"test: the loss is nan in iteration 2; lower the learning rate 0\.1"):
        fine_tune(layer, Schedule(4, 0.1, 100), factors.__next__, loss_of, label="test", progress=False)
    assert layer.weight.item() == seen[2] != seen[1]
    assert threading.active_count() == threads


def test_a_divergence_in_the_last_step_is_named():
    """The weights may still be finite when what the network computes is not."""
    network, draw, loss_of = made_up()
    with pytest.raises(FloatingPointError, match=r"test: the loss is inf after iteration 0; lower .* rate 1e\+16"):
        fine_tune(network, Schedule(1, 1e16, 1), draw, loss_of, label="test", progress=False)
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_an_error_in_drawing_is_the_callers():
    def draw():
        raise OSError("a file is gone")

    with pytest.raises(OSError, match="a file is gone"):
        fine_tune(torch.nn.Linear(1, 1), Schedule(4, 0.1, 100), draw, torch.sum, label="test", progress=False)
