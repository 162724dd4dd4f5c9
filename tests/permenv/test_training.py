"""The trainer learns, averages its weights, and continues from its state bit for bit."""

import copy
import functools
import threading

import numpy as np
import pytest
import torch

from permenv import ConfigurationError, checkpoint, make_config
from permenv.saved_run import trunk_weights
from permenv.setup import make_tasks
from permenv.training import Batch, Trainer
from tests.helpers import NUMBERS, global_states, joint_first, spatial_first

CPU = torch.device("cpu")
PLAIN = {"ema_decay": 0.0, "momentum": 0.0, "weight_decay": 0.0}
"""Overrides under which a step is the gradient times the learning rate."""


@functools.cache
def tasks_of(task, **overrides):
    return make_tasks(task, make_config("tiny", **{**NUMBERS, **overrides}), CPU, {})


def make_trainer(task="spatial", seed=0, **overrides):
    config = make_config("tiny", **{**NUMBERS, "precision": "float32", **overrides})
    shape = (3, config.piece_size, config.piece_size)
    return Trainer(config, {name: each.head for name, each in tasks_of(task).items()}, shape, CPU, seed)


def make_batches(task="spatial", seed=0, labels=None, **overrides):
    """A mini-batch of each task: random samples and, where none are given, random permutations."""
    rng, batches = np.random.default_rng(seed), {}
    for name, each in tasks_of(task, **overrides).items():
        chosen = rng.integers(24, size=8) if labels is None else labels
        samples = each.draw(np.arange(len(each.data)), 8, rng)
        batches[name] = Batch(each.pieces(samples, each.permutations[chosen], rng), chosen)
    return batches


def train(trainer, steps, task="spatial", seed=0):
    """Train on random samples and permutations; returns the losses."""
    return [trainer.step(make_batches(task, 1000 * seed + step)) for step in range(steps)]


def weights(trainer):
    return copy.deepcopy(dict(trainer.network.state_dict()))


def plain_losses(network, batches):
    """By task, the cross-entropy of one trunk pass over the pieces of all tasks."""
    pieces = [batch.pieces.flatten(0, 1) for batch in batches.values()]
    features = network.trunk(torch.cat(pieces)).flatten(1)
    losses, first = {}, 0
    for (task, batch), folded in zip(batches.items(), pieces, strict=True):
        mine = features[first : first + len(folded)].unflatten(0, batch.pieces.shape[:2])
        log_probabilities = torch.log_softmax(network.heads[task](mine), dim=1)
        losses[task] = -log_probabilities[torch.arange(len(mine)), torch.from_numpy(batch.labels)].mean()
        first += len(folded)
    return losses


# A step


@spatial_first
def test_the_loss_of_one_repeated_mini_batch_falls(task):
    trainer = make_trainer(task)
    batches = make_batches(task, labels=np.arange(8), jitter=0.0, grey_probability=0.0)
    losses = [trainer.step(batches) for _ in range(80)]
    for name in batches:
        assert losses[0][name] > 2.5  # log 24 = 3.2
        assert losses[-1][name] < 0.5 * losses[0][name]


