"""The trainer: it learns, its average is an average, and it continues from its state bit for bit."""

import copy
import random

import numpy as np
import pytest
import torch
from conftest import SMALL

from permenv import ConfigurationError, embedded_scenes, make_config
from permenv.permutations import maximally_different
from permenv.training import Trainer, resolve_device, resolve_precision

CPU = torch.device("cpu")
NUMBERS = {name: value for name, value in SMALL.items() if name != "device"}


def make_trainer(seed=0, **overrides):
    config = make_config("tiny", **{**NUMBERS, "precision": "float32", **overrides})
    return Trainer(config, maximally_different(9, config.num_permutations), CPU, seed)


def train(trainer, steps, seed=0):
    """Train on random scenes and permutations; returns the losses."""
    config, rng = trainer.config, np.random.default_rng(seed)
    data = embedded_scenes(config.num_scenes, config.image_size)
    losses = []
    for _ in range(steps):
        images = data.take(rng.integers(len(data), size=config.batch_size), CPU)
        labels = rng.integers(config.num_permutations, size=config.batch_size)
        losses.append(trainer.step(images, labels, rng))
    return losses


def weights(trainer):
    return copy.deepcopy(dict(trainer.network.state_dict()))


def test_the_loss_of_one_repeated_mini_batch_falls():
    trainer = make_trainer(jitter=0.0, grey_probability=0.0)
    images = embedded_scenes(60, 108).take(np.arange(8), CPU)
    labels = np.arange(8)
    losses = [trainer.step(images, labels, np.random.default_rng(0)) for _ in range(30)]
    assert losses[0] > 2.5  # log 24 = 3.2
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_equals_plain_sgd_with_momentum_and_decay():
    trainer, reference = make_trainer(ema_decay=0.0), make_trainer(ema_decay=0.0)
    config = trainer.config
    images = embedded_scenes(60, 108).take(np.arange(8), CPU)
    labels = np.arange(8)
    momentum = {name: torch.zeros_like(p) for name, p in reference.network.named_parameters()}
    for step in range(3):
        trainer.step(images, labels, np.random.default_rng(step))
        pieces = reference.training_pieces(images, labels, np.random.default_rng(step))
        log_probabilities = torch.log_softmax(reference.network("spatial", pieces), dim=1)
        loss = -log_probabilities[torch.arange(8), torch.from_numpy(labels)].mean()
        gradients = torch.autograd.grad(loss, list(reference.network.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(reference.network.named_parameters(), gradients, strict=True):
                momentum[name] = config.momentum * momentum[name] + gradient + config.weight_decay * p
                p -= config.learning_rate * momentum[name]
    for p, q in zip(trainer.network.parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_pieces_are_shuffled_as_their_labels_say():
    trainer = make_trainer(jitter=0.0, grey_probability=0.0, cell_size=36, piece_size=36)
    images = embedded_scenes(60, 108).take(np.arange(5), CPU)
    labels = np.array([3, 0, 7, 7, 20])
    straight = trainer.validation_pieces(images)
    shuffled = trainer.training_pieces(images, labels, np.random.default_rng(0))
    for b, label in enumerate(labels):
        torch.testing.assert_close(shuffled[b], straight[b][torch.tensor(trainer.permutations[label])])


def test_averaged_weights_are_the_exponential_average_buffers_included():
    trainer = make_trainer(ema_decay=0.9)
    average = None
    for step in range(5):
        train(trainer, 1, seed=step)
        live = weights(trainer)
        if average is None:
            average = live  # the average begins with the first weights that training made
        else:
            average = {
                name: 0.9 * average[name] + 0.1 * live[name] if live[name].is_floating_point() else live[name]
                for name in live
            }
    averaged = trainer.evaluated.state_dict()
    for name in average:
        if average[name].is_floating_point():
            torch.testing.assert_close(averaged[name], average[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(averaged["trunk.1.running_mean"], live["trunk.1.running_mean"])


def test_without_averaging_the_live_weights_are_validated():
    trainer = make_trainer(ema_decay=0.0)
    assert trainer.evaluated is trainer.network


def test_the_learning_rate_drops():
    trainer = make_trainer(learning_rate=0.01, learning_rate_drop=2, momentum=0.0, weight_decay=0.0, ema_decay=0.0)
    steps = []
    images, labels = embedded_scenes(60, 108).take(np.arange(8), CPU), np.arange(8)
    for _ in range(3):
        before = trainer.network.heads["spatial"].classifier.bias.detach().clone()
        pieces = trainer.training_pieces(images, labels, np.random.default_rng(0))
        gradient = torch.autograd.grad(
            torch.nn.functional.cross_entropy(trainer.network("spatial", pieces), torch.from_numpy(labels)),
            trainer.network.heads["spatial"].classifier.bias,
        )[0]
        trainer.step(images, labels, np.random.default_rng(0))
        change = before - trainer.network.heads["spatial"].classifier.bias.detach()
        steps.append(float(change.norm() / gradient.norm()))
    np.testing.assert_allclose(steps, [0.01, 0.01, 0.001], rtol=1e-3)


def test_a_loss_that_is_not_finite_never_reaches_the_weights():
    trainer = make_trainer()
    train(trainer, 1)
    with torch.no_grad():
        trainer.network.heads["spatial"].classifier.bias.fill_(torch.inf)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    assert not np.isfinite(train(trainer, 1)[0])
    assert trainer.iteration == 1
    assert all(torch.equal(p, before[name]) for name, p in trainer.network.named_parameters())


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("before", [0, 3])
def test_a_restored_trainer_continues_bit_for_bit(ema_decay, before):
    trainer = make_trainer(ema_decay=ema_decay)
    train(trainer, before)
    restored = make_trainer(seed=5, ema_decay=ema_decay)
    train(restored, 2, seed=9)  # whatever it did before
    restored.load_state_dict(trainer.state_dict())
    assert train(restored, 4, seed=1) == train(trainer, 4, seed=1)
    for p, q in zip(trainer.evaluated.parameters(), restored.evaluated.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_is_not_tied_to_the_one_that_loads_it():
    trainer, twin = make_trainer(), make_trainer()
    train(trainer, 2)
    twin.load_state_dict(trainer.state_dict())
    before = weights(trainer)
    momentum = {name: m.clone() for name, m in trainer.state_dict()["momentum"].items()}
    train(twin, 2)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert all(torch.equal(m, momentum[name]) for name, m in trainer.state_dict()["momentum"].items())


def test_training_leaves_the_global_generators_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    train(make_trainer(), 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_bf16_trains_and_keeps_float32_weights():
    trainer = make_trainer(precision="bf16")
    assert all(np.isfinite(train(trainer, 2)))
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
    full = make_trainer(precision="float32")
    assert train(make_trainer(precision="bf16"), 1)[0] == pytest.approx(train(full, 1)[0], rel=0.02)


def test_devices_and_precisions():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    assert resolve_precision("float32", CPU) == torch.float32
    with pytest.raises(ConfigurationError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no GPU"):
            resolve_device("cuda")
