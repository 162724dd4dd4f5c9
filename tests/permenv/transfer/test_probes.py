"""Probes: pooled sizes, a linear classifier against scikit-learn's, frozen weights, the choice of the rate, seeds."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from permenv.config import ConfigurationError
from permenv.data import DataError, StillImages
from permenv.transfer import probes
from permenv.transfer.probes import (
    LinearOptions,
    NonLinearOptions,
    held_out_rows,
    linear_probe,
    nonlinear_probe,
    pooled_side,
)
from permenv.transfer.trunks import Trunk, load_trunk

LINEAR = LinearOptions(rates=(0.1, 1.0), epochs=10, batch=16)
NONLINEAR = NonLinearOptions(rates=(1e-4, 1e-2), hidden=32, epochs=10, batch=16, dropout=0.2)


@pytest.fixture(scope="module")
def trunk():
    """A random trunk with statistics of batch normalisation that are not those of its start."""
    trunk = load_trunk("random", backbone="two-convolutions", seed=1)
    trunk.module.train()
    with torch.no_grad():
        trunk.module(torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    trunk.module.eval()
    return trunk


@pytest.fixture(scope="module")
def pixels_as_features():
    """A trunk of one layer whose features are means of 4 × 4 pixels."""
    return Trunk(nn.Sequential(nn.AvgPool2d(4)), "means", "here", (), (), 16, {"pool5": ""})


def patterns(labels, classes=("left", "right", "top"), *, noise=60, seed=0, side=24):
    """Images with a bright half that shows their class, and one more that is unlabelled."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100 - noise, 100 + noise + 1, (len(labels) + 1, side, side, 3), dtype=np.uint8)
    halves = {"left": np.s_[:, : side // 2], "right": np.s_[:, side // 2 :], "top": np.s_[: side // 2]}
    for image, label in zip(pixels, labels, strict=False):
        image[halves[classes[label]]] += 40
    return StillImages(torch.from_numpy(pixels), np.array([*labels, -1]), classes, "patterns", "")


def mislabelled(images, seed):
    """The images with a random label in a third of the cases."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(len(images)) < 0.33, rng.integers(3, size=len(images)), images.labels)
    return dataclasses.replace(images, labels=np.where(images.labels < 0, -1, labels))


@pytest.fixture(scope="module")
def train():
    return patterns([0, 1, 2] * 20)


@pytest.fixture(scope="module")
def test():
    """The same classes, numbered in another way."""
    return patterns([0, 1, 2] * 10, ("top", "left", "right"), seed=1)


# Features


def test_about_9000_numbers_of_caffenets_maps_stay():
    """96 · 10² = 9,600; 256 · 6² = 9,216; 384 · 5² = 9,600."""
    assert [pooled_side(channels, 9000) for channels in (96, 256, 384, 384, 256)] == [10, 6, 5, 5, 6]
    assert pooled_side(20_000, 9000) == 1


@pytest.mark.ci
def test_caffenets_features_have_these_sizes():
    trunk = load_trunk("random")
    images = patterns([0, 1, 0, 1], side=227)
    options = LinearOptions(rates=(1.0,), epochs=1, held_out=0.5)
    found = linear_probe(trunk, images, images, options, progress=False)
    assert {name: result.shape for name, result in found.items()} == {
        "conv1": (96, 10, 10),
        "conv2": (256, 6, 6),
        "conv3": (384, 5, 5),
        "conv4": (384, 5, 5),
        "conv5": (256, 6, 6),
        "pool5": (256, 6, 6),
    }


def test_maps_are_pooled_to_at_most_their_own_size(trunk, train, test):
    """conv1 gives 16 × 12 × 12 of 24 × 24 pixels, conv2 32 × 6 × 6, pool5 32 × 3 × 3."""
    options = dataclasses.replace(LINEAR, numbers=400, epochs=1)
    found = linear_probe(trunk, train, test, options, progress=False)
    assert {name: result.shape for name, result in found.items()} == {
        "conv1": (16, 5, 5),  # 16 · 5² = 400
        "conv2": (32, 4, 4),  # 32 · 4² = 512, closer than 32 · 3² = 288 by the root
        "pool5": (32, 3, 3),
    }


def test_features_are_the_same_however_many_layers_fit_into_memory(trunk, train, test, monkeypatch):
    few = dataclasses.replace(LINEAR, epochs=1)
    together = linear_probe(trunk, train, test, few, progress=False)
    monkeypatch.setattr(probes, "free_bytes", lambda device: 3 * 91 * 16 * 12 * 12)
    apart = linear_probe(trunk, train, test, few, progress=False)
    for layer, result in together.items():
        np.testing.assert_array_equal(result.losses, apart[layer].losses)


# Training


def test_the_linear_probe_finds_the_optimum_that_scikit_learn_finds(pixels_as_features):
    """Cross-entropy plus ½ · weight decay · |w|², which is scikit-learn's with C = 1 / (N · weight decay)."""
    train, test = (mislabelled(patterns([0, 1, 2] * 30, side=16, seed=seed), seed) for seed in (0, 1))
    options = LinearOptions(rates=(5.0,), epochs=400, batch=90, weight_decay=1e-2)
    found = linear_probe(pixels_as_features, train, test, options, progress=False)["pool5"]
    features = []
    for images in (train, test):
        pixels = images.pixels[:-1].numpy() / 255
        pixels = (pixels - pixels.mean((1, 2), keepdims=True)) / pixels.std((1, 2), keepdims=True)
        features.append(pixels.reshape(90, 4, 4, 4, 4, 3).mean((2, 4)).reshape(90, 48))
    mean = features[0].mean(0)
    unit = np.sqrt(((features[0] - mean) ** 2).sum(1).mean())
    own, other = ((each - mean) / unit for each in features)
    labels = train.labels[:-1]
    reference = LogisticRegression(C=1 / (90 * 1e-2), tol=1e-8, max_iter=5000).fit(own, labels)
    loss = -np.log(reference.predict_proba(own)[np.arange(90), labels]).mean()
    assert found.losses[0] == pytest.approx(math.log(3))
    assert found.losses[-1] == pytest.approx(loss, abs=1e-4)
    assert found.accuracy == pytest.approx(reference.score(other, test.labels[:-1]), abs=0.02)
    assert 0.4 < found.accuracy < 0.9


def test_separable_features_are_separated(pixels_as_features):
    train, test = patterns([0, 1, 2] * 10, noise=10, side=16), patterns([0, 1, 2] * 10, noise=10, side=16, seed=1)
    assert linear_probe(pixels_as_features, train, test, LINEAR, progress=False)["pool5"].accuracy == 1.0
    assert nonlinear_probe(pixels_as_features, train, test, NONLINEAR, progress=False).accuracy == 1.0


@pytest.mark.parametrize("frozen", ["pool5", "conv1"])
def test_a_hidden_layer_learns_what_is_not_linear(frozen, trunk):
    """The bright quarters lie on one diagonal or on the other: no weighted sum of pixels tells."""
    rng = np.random.default_rng(0)
    sets = []
    for _ in range(2):
        pixels = rng.integers(60, 140, (80, 24, 24, 3), dtype=np.uint8)
        labels, turned = rng.integers(2, size=80), rng.integers(2, size=80)
        for image, label, turn in zip(pixels, labels, turned, strict=True):
            image[:12, :12] += np.uint8(100 * (label == 0) * (turn == 0))
            image[12:, 12:] += np.uint8(100 * (label == 0) * (turn == 1))
            image[12:, :12] += np.uint8(100 * (label == 1) * (turn == 0))
            image[:12, 12:] += np.uint8(100 * (label == 1) * (turn == 1))
        sets.append(StillImages(torch.from_numpy(pixels), labels, ("one", "other"), "diagonals", ""))
    options = dataclasses.replace(NONLINEAR, frozen=frozen, rates=(1e-2,))
    assert nonlinear_probe(trunk, *sets, options, progress=False).accuracy > 0.95


def test_the_chosen_rate_is_the_best_and_the_first_of_equal_ones(trunk, train, test):
    options = dataclasses.replace(LINEAR, rates=(0.1, 3.0, 1.0, 0.3), held_out=0.3, epochs=5)
    results = linear_probe(trunk, mislabelled(train, 0), test, options, progress=False).values()
    for result in results:
        assert list(result.by_rate) == [0.1, 3.0, 1.0, 0.3]
        best = max(result.by_rate.values())
        assert result.rate == next(rate for rate, accuracy in result.by_rate.items() if accuracy == best)
    assert any(len(set(result.by_rate.values())) > 1 for result in results)


def test_a_rate_with_which_training_diverges_is_not_chosen(trunk, train, test):
    result = nonlinear_probe(trunk, train, test, dataclasses.replace(NONLINEAR, rates=(1e30, 1e-2)), progress=False)
    assert math.isnan(result.by_rate[1e30])
    assert result.rate == 1e-2
    with pytest.raises(FloatingPointError, match=r"pool5: training diverges with every rate of \(1e\+30,\)"):
        nonlinear_probe(trunk, train, test, dataclasses.replace(NONLINEAR, rates=(1e30,)), progress=False)


@pytest.mark.parametrize("frozen", ["pool5", "conv1"])
def test_what_is_frozen_stays_to_the_bit_and_a_seed_decides_the_result(frozen, trunk, train, test):
    state, weights = torch.get_rng_state(), copy.deepcopy(trunk.module.state_dict())
    few = dataclasses.replace(LINEAR, epochs=2)
    options = dataclasses.replace(NONLINEAR, frozen=frozen, epochs=2)
    runs = []
    for seed in (3, 3, 4):
        linear = linear_probe(trunk, train, test, few, layers=["conv2"], seed=seed, progress=False)["conv2"]
        runs.append([linear, nonlinear_probe(trunk, train, test, options, seed=seed, progress=False)])
    for first, again, other in zip(*runs, strict=True):
        assert (first.losses == again.losses).all()
        assert (first.by_rate, first.rate, first.accuracy) == (again.by_rate, again.rate, again.accuracy)
        assert (first.losses != other.losses).any()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in trunk.module.state_dict().items())
    assert all(each.requires_grad for each in trunk.module.parameters())


# Data


def test_each_class_is_held_out_in_part():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2 + [3])
    rows = held_out_rows(labels, 0.2, np.random.default_rng(0))
    assert np.bincount(labels[rows], minlength=4).tolist() == [4, 2, 1, 0]
    assert len(set(rows)) == 7
    assert rows.tolist() != held_out_rows(labels, 0.2, np.random.default_rng(1)).tolist()
    assert np.bincount(labels[held_out_rows(labels, 0.99, np.random.default_rng(0))]).tolist() == [19, 9, 1]