@joint_first
def test_a_step_equals_plain_sgd_with_momentum_and_decay(task):
    trainer, reference = (make_trainer(task, ema_decay=0.0, weight_decay=0.5) for _ in range(2))
    config = trainer.config
    momentum = {name: torch.zeros_like(p) for name, p in reference.network.named_parameters()}
    for step in range(3):
        batches = make_batches(task, step)
        values = trainer.step(batches)
        losses = plain_losses(reference.network, batches)
        assert values == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
        gradients = torch.autograd.grad(sum(losses.values()), list(reference.network.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(reference.network.named_parameters(), gradients, strict=True):
                momentum[name] = config.momentum * momentum[name] + gradient + config.weight_decay * p
                p -= config.learning_rate * momentum[name]
    for p, q in zip(trainer.network.parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    for p, q in zip(trainer.network.buffers(), reference.network.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_a_joint_steps_gradient_is_the_sum_of_both_tasks():
    trainer = make_trainer("spatiotemporal", learning_rate=1.0, **PLAIN)
    network = make_trainer("spatiotemporal").network
    batches = make_batches("spatiotemporal")
    with torch.no_grad():  # gradients well above the rounding of weights: classifiers do not begin near zero
        for head in (*trainer.network.heads.values(), *network.heads.values()):
            head.classifier.weight.mul_(30)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.step(batches)
    losses = plain_losses(network, batches)
    by_task = {
        task: torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
        for task, loss in losses.items()
    }
    after = dict(trainer.network.named_parameters())
    for name, of_spatial, of_temporal in zip(before, *by_task.values(), strict=True):
        parts = [gradient for gradient in (of_spatial, of_temporal) if gradient is not None]
        assert len(parts) == (2 if name.startswith("trunk.") else 1)  # both tasks' gradients reach the whole trunk
        torch.testing.assert_close(before[name] - after[name].detach(), sum(parts), rtol=1e-3, atol=1e-5)
        if name.startswith("trunk.") and name.endswith("weight"):
            assert min(part.abs().max() for part in parts) > 1e-4  # each enough to be seen in the sum


@joint_first
def test_averaged_weights_are_the_exponential_average_buffers_included(task):
    trainer = make_trainer(task, ema_decay=0.9)
    average = None
    for step in range(5):
        train(trainer, 1, task, seed=step)
        live = weights(trainer)
        if average is None:
            average = live  # the average begins with the first weights that training made
        else:
            average = {
                name: 0.9 * average[name] + 0.1 * live[name] if live[name].is_floating_point() else live[name]
                for name in live
            }
    averaged = trainer.eval_network.state_dict()
    for name in average:
        if average[name].is_floating_point():
            torch.testing.assert_close(averaged[name], average[name], rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(averaged[name], live[name]), name
    assert averaged["trunk.1.num_batches_tracked"] == 5
    assert not torch.equal(averaged["trunk.1.running_mean"], live["trunk.1.running_mean"])


def test_without_averaging_the_live_weights_are_validated():
    trainer = make_trainer(ema_decay=0.0)
    assert trainer.eval_network is trainer.network


def test_the_learning_rate_drops():
    trainer = make_trainer(learning_rate=0.01, learning_rate_drop=2, **PLAIN)
    steps = []
    batches = make_batches()
    batch = batches["spatial"]
    for _ in range(3):
        before = trainer.network.heads["spatial"].classifier.bias.detach().clone()
        gradient = torch.autograd.grad(
            torch.nn.functional.cross_entropy(trainer.network("spatial", batch.pieces), torch.from_numpy(batch.labels)),
            trainer.network.heads["spatial"].classifier.bias,
        )[0]
        trainer.step(batches)
        change = before - trainer.network.heads["spatial"].classifier.bias.detach()
        steps.append(float(change.norm() / gradient.norm()))
    np.testing.assert_allclose(steps, [0.01, 0.01, 0.001], rtol=1e-3)


@pytest.mark.parametrize(
    ("task", "broken"),
    [("spatial", "spatial"), ("temporal", "temporal"), ("spatiotemporal", "spatial"), ("spatiotemporal", "temporal")],
)
def test_a_loss_that_is_not_finite_never_reaches_the_weights(task, broken):
    trainer = make_trainer(task)
    train(trainer, 1, task)
    with torch.no_grad():
        trainer.network.heads[broken].classifier.bias.fill_(torch.inf)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    averaged, state = copy.deepcopy(trainer.eval_network.state_dict()), copy.deepcopy(trainer.state_dict())
    losses = train(trainer, 1, task)[0]
    assert [name for name, loss in losses.items() if not np.isfinite(loss)] == [broken]
    assert trainer.iteration == 1
    assert all(torch.equal(p, before[name]) for name, p in trainer.network.named_parameters())
    assert all(torch.equal(value, averaged[name]) for name, value in trainer.eval_network.state_dict().items())
    assert all(torch.equal(value, state["momentum"][n]) for n, value in trainer.state_dict()["momentum"].items())


# State


def test_a_state_that_holds_counters_of_other_values_is_continued():
    """Those of checkpoints before averages took over the counters of batch normalisation."""
    trainer, restored = make_trainer(ema_decay=0.9), make_trainer(ema_decay=0.9)
    train(trainer, 3)
    state = copy.deepcopy(trainer.state_dict())
    state["averaged"]["module.trunk.1.num_batches_tracked"].fill_(2)
    trainer.state_schema().check(state, "trainer")
    restored.load_state_dict(state)
    for each in (trainer, restored):
        train(each, 1, seed=1)
    for name, value in trainer.eval_network.state_dict().items():
        assert torch.equal(restored.eval_network.state_dict()[name], value), name


@joint_first
@pytest.mark.parametrize(("ema_decay", "before"), [(0.0, 3), (0.9, 0), (0.9, 3)])
def test_a_restored_trainer_continues_bit_for_bit(task, ema_decay, before):
    trainer = make_trainer(task, ema_decay=ema_decay)
    train(trainer, before, task)
    restored = make_trainer(task, seed=5, ema_decay=ema_decay)
    train(restored, 2, task, seed=9)  # whatever it did before
    restored.load_state_dict(trainer.state_dict())
    assert train(restored, 4, task, seed=1) == train(trainer, 4, task, seed=1)
    for p, q in zip(trainer.eval_network.parameters(), restored.eval_network.parameters(), strict=True):
        assert torch.equal(p, q)


@joint_first
def test_a_state_goes_through_a_file(task, tmp_path):
    trainer, restored = make_trainer(task), make_trainer(task, seed=5)
    train(trainer, 2, task)
    checkpoint.write(tmp_path / "state", trainer.state_dict())
    restored.load_state_dict(checkpoint.read(tmp_path / "state"))
    assert train(restored, 2, task, seed=1) == train(trainer, 2, task, seed=1)


def test_a_state_is_not_tied_to_the_one_that_loads_it():
    trainer, twin = make_trainer(), make_trainer()
    train(trainer, 2)
    twin.load_state_dict(trainer.state_dict())
    before = weights(trainer)
    momentum = {name: m.clone() for name, m in trainer.state_dict()["momentum"].items()}
    train(twin, 2)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert all(torch.equal(m, momentum[name]) for name, m in trainer.state_dict()["momentum"].items())


@joint_first
@pytest.mark.parametrize(("ema_decay", "before"), [(0.0, 3), (0.9, 0), (0.9, 3)])
def test_a_copy_and_its_original_continue_like_a_trainer_that_was_not_copied(task, ema_decay, before):
    trainer, plain = (make_trainer(task, ema_decay=ema_decay) for _ in range(2))
    for each in (trainer, plain):
        train(each, before, task)
    twin, stray = trainer.copy(), trainer.copy()
    train(stray, 3, task, seed=9)
    expected = train(plain, 4, task, seed=1)
    for each in (trainer, twin):  # the twin after its original
        assert train(each, 4, task, seed=1) == expected
        assert each.iteration == before + 4
        for network in ("network", "eval_network"):
            theirs = getattr(plain, network).state_dict()
            assert all(torch.equal(value, theirs[name]) for name, value in getattr(each, network).state_dict().items())


class Locked(torch.nn.Module):
    """A user's trunk with an attribute that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.layer, self.lock = torch.nn.Conv2d(3, 4, 5, stride=4), threading.Lock()

    def forward(self, pieces):
        with self.lock:
            return self.layer(pieces)


def test_a_backbone_that_cannot_be_copied_is_named():
    message = r"backbone='.*Locked': copy.deepcopy cannot copy the network \(cannot pickle '_thread.lock'.*keep locks"
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(backbone=Locked, ema_decay=0.9)
    trainer = make_trainer(backbone=Locked, ema_decay=0.0)
    with pytest.raises(ConfigurationError, match=message):
        trainer.copy()
    train(trainer, 1)  # it can be trained all the same


# Another run's trunk


def trunk_of(trainer):
    return trunk_weights({"identity": {}, "trainer": trainer.state_dict()})


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_trunk_of_a_state_is_the_validated_one(ema_decay, steps):
    trainer = make_trainer(ema_decay=ema_decay)
    train(trainer, steps)
    found, expected = trunk_of(trainer), trainer.eval_network.trunk.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    live = trainer.network.trunk.state_dict()
    same_as_live = all(torch.equal(value, live[name]) for name, value in found.items())
    assert same_as_live == (ema_decay == 0 or steps == 0)


@pytest.mark.parametrize("mine", [0.0, 0.9])
@pytest.mark.parametrize("theirs", [0.0, 0.9])
@pytest.mark.parametrize("task", ["temporal", "spatiotemporal"])
def test_a_run_starts_from_the_trunk_of_a_run_of_another_task(task, mine, theirs):
    source, target, untouched = make_trainer(ema_decay=theirs), *(make_trainer(task, 7, ema_decay=mine) for _ in "ab")
    train(source, 3)
    trunk = copy.deepcopy(trunk_of(source))
    target.start_from(trunk_of(source))
    for network in (target.network, target.eval_network):
        values = network.trunk.state_dict()
        assert all(torch.equal(values[name], value) for name, value in trunk.items())
    for p, q in zip(target.eval_network.heads.parameters(), untouched.network.heads.parameters(), strict=True):
        assert torch.equal(p, q)
    assert target.iteration == 0
    assert not target.state_dict()["momentum"]

    train(target, 2, task)  # on copies
    assert all(torch.equal(value, trunk[name]) for name, value in trunk_of(source).items())
    assert not torch.equal(target.network.trunk[0].weight, trunk["0.weight"])


def test_another_backbones_trunk_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_trainer().start_from(trunk_of(make_trainer(backbone="caffenet", piece_size=75, cell_size=75)))


# What it leaves alone, and where it runs


@joint_first
def test_training_leaves_the_global_generators_alone(task):
    before = global_states()
    train(make_trainer(task), 2, task)
    assert global_states() == before


@joint_first
def test_bf16_trains_and_keeps_float32_weights(task):
    trainer = make_trainer(task, precision="bf16")
    losses = train(trainer, 2, task)
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
    full = train(make_trainer(task, precision="float32"), 1, task)[0]
    assert losses[0] == pytest.approx(full, rel=0.02)
    assert losses[0] != full


def test_pieces_too_small_for_the_backbone_raise_a_configuration_error():
    with pytest.raises(ConfigurationError, match="cannot take pieces of 3 × 8 × 8"):
        make_trainer(backbone="caffenet", piece_size=8)
