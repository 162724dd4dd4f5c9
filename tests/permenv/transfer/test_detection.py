"""Fast R-CNN: which regions are trained on, their targets, the losses, learning."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from permenv.networks import BACKBONES
from permenv.transfer.detection import (
    DetectionImages,
    DetectionOptions,
    FastRCNN,
    Objects,
    Regions,
    TargetScale,
    assign,
    centred,
    detect,
    detection,
    sample,
)
from permenv.transfer.finetuning import Schedule
from permenv.transfer.plain import plain_trunk, receptive_field
from permenv.transfer.voc_metrics import intersection_over_union

CLASSES = ("red", "green")
OPTIONS = DetectionOptions(
    short_side=64,
    long_side=96,
    proposals=32,
    hidden=64,
    dropout=0.2,
    stride=None,
    least_score=0.05,
    schedule=Schedule(120, 0.02, 90),
)

WINDOWS = np.array(
    [
        [left, top, left + side - 1, top + side - 1]
        for side in (20, 28)
        for top in range(0, 65 - side, 5)
        for left in range(0, 97 - side, 5)
    ]
)
"""Proposals of every image: squares on a grid."""


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return BACKBONES["two-convolutions"]()


def objects_of(*rows, difficult=()):
    """(box, label) of each object."""
    return Objects(
        np.array([box for box, _ in rows], dtype=float).reshape(-1, 4),
        np.array([label for _, label in rows], dtype=np.int64),
        np.array([place in difficult for place in range(len(rows))], dtype=bool),
    )


def scenes(number, seed):
    """A coloured square of each class at some place of a noisy image, or only one."""
    rng = np.random.default_rng(seed)
    images, objects, proposals = [], [], []
    for _ in range(number):
        image = rng.integers(0, 60, (64, 96, 3), dtype=np.uint8)
        rows = []
        for label, first in ((0, 0), (1, 48)):
            if rng.random() < 0.8:
                side = rng.integers(18, 30)
                left, top = first + rng.integers(0, 48 - side), rng.integers(0, 64 - side)
                image[top : top + side, left : left + side, label] = 250
                rows.append(([left, top, left + side - 1, top + side - 1], label))
        images.append(image)
        objects.append(objects_of(*rows))
        proposals.append(WINDOWS)
    return DetectionImages(images, objects, proposals)


# Regions


def test_regions_are_assigned_by_overlap():
    objects = objects_of(([0, 0, 9, 9], 1), ([20, 0, 29, 9], 0), ([50, 50, 59, 59], 0), difficult=(2,))
    proposals = np.array([[0, 0, 9, 4], [0, 0, 9, 3], [9, 0, 9, 9], [29, 9, 29, 9], [50, 50, 59, 59]])
    regions = assign(proposals, objects, OPTIONS)
    assert regions.boxes[:2].tolist() == [[0, 0, 9, 9], [20, 0, 29, 9]]  # the objects themselves, no difficult one
    assert regions.labels.tolist() == [2, 1, 2, 0, 0, 0, 0]  # 0.5 is an object, 0.4 is not
    assert regions.foreground.tolist() == [0, 1, 2]
    assert regions.background.tolist() == [3, 4]  # overlaps 0.4 and 0.1; 0.01 and 0 are too far away
    assert regions.targets[2] == pytest.approx([0, 0.5, 0, np.log(2)])
    assert (regions.targets[[0, 1, 3, 4, 5, 6]] == 0).all()


def test_an_image_without_objects_has_no_regions_to_train_on():
    regions = assign(np.array([[0, 0, 9, 9]]), objects_of(), OPTIONS)
    assert len(regions.foreground) == len(regions.background) == 0


def test_a_quarter_of_a_sample_are_objects():
    regions = Regions(
        np.zeros((100, 4)),
        np.r_[np.ones(40, int), np.zeros(60, int)],
        np.zeros((100, 4)),
        np.arange(40),
        np.arange(40, 100),
    )
    drawn = sample(regions, DetectionOptions(), np.random.default_rng(0))
    assert (drawn.labels == 1).sum() == 16
    assert (drawn.labels == 0).sum() == 48
    few = regions._replace(foreground=np.arange(3), background=np.arange(40, 50))
    drawn = sample(few, DetectionOptions(), np.random.default_rng(0))
    assert ((drawn.labels == 1).sum(), (drawn.labels == 0).sum()) == (3, 10)


def test_targets_are_normalised_by_class_over_images_and_their_mirror_images():
    targets = np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.0, 0.1, 0.2], [0.5, 0.5, 0.5, 0.5]])
    regions = Regions(np.zeros((3, 4)), np.array([1, 1, 3]), targets, np.arange(3), np.empty(0, int))
    scale = TargetScale.of([regions], 3)
    assert scale.mean[0] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert scale.deviation[0] == pytest.approx([np.sqrt((0.1**2 + 0.3**2) / 2), 0.1, 0.1, 0.1])
    assert (scale.mean[1] == 0).all()
    assert (scale.deviation[1] == 1).all()  # no object of the class
    assert scale.deviation[2] == pytest.approx([0.5, 1, 1, 1])  # one object: its targets do not vary


# The detector


def test_a_padded_caffenet_has_units_at_multiples_of_sixteen():
    trunk = centred(plain_trunk(BACKBONES["caffenet"](), stride=4))
    assert next(layer.padding for layer in trunk if isinstance(layer, nn.Conv2d)) == (5, 5)
    field = receptive_field(trunk[:-1])
    assert (field.first, field.stride) == (0, 16)


def test_the_losses_are_those_of_the_paper(trunk):
    detector = FastRCNN(trunk, 2, OPTIONS).eval()
    detector.targets = TargetScale(np.full((2, 4), 0.1), np.full((2, 4), 0.5))
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    boxes = np.array([[4.0, 4, 40, 40], [20, 10, 60, 50], [0, 0, 20, 20]])
    labels, targets = np.array([2, 1, 0]), np.array([[0.2, -0.1, 0.3, 1.0], [0.0, 0.1, -0.5, 0.2], [0, 0, 0, 0]])
    regions = Regions(boxes, labels, targets, np.array([0, 1]), np.array([2]))
    with torch.no_grad():
        found = detector.loss([image], [regions]).item()
        maps, (factor,) = detector.maps([image])
        units = detector.network.hidden(detector.pooled(maps, boxes * factor, np.zeros(3, dtype=np.int64)))
        logits = detector.network.outputs["class"](units).double().numpy()
        predicted = detector.network.outputs["box"](units).double().numpy().reshape(3, 2, 4)
    expected = 0.0
    for row in range(3):
        expected += (np.log(np.exp(logits[row]).sum()) - logits[row, labels[row]]) / 3
        if labels[row]:
            for value, target in zip(predicted[row, labels[row] - 1], targets[row], strict=True):
                x = abs(value - (target - 0.1) / 0.5)
                expected += (0.5 * x * x if x < 1 else x - 0.5) / 3
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_proposal_sees_its_own_part_of_the_image(trunk):
    """Features of a box do not change with what is far from it, nor with images beside it in the mini-batch."""
    detector = FastRCNN(trunk, 2, OPTIONS).eval()
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[8:24, 8:24] = 255
    box, first = np.array([[8.0, 8, 23, 23]]), np.zeros(1, dtype=np.int64)
    with torch.no_grad():
        maps, (factor,) = detector.maps([image])
        assert factor == 1.0
        alone = detector.pooled(maps, box, first)
        pair, _ = detector.maps([np.ascontiguousarray(image[:, :80]), image])
        beside = detector.pooled(pair, box, first + 1)
        assert maps.shape[2:] == (16, 24)
        units = maps[0, :, 2:7, 2:7]  # 8 and 23 are nearest to units 2 and 6, which lie at 1 + 4 n
    torch.testing.assert_close(alone.amax((2, 3))[0], units.amax((1, 2)))
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_squares_are_found_and_a_seed_decides_the_result(trunk):
    state = torch.get_rng_state()
    train, test = scenes(24, 0), scenes(16, 1)
    result = detection(trunk, train, test, CLASSES, OPTIONS, seed=2, progress=False)
    assert result.mean.all_point > 0.7
    assert set(result.by_class) == set(CLASSES)
    options = dataclasses.replace(OPTIONS, schedule=dataclasses.replace(OPTIONS.schedule, iterations=5))
    first, second = (detection(trunk, train, test, CLASSES, options, seed=2, progress=False) for _ in range(2))
    assert (first.losses == second.losses).all()
    assert (first.losses == result.losses[:5]).all()
    assert first.mean == second.mean
    assert torch.equal(torch.get_rng_state(), state)


def test_detections_of_an_image_are_limited_and_apart(trunk):
    options = dataclasses.replace(OPTIONS, least_score=0.0, most=7)
    data = scenes(3, 0)
    data = dataclasses.replace(data, proposals=[data.proposals[0], np.empty((0, 4)), data.proposals[2]])
    found = detect(FastRCNN(trunk, 2, options), data, CLASSES, progress=False)
    images = np.concatenate([each.images for each in found.values()])
    assert np.bincount(images, minlength=3).tolist() == [7, 0, 7]
    for each in found.values():
        own = each.boxes[each.images == 0]
        overlaps = intersection_over_union(own, own)
        assert (overlaps[~np.eye(len(own), dtype=bool)] <= 0.3).all()
        assert (each.boxes >= 0).all()
        assert (each.boxes <= [95, 63, 95, 63]).all()


def test_without_objects_there_is_nothing_to_learn(trunk):
    data = scenes(2, 0)
    with pytest.raises(ValueError, match="nothing to learn"):
        detection(trunk, dataclasses.replace(data, objects=[objects_of()] * 2), data, CLASSES, OPTIONS)
    with pytest.raises(ValueError, match="2 images with objects of 2 and proposals of 1: give at least"):
        DetectionImages(data.images, data.objects, data.proposals[:1])