def test_a_class_that_is_not_trained_is_wrong(pixels_as_features):
    train = patterns([0, 1] * 10, noise=10, side=16)
    test = patterns([0, 1, 2, 2], noise=10, side=16, seed=1)
    found = linear_probe(pixels_as_features, train, test, LINEAR, progress=False)["pool5"]
    assert found.classes == ("left", "right")
    assert found.accuracy == 0.5
    known = patterns([0, 1], noise=10, side=16, seed=1)
    assert linear_probe(pixels_as_features, train, known, LINEAR, progress=False)["pool5"].accuracy == 1.0


def test_data_that_cannot_train_are_named(pixels_as_features, train):
    few = patterns([0, 1], side=16)
    unlabelled = StillImages(train.pixels, None, (), "no labels", "")
    with pytest.raises(DataError, match="no labels has no labelled images"):
        linear_probe(pixels_as_features, unlabelled, train, LINEAR)
    with pytest.raises(DataError, match="one class only, left"):
        linear_probe(pixels_as_features, patterns([0, 0]), train, LINEAR)
    with pytest.raises(DataError, match="none can be held out"):
        linear_probe(pixels_as_features, few, few, LINEAR, progress=False)


def test_features_that_do_not_fit_are_named(trunk, train, monkeypatch):
    monkeypatch.setattr(probes, "free_bytes", lambda device: 1000)
    with pytest.raises(DataError, match=r"features of conv1 need 552,960 bytes of memory, but 1,000 are free"):
        nonlinear_probe(trunk, train, train, dataclasses.replace(NONLINEAR, frozen="conv1"), progress=False)


def test_features_that_are_not_finite_are_named(trunk, train):
    broken = dataclasses.replace(trunk, module=copy.deepcopy(trunk.module))
    with torch.no_grad():
        broken.module[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="features of pool5 are not finite in half precision"):
        nonlinear_probe(broken, train, train, NONLINEAR, progress=False)


def test_unknown_layers_and_options_are_refused(trunk, train):
    with pytest.raises(ConfigurationError, match="no layer 'conv9'; choose among conv1, conv2, pool5"):
        linear_probe(trunk, train, train, LINEAR, layers=["conv9"])
    with pytest.raises(ConfigurationError, match=r"rates=\(\): pass one or more"):
        LinearOptions(rates=())
    with pytest.raises(ConfigurationError, match="held_out=1: pass a share"):
        LinearOptions(held_out=1)
    with pytest.raises(ConfigurationError, match="epochs=0, batch=256"):
        NonLinearOptions(epochs=0)
