"""Training on labels: colours are learned, a seed decides everything, what has no labels is refused."""

import numpy as np
import pytest
import torch

from permenv.data import DataError, StillImages
from permenv.transfer.export import model_card
from permenv.transfer.finetuning import Schedule
from permenv.transfer.retrieval import nearest_neighbour_accuracy, pool_features
from permenv.transfer.supervised import SupervisedOptions, supervised
from permenv.transfer.trunks import load_trunk

OPTIONS = SupervisedOptions(batch=16, hidden=32, schedule=Schedule(60, 0.02, 60))


def textures(number, seed):
    """Horizontal or vertical stripes of random colours and phases."""
    rng = np.random.default_rng(seed)
    pixels, labels = np.empty((number, 62, 62, 3), np.uint8), rng.integers(2, size=number)
    for image, label in zip(pixels, labels, strict=True):
        wave = np.sin(np.arange(62) * rng.uniform(0.5, 0.9) + rng.uniform(0, 6))
        plane = wave[:, None] if label else wave[None]
        image[:] = 128 + rng.integers(20, 100, 3) * np.broadcast_to(plane, (62, 62))[..., None]
    return StillImages(torch.from_numpy(pixels), labels, ("columns", "rows"), "stripes", "0")


def test_the_features_of_classes_are_told_apart():
    trunk, train, test = load_trunk("random", backbone="two-convolutions"), textures(200, 0), textures(60, 1)
    before = {name: value.clone() for name, value in trunk.module.state_dict().items()}
    trained = supervised(trunk, train, OPTIONS, progress=False)
    assert all(torch.equal(trunk.module.state_dict()[name], value) for name, value in before.items())
    assert not trained.module.training
    assert set(trained.loaded) == set(before)
    assert "The weights are random" not in model_card(trained, "file.safetensors")
    features = [pool_features(trained.module, images, np.arange(len(images))) for images in (test, train)]
    accuracy = nearest_neighbour_accuracy(features[0], test.labels, features[1], train.labels)[1]
    assert accuracy > 0.95


def test_a_seed_decides_everything():
    trunk, images = load_trunk("random", backbone="two-convolutions"), textures(40, 0)
    options = SupervisedOptions(batch=8, hidden=16, schedule=Schedule(3, 0.02, 3))
    first, second, other = (
        supervised(trunk, images, options, seed=seed, progress=False).module.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_images_without_labels_are_refused():
    trunk, images = load_trunk("random", backbone="two-convolutions"), textures(4, 0)
    unlabelled = StillImages(images.pixels, np.full(4, -1), images.classes, "stripes", "0")
    with pytest.raises(DataError, match="stripes has no labels"):
        supervised(trunk, unlabelled, OPTIONS, progress=False)
