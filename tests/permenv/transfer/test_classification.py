"""Multi-label classification: crops, the loss, learning, one seed one result."""

import dataclasses

import numpy as np
import pytest
import torch

from permenv.networks import BACKBONES
from permenv.transfer.classification import (
    ClassificationOptions,
    LabelledImages,
    class_scores,
    classification,
    multi_label_loss,
    random_crop,
)
from permenv.transfer.finetuning import Schedule

CLASSES = ("red", "green", "bright corner")
OPTIONS = ClassificationOptions(
    crop=32,
    short_side=40,
    scales=(0.8, 1.2),
    test_crops=4,
    hidden=32,
    stride=None,
    dropout=0.2,
    schedule=Schedule(80, 0.02, 60, drop=0.1, weight_decay=1e-6, largest_gradient=10.0),
)


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return BACKBONES["two-convolutions"]()


def coloured(number, seed):
    """Noise with a red square, a green one, both or none; the third class never occurs."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((number, 3)) < 0.5, 1, -1)
    labels[:, 2] = -1
    images = []
    for red, green, _ in labels:
        image = rng.integers(0, 100, (48, 60, 3), dtype=np.uint8)
        for present, channel, left in ((red, 0, 10), (green, 1, 35)):
            if present == 1:
                image[10:38, left : left + 20, channel] = 255
        images.append(image)
    return LabelledImages(images, labels)


def test_a_crop_has_its_size_and_stays_in_the_image():
    rng = np.random.default_rng(0)
    image = np.full((40, 100, 3), 200, dtype=np.uint8)
    for scale in (0.1, 1.0, 8.0):
        crop = random_crop(image, dataclasses.replace(OPTIONS, scales=(scale, scale)), rng)
        assert crop.shape == (32, 32, 3)
        assert (crop == 200).all()


def test_the_scale_decides_how_much_of_the_image_is_seen():
    """At a scale of 1, a crop of 32 of an image of 64 rows is 32 of them, unresized, mirrored half of the time."""
    options = dataclasses.replace(OPTIONS, scales=(1.0, 1.0), short_side=None)
    columns = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (64, 100, 3))
    directions = set()
    for seed in range(20):
        steps = np.diff(random_crop(columns, options, np.random.default_rng(seed))[0, :, 0].astype(int))
        directions |= set(steps.tolist())
    assert directions == {1, -1}
    halved = random_crop(columns, dataclasses.replace(options, scales=(0.5, 0.5)), np.random.default_rng(0))
    assert abs(int(halved[0, -1, 0]) - int(halved[0, 0, 0])) in (62, 63)
    resized = random_crop(columns, dataclasses.replace(options, short_side=32), np.random.default_rng(0))
    assert (resized == halved).all()


def test_the_loss_is_the_logistic_one_without_difficult_classes():
    logits = torch.tensor([[2.0, -1.0, 5.0], [0.0, 3.0, 1.0]])
    labels = torch.tensor([[1, -1, 0], [-1, 1, -1]])
    terms = [np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log(2), np.log1p(np.exp(-3)), np.log1p(np.exp(1))]
    assert multi_label_loss(logits, labels).item() == pytest.approx(sum(terms) / 2, abs=1e-6)


def test_colours_are_learned_and_a_seed_decides_the_result(trunk):
    state = torch.get_rng_state()
    train, test = coloured(60, 0), coloured(40, 1)
    weights = {name: value.clone() for name, value in trunk.state_dict().items()}
    result = classification(trunk, train, test, CLASSES, OPTIONS, seed=3, progress=False)
    assert result.mean.all_point > 0.9
    assert np.isnan(result.by_class["bright corner"].all_point)  # no positive: not in the mean
    assert result.losses.shape == (80,)
    with torch.no_grad():  # the caller's mode does not matter
        again = classification(trunk, train, test, CLASSES, OPTIONS, seed=3, progress=False)
    assert again.mean == result.mean
    assert (again.losses == result.losses).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in trunk.state_dict().items())


def test_scores_are_the_mean_over_crops(trunk):
    data = coloured(4, 0)
    options = dataclasses.replace(OPTIONS, schedule=dataclasses.replace(OPTIONS.schedule, iterations=1))
    network = classification(trunk, data, data, CLASSES, options, progress=False).network
    uncropped = dataclasses.replace(options, crop=32, scales=(0.1, 0.1), test_crops=1)
    square = [np.ascontiguousarray(image[:, :48]) for image in data.images]
    mirrored = [image[:, ::-1] for image in square]
    seeds = [class_scores(network, square[:1], uncropped, seed=seed, progress=False)[0] for seed in range(8)]
    both = [class_scores(network, each[:1], uncropped, seed=0, progress=False)[0] for each in (square, mirrored)]
    assert all(any(np.allclose(one, other, atol=1e-5) for other in both) for one in seeds)


def test_labels_of_other_classes_are_refused(trunk):
    data = coloured(4, 0)
    with pytest.raises(ValueError, match="do not fit 2 classes"):
        classification(trunk, data, data, ("red", "green"), OPTIONS)
    with pytest.raises(ValueError, match="3 images with labels of 4: give at least one image, and labels for"):
        LabelledImages(data.images[:3], data.labels)


def test_a_divergence_is_named(trunk):
    options = dataclasses.replace(OPTIONS, schedule=Schedule(40, 1e30, 100))
    with pytest.raises(FloatingPointError, match=r"classification: the loss is .* lower the learning rate"):
        classification(trunk, coloured(8, 0), coloured(8, 0), CLASSES, options, progress=False)
